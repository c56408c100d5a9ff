"""The numbers of a target, and the range of the head that is to reach them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tightrope.checks.trace import origin
from tightrope.tape.tape import Entry, Tape

RANGES: dict[str, tuple[float, float]] = {
    "sigmoid": (0.0, 1.0), "hardsigmoid": (0.0, 1.0), "softmax": (0.0, 1.0), "tanh": (-1.0, 1.0),
    "softsign": (-1.0, 1.0), "relu": (0.0, math.inf), "relu6": (0.0, 6.0), "softplus": (0.0, math.inf),
    "exp": (0.0, math.inf), "abs": (0.0, math.inf), "log_softmax": (-math.inf, 0.0), "logsigmoid": (-math.inf, 0.0),
    "sin": (-1.0, 1.0), "cos": (-1.0, 1.0),
}  # fmt: skip
"""What an operation's results lie between."""


def numbers(tape: Tape, made: dict[int, Entry], number: int | None) -> Tensor | None:
    """The content of a target in double precision; None when it was computed inside the step, or is on no device."""
    if number is None:
        return None
    value = tape.values[number]
    for candidate in (number, origin(made, number)):
        content = tape.values[candidate].content
        if content is not None and not content.is_meta and content.numel() == math.prod(value.shape) > 0:
            return content.reshape(value.shape)
    return None


def head_range(entry: Entry | None) -> tuple[float, float] | None:
    """Between which numbers a call's results lie; None when they are not bounded, or the call is unknown."""
    if entry is None:
        return None
    if entry.op in ("hardtanh", "clamp"):
        names = ("min_val", "max_val") if entry.op == "hardtanh" else ("min", "max")
        ends = [entry.argument(i + 1, name) for i, name in enumerate(names)]
        if entry.op == "hardtanh":
            ends = [-1.0 if ends[0] is None else ends[0], 1.0 if ends[1] is None else ends[1]]
        if any(end is not None and not isinstance(end, (int, float)) for end in ends) or ends == [None, None]:
            return None
        return (-math.inf if ends[0] is None else float(ends[0]), math.inf if ends[1] is None else float(ends[1]))
    return RANGES.get(entry.op)


@dataclass(frozen=True)
class Reach:
    """How much of a target a bounded head cannot reach.

    Attributes:
        outside: share of the target's elements outside the head's range.
        floor: mean square of their distance from it, the smallest squared error that there is.
        variance: of the target.
        low, high: its smallest and largest element.
    """

    outside: float
    floor: float
    variance: float
    low: float
    high: float

    @property
    def share(self) -> float:
        """The floor over the target's variance: what no training explains."""
        return self.floor / self.variance if self.variance > 0 else math.inf if self.floor > 0 else 0.0


def reach(target: Tensor, ends: tuple[float, float]) -> Reach | None:
    """What of a target lies outside a range; None for a target that is not finite."""
    y = target.detach().double()
    if not bool(torch.isfinite(y).all()):
        return None
    distance = (ends[0] - y).clamp(min=0) + (y - ends[1]).clamp(min=0)
    low, high = (float(end) for end in torch.aminmax(y))
    variance = float(y.var(correction=0))
    return Reach(float((distance > 0).double().mean()), float(distance.square().mean()), variance, low, high)


def whole(target: Tensor) -> bool:
    """Whether all elements are whole numbers."""
    return not target.is_floating_point() or bool((target == target.round()).all())


__all__ = ["Reach", "head_range", "numbers", "reach", "whole"]
