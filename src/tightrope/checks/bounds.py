"""Between which numbers a value of a step must lie, whatever the data: intervals carried along the tape."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from tightrope.checks.trace import JOINS, VIEWS, origin
from tightrope.measure.measurement import Units
from tightrope.tape.tape import Entry, Ref, Tape

Interval = tuple[float, float]
REAL: Interval = (-math.inf, math.inf)
RANGES: dict[str, Interval] = {
    "sigmoid": (0.0, 1.0), "hardsigmoid": (0.0, 1.0), "softmax": (0.0, 1.0), "tanh": (-1.0, 1.0),
    "softsign": (-1.0, 1.0), "relu": (0.0, math.inf), "relu6": (0.0, 6.0), "softplus": (0.0, math.inf),
    "exp": (0.0, math.inf), "abs": (0.0, math.inf), "log_softmax": (-math.inf, 0.0), "logsigmoid": (-math.inf, 0.0),
    "sin": (-1.0, 1.0), "cos": (-1.0, 1.0), "cosine_similarity": (-1.0, 1.0), "square": (0.0, math.inf),
    "norm": (0.0, math.inf), "linalg_vector_norm": (0.0, math.inf), "vector_norm": (0.0, math.inf),
    "cdist": (0.0, math.inf), "sqrt": (0.0, math.inf), "pairwise_distance": (0.0, math.inf),
}  # fmt: skip
"""What an operation's results lie between."""
_NORMS = frozenset(("norm", "linalg_vector_norm", "vector_norm"))
_CHOICES = frozenset(("where", "masked_fill"))
_CLIPS = frozenset(("clamp", "clamp_min", "clamp_max", "hardtanh", "relu", "relu6"))
_PRODUCTS = frozenset(("matmul", "mm", "bmm", "einsum", "linear"))
_AVERAGES = frozenset(("mean", "amax", "max", "amin", "min", "dropout"))
_FEW = 1 << 22  # elements of data whose lengths are looked at
_ROUNDING = 1e-2  # of a length, in half precision
_DEPTH = 24  # calls that are looked back


class Bounds:
    """Intervals of the values of one step.

    Args:
        tape: the recorded step.
        made: which entry made each value.
        units: the range that each value was measured in; those of parameters and data stand for what they can be.
        depends: ids of the values that depend on a parameter and on data.
    """

    def __init__(
        self, tape: Tape, made: Mapping[int, Entry], units: Mapping[int, Units], depends: frozenset[int]
    ) -> None:
        self.tape, self.made, self.units = tape, dict(made), units
        self.free = depends & tape.of_batch

    def of(self, number: int, depth: int = _DEPTH) -> Interval:
        """Between which numbers all elements of a value lie."""
        if number not in self.free:
            found = self.units.get(number)
            return (found.low, found.high) if found is not None and not found.nonfinite else REAL
        entry = self.made.get(number)
        if entry is None or depth == 0:
            return REAL
        return self._call(entry, depth - 1)

    def _call(self, entry: Entry, depth: int) -> Interval:
        fixed = None if entry.op in ("square", "sqrt") else head_range(entry)
        if fixed is not None:
            low, high = self.of(entry.inputs[0], depth) if entry.op in _CLIPS else fixed
            return min(max(low, fixed[0]), fixed[1]), min(max(high, fixed[0]), fixed[1])
        if entry.op in ("pow", "square", "sqrt"):
            return self._power(entry, depth)
        if entry.op in VIEWS | _AVERAGES:
            return self.of(entry.inputs[0], depth)
        if entry.op == "neg":
            low, high = self.of(entry.inputs[0], depth)
            return -high, -low
        if entry.op in JOINS | _CHOICES:
            ends = [self._side(item, depth) for item in self._parts(entry)]
            return min(low for low, _ in ends), max(high for _, high in ends)
        if entry.op == "sum":
            product = self.made.get(entry.inputs[0])
            if product is not None and product.op == "mul":
                reach = math.prod(self._length(i, depth) for i in product.inputs)
                if math.isfinite(reach):
                    return -reach, reach
            low, high = self.of(entry.inputs[0], depth)
            return (0.0 if low >= 0 else -math.inf, 0.0 if high <= 0 else math.inf)
        if entry.op in _PRODUCTS:
            reach = math.prod(self._length(i, depth) for i in entry.inputs[:2]) if len(entry.inputs) == 2 else math.inf
            return (-reach, reach) if math.isfinite(reach) else REAL
        if entry.op in ("add", "sub", "rsub", "mul", "div", "rdiv") and "alpha" not in entry.kwargs:
            return self._arithmetic(entry, depth)
        return REAL

    def _arithmetic(self, entry: Entry, depth: int) -> Interval:
        if entry.op == "sub" and self._shifted(entry):
            return -math.inf, 0.0
        sides = [self._side(item, depth) for item in entry.args[:2]]
        if len(sides) < 2:
            return REAL
        a, b = sides
        if entry.op in ("rsub", "rdiv"):
            a, b = b, a
        if entry.op == "add":
            return a[0] + b[0], a[1] + b[1]
        if entry.op in ("sub", "rsub"):
            return a[0] - b[1], a[1] - b[0]
        if entry.op in ("div", "rdiv"):
            if b[0] <= 0 <= b[1]:
                return (0.0, math.inf) if a[0] >= 0 and b[0] >= 0 else REAL
            b = (1 / b[1], 1 / b[0])
        corners = [0.0 if 0 in (x, y) else x * y for x in a for y in b]
        return min(corners), max(corners)

    def _side(self, item: object, depth: int) -> Interval:
        if isinstance(item, Ref):
            return self.of(item.id, depth)
        return (float(item), float(item)) if isinstance(item, (int, float)) else REAL

    def _shifted(self, entry: Entry) -> bool:
        """x - max(x): at most zero."""
        if len(entry.inputs) != 2:
            return False
        top = self.made.get(origin(self.made, entry.inputs[1]))
        if top is not None and top.op == "log":  # of a sum of exponentials that is written out
            top = self.made.get(origin(self.made, top.inputs[0], VIEWS | {"sum"}))
            return top is not None and top.op == "exp" and top.inputs[0] == entry.inputs[0]
        same = top is not None and origin(self.made, top.inputs[0]) == origin(self.made, entry.inputs[0])
        return top is not None and top.op in ("max", "amax", "logsumexp", "cummax") and same

    def _parts(self, entry: Entry) -> list[object]:
        """What the elements of a join, or of a choice between two tensors, come from."""
        if entry.op == "where":
            return list(entry.args[1:3])
        return (
            list(entry.args[:1]) + list(entry.args[2:3]) if entry.op == "masked_fill" else list(map(Ref, entry.inputs))
        )

    def _power(self, entry: Entry, depth: int) -> Interval:
        low, high = self.of(entry.inputs[0], depth)
        if entry.op == "sqrt":
            return math.sqrt(max(low, 0.0)), math.sqrt(max(high, 0.0))
        exponent = 2 if entry.op == "square" else entry.argument(1, "exponent")
        if not isinstance(exponent, (int, float)) or exponent % 2:
            return REAL
        return 0.0, max(abs(low), abs(high)) ** 2 if exponent == 2 else math.inf

    def _length(self, number: int, depth: int) -> float:
        """The longest that a row may be: 1 behind a normalisation, times the factors since; else infinity."""
        if depth == 0:
            return math.inf
        if self._unit(number):
            return 1.0
        entry = self.made.get(origin(self.made, number))
        if entry is None or entry.op not in ("mul", "div") or len(entry.args) < 2:
            return math.inf
        for rows, factor in (entry.args[:2], entry.args[1::-1]):
            single = not isinstance(factor, Ref) or math.prod(self.tape.values[factor.id].shape) == 1
            if not isinstance(rows, Ref) or not single:
                continue
            low, high = self._side(factor, depth - 1)
            length = self._length(rows.id, depth - 1)
            if entry.op == "mul":
                return length * max(abs(low), abs(high))
            return length / min(abs(low), abs(high)) if low * high > 0 else math.inf
        return math.inf

    def _unit(self, number: int) -> bool:
        """Whether the rows, or the columns, of a value have length 1: it was divided by its norm, here or before."""
        entry = self.made.get(origin(self.made, number))
        content = self.tape.values[number].content
        if entry is None and content is not None and content.is_floating_point() and 0 < content.numel() < _FEW:
            lengths = (
                torch.linalg.vector_norm(content.double(), dim=d) for d in range(max(content.ndim - 2, 0), content.ndim)
            )
            return any(bool(((length - 1).abs() < _ROUNDING).all()) for length in lengths)
        if entry is None or entry.op != "div" or len(entry.inputs) != 2:
            return False
        length = self.made.get(origin(self.made, entry.inputs[1], VIEWS | {"clamp_min", "clamp", "add"}))
        return length is not None and length.op in _NORMS and length.inputs[0] == entry.inputs[0]


def head_range(entry: Entry | None) -> Interval | None:
    """Between which numbers a call's results lie; None when they are not bounded, or the call is unknown."""
    if entry is None:
        return None
    if entry.op not in ("hardtanh", "clamp", "clamp_min", "clamp_max"):
        return RANGES.get(entry.op)
    default = (-1.0, 1.0) if entry.op == "hardtanh" else (None, None)
    if entry.op in ("clamp_min", "clamp_max"):
        only = entry.argument(1, entry.op[-3:])
        ends = (only, None) if entry.op == "clamp_min" else (None, only)
    else:
        names = ("min_val", "max_val") if entry.op == "hardtanh" else ("min", "max")
        ends = tuple(entry.argument(i + 1, name, default[i]) for i, name in enumerate(names))
    if any(end is not None and not isinstance(end, (int, float)) for end in ends) or ends == (None, None):
        return None
    return (-math.inf if ends[0] is None else float(ends[0]), math.inf if ends[1] is None else float(ends[1]))


__all__ = ["REAL", "Bounds", "Interval", "head_range"]
