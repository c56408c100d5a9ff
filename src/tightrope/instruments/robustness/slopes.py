"""The range of an activation's slope: everywhere, and on intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tightrope.tape.tape import Entry


@dataclass(frozen=True)
class Shape:
    """Where the slope of a function can be largest or smallest.

    Attributes:
        low, high: of the slope everywhere.
        turns: where the second derivative is zero.
        kinks: where the slope jumps; both sides count.
    """

    low: float
    high: float
    turns: tuple[float, ...] = ()
    kinks: tuple[float, ...] = ()


# Zeros of f'' to the last digit; at a turn an error d of the place changes the slope by the order d^2 alone.
GELU = Shape(-0.12890415, 1.12890415, (-math.sqrt(2), math.sqrt(2)))
GELU_TANH = Shape(-0.12899307, 1.12899307, (-1.4185040087908278, 1.4185040087908278))
SILU = Shape(-0.09983933, 1.09983933, (-2.399357280515468, 2.399357280515468))
MISH = Shape(-0.11252613, 1.08849817, (-2.2563763963607935, 1.4905711794854286))
STEP = Shape(0.0, 1.0, (), (0.0,))
FIXED: dict[str, Shape] = {
    "relu": STEP, "sigmoid": Shape(0.0, 0.25, (0.0,)), "tanh": Shape(0.0, 1.0, (0.0,)), "silu": SILU, "mish": MISH,
    "relu6": Shape(0.0, 1.0, (), (0.0, 6.0)), "softsign": Shape(0.0, 1.0, (), (0.0,)), "logsigmoid": Shape(0.0, 1.0),
    "tanhshrink": Shape(0.0, 1.0, (0.0,)), "sin": Shape(-1.0, 1.0), "cos": Shape(-1.0, 1.0),
    "abs": Shape(-1.0, 1.0, (), (0.0,)), "arctan": Shape(0.0, 1.0, (0.0,)), "atan": Shape(0.0, 1.0, (0.0,)),
    "erf": Shape(0.0, 2 / math.sqrt(math.pi), (0.0,)), "hardsigmoid": Shape(0.0, 0.16666668, (), (-3.0, 3.0)),
    "hardswish": Shape(-0.5, 1.5, (), (-3.0, 3.0)), "selu": Shape(0.0, 1.7580993408473766, (), (0.0,)),
}  # fmt: skip
"""Activations without options."""


def shape_of(entry: Entry, constant: Callable[[Any], Any]) -> Shape | None:
    """The slope's shape of a pointwise operation on its first argument; None where it has no known bound."""
    op = entry.op
    if op in FIXED:
        return FIXED[op]
    make = OPTIONS.get(op)
    return None if make is None else make(lambda place, name, default: constant(entry.argument(place, name, default)))


Ask = Callable[[int, str, Any], Any]


def _leaky(ask: Ask) -> Shape:
    slope = float(ask(1, "negative_slope", 0.01))
    return Shape(min(slope, 1.0), max(slope, 1.0), (), (0.0,))


def _prelu(ask: Ask) -> Shape:
    weight = ask(1, "weight", None)
    return Shape(min(float(weight.min()), 1.0), max(float(weight.max()), 1.0), (), (0.0,))


def _gelu(ask: Ask) -> Shape:
    return GELU if ask(1, "approximate", "none") == "none" else GELU_TANH


def _elu(ask: Ask) -> Shape:
    alpha = float(ask(1, "alpha", 1.0))
    return Shape(min(alpha, 0.0), max(alpha, 1.0), (), (0.0,))


def _celu(ask: Ask) -> Shape:
    return STEP


def _softplus(ask: Ask) -> Shape:
    beta, threshold = float(ask(1, "beta", 1.0)), float(ask(2, "threshold", 20.0))
    return Shape(0.0, 1.0, (), (threshold / beta,))


def _clamp(ask: Ask) -> Shape | None:
    ends = [ask(1, "min", None), ask(2, "max", None)]
    if any(isinstance(e, Tensor) and e.numel() != 1 for e in ends):
        return None
    return Shape(0.0, 1.0, (), tuple(float(e) for e in ends if e is not None))


def _hardtanh(ask: Ask) -> Shape:
    return Shape(0.0, 1.0, (), (float(ask(1, "min_val", -1.0)), float(ask(2, "max_val", 1.0))))


def _softshrink(ask: Ask) -> Shape:
    edge = float(ask(1, "lambd", 0.5))
    return Shape(0.0, 1.0, (), (-edge, edge))


OPTIONS: dict[str, Callable[[Ask], Shape | None]] = {
    "leaky_relu": _leaky, "prelu": _prelu, "gelu": _gelu, "elu": _elu, "celu": _celu, "softplus": _softplus,
    "clamp": _clamp, "clamp_min": _clamp, "hardtanh": _hardtanh, "softshrink": _softshrink,
}  # fmt: skip
"""Activations with options. Softplus jumps at its threshold, by exp(-threshold): that little is left out."""


def slopes_on(
    function: Callable[[Tensor], Tensor], shape: Shape, middle: Tensor, radius: Tensor
) -> tuple[Tensor, Tensor]:
    """Smallest and largest slope on middle +- radius, element by element, within `shape`'s own bounds.

    A function without known turns (sine) has its bounds everywhere.
    """
    low, high = torch.full_like(middle, shape.low), torch.full_like(middle, shape.high)
    if shape.low == -1.0 and not shape.kinks:
        return low, high
    left, right = middle - radius, middle + radius
    ends = [_slope(function, left), _slope(function, right)]
    least, most = torch.minimum(*ends), torch.maximum(*ends)
    for place in (*shape.turns, *(k + side * max(abs(k), 1.0) * 1e-9 for k in shape.kinks for side in (-1, 1))):
        inside = (left - 1e-8 <= place) & (place <= right + 1e-8)
        here = _slope(function, torch.full_like(middle, place))
        least = torch.where(inside, torch.minimum(least, here), least)
        most = torch.where(inside, torch.maximum(most, here), most)
    slack = 1e-7 * max(abs(shape.low), abs(shape.high))  # places are known to that
    sides = (torch.maximum(least - slack, low), torch.minimum(most + slack, high))
    flat = (least == most) & (not shape.turns)  # a straight piece on both sides needs no slack
    return torch.where(flat, least, sides[0]), torch.where(flat, most, sides[1])


def _slope(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    with torch.enable_grad():
        x = at.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(function(x).sum(), x)
    return slope


__all__ = ["FIXED", "OPTIONS", "Shape", "shape_of", "slopes_on"]
