"""The numbers of a target, and how much of them a bounded head reaches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tightrope.checks.trace import origin
from tightrope.tape.tape import Entry, Tape


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


__all__ = ["Reach", "numbers", "reach", "whole"]
