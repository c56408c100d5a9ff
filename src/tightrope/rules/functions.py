"""Which operations act element by element, and where they bend: the tables of `elementwise`."""

from __future__ import annotations

from tightrope.tape.tape import Entry

CURVED = (
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "softsign", "tanh",
    "sigmoid", "hardtanh", "hardsigmoid", "hardswish", "hardshrink", "softshrink", "tanhshrink", "logsigmoid",
    "threshold", "rrelu", "prelu", "exp", "expm1", "log", "log1p", "log2", "log10", "sqrt", "rsqrt", "square",
    "reciprocal", "abs", "sign", "sin", "cos", "tan", "atan", "asinh", "erf", "erfc", "clamp", "clamp_min",
    "clamp_max", "exp2", "sinc", "sinh", "cosh", "frac", "round", "floor", "ceil", "trunc", "nan_to_num", "logit",
    "pow", "rpow", "maximum", "minimum", "where", "lerp", "addcmul", "addcdiv",
)  # fmt: skip
LINEAR = ("add", "sub", "rsub", "mul", "div", "rdiv", "neg", "positive")
POOLING = (
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
)
DISTANCES = ("binary_cross_entropy", "mse_loss")
CHAINING = frozenset((*CURVED, *LINEAR, *POOLING, *DISTANCES))
"""Operations that can continue a chain of elementwise functions of one variable."""

ROOTS = frozenset({"sqrt", "rsqrt", "log", "log2", "log10"})
"""Functions of what is never negative."""

_KINKS = {
    **dict.fromkeys(("relu", "leaky_relu", "rrelu", "elu", "selu", "celu", "abs", "sign", "softsign", "prelu"), (0.0,)),
    **dict.fromkeys(("sqrt", "rsqrt", "log"), (0.0,)),
    "relu6": (0.0, 6.0), "hardsigmoid": (-3.0, 3.0), "hardswish": (-3.0, 3.0),
}  # fmt: skip

BENT = frozenset(
    {"tanh", "sigmoid", "erf", "erfc", "gelu", "silu", "mish", "softplus", "logsigmoid", "tanhshrink", "expm1", "atan"}
)
"""Smooth functions that turn within a few units of zero."""
BENDS = (-3.0, 0.0, 3.0)
STEEP = 1.5
"""Standard deviation from which the turn is a step to the variable, and the quadrature is split around it."""


def kinks(entry: Entry) -> tuple[float, ...]:
    """Where the operation or its derivative jumps: the quadrature is split there."""
    op = entry.op
    if op in ("clamp", "clamp_min", "clamp_max", "hardtanh"):
        default = 1.0 if op == "hardtanh" else None
        low = entry.argument(
            1, "max" if op == "clamp_max" else "min", entry.kwargs.get("min_val", default and -default)
        )
        high = entry.argument(2, "max", entry.kwargs.get("max_val", default))
        return tuple(sorted({float(edge) for edge in (low, high) if isinstance(edge, (int, float))}))
    if op in ("hardshrink", "softshrink"):
        edge = float(entry.argument(1, "lambd", 0.5))
        return (-edge, edge)
    if op == "threshold":
        return (float(entry.argument(1, "threshold")),)
    return _KINKS.get(op, ())
