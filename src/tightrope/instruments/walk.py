"""A walk to the bottom of the validation curve: train, read the compass, go where it points."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tightrope.errors import InputError
from tightrope.instruments.compass import compass
from tightrope.instruments.heading import Compass
from tightrope.instruments.hypergradient import LONGEST
from tightrope.instruments.objective import ASKED, RATES

INNER = 0.1
"""A secant step keeps this part of the bracket's width away from its ends, so that the bracket shrinks."""


@dataclass(frozen=True, eq=False)
class Walk:
    """The steps that `walk` took.

    Attributes:
        readings: the compass at each setting, in order.
        reason: why it ended: "best", "small steps" or "steps".
        model: the trained model of the setting with the lowest validation loss.
        best: that setting.
    """

    readings: tuple[Compass, ...]
    reason: str
    model: nn.Module = field(repr=False)
    best: dict[str, float]

    @property
    def losses(self) -> tuple[float, ...]:
        """The validation loss at each setting."""
        return tuple(reading.validation for reading in self.readings)

    def __str__(self) -> str:
        names = list(self.best)
        lines = [f"  {'step':<6}" + "".join(f"{name:>16}{'dE/dvalue':>22}" for name in names) + f"{'E_val':>12}"]
        for i, reading in enumerate(self.readings):
            row = "".join(f"{h.value:>16.4g}{h.derivative:>11.3g} ± {h.error:<8.2g}" for h in reading.headings.values())
            lines.append(f"  {i + 1:<6}{row}{reading.validation:>12.5g}")
        why = {
            "best": "no derivative is certain to differ from zero",
            "small steps": "the next step is below the tolerance",
            "steps": "the steps that were asked for are made",
        }[self.reason]
        found = ", ".join(f"{name} {value:.4g}" for name, value in self.best.items())
        return "\n".join([*lines, f"  lowest at {found}; ended since {why}"])


def walk(
    fit: Callable[[dict[str, float]], nn.Module],
    start: Mapping[str, float],
    *,
    train: Any,
    val: Any,
    steps: int = 8,
    tolerance: float = 0.05,
    past_noise: bool = False,
    **options: Any,
) -> Walk:
    """Walk to the hyperparameters with the lowest validation loss, one training a step.

    Each step trains, reads the compass, and makes a Newton step in the logarithm (of the odds, for a rate); once two
    settings have the bottom between them, a secant step inside that bracket.

    Args:
        fit: `fit(values) -> model` trains with these hyperparameters; it may go on from weights that it keeps.
        start: the first values; positive ones can be walked from in both directions.
        train, val: as in `compass`.
        steps: trainings at most.
        tolerance: the walk ends before a step that is shorter in every logarithm.
        past_noise: go on where the derivative is within the sampling error of the validation set, to the bottom of
            this set's own curve.
        options: of `compass`: loss, criterion, augment, penalty, draws, and so on.

    Raises:
        InputError: `fit` returns no model, or something that `compass` refuses.
    """
    if steps < 1 or not tolerance > 0:
        raise InputError(ASKED, f"steps is {steps}, tolerance is {tolerance}", "Pass positive numbers")
    values = {name: float(value) for name, value in start.items()}
    readings: list[Compass] = []
    models: list[nn.Module] = []
    reason = "steps"
    for _ in range(steps):
        model = fit(dict(values))
        if not isinstance(model, nn.Module):
            raise InputError(ASKED, f"fit returned {type(model).__name__}", "Return the trained model from it")
        readings.append(compass(model, train=train, val=val, hyperparameters=values, **options))
        if not models or readings[-1].validation < min(r.validation for r in readings[:-1]):
            models = [model]
        if not past_noise and readings[-1].side == "best":
            reason = "best"
            break
        following = {name: _next(name, readings) for name in values}
        if all(abs(_scale(n, following[n]) - _scale(n, values[n])) < tolerance for n in values):
            reason = "small steps"
            break
        values = following
    best = min(readings, key=lambda reading: reading.validation)
    return Walk(tuple(readings), reason, models[0], {name: h.value for name, h in best.headings.items()})


def _scale(name: str, value: float) -> float:
    if value <= 0:
        return -math.inf
    return math.log(value / (1 - value)) if name in RATES else math.log(value)


def _value(name: str, place: float) -> float:
    return 1 / (1 + math.exp(-place)) if name in RATES else math.exp(place)


def _next(name: str, readings: list[Compass]) -> float:
    """Newton's step while all derivatives have one sign, else a secant step between the two nearest of both."""
    now = readings[-1].headings[name]
    points = []
    for reading in readings:
        h = reading.headings[name]
        if h.value > 0:
            speed = h.value * (1 - h.value) if name in RATES else h.value
            points.append((_scale(name, h.value), h.derivative * speed))
    left = [p for p in points if p[1] < 0]
    right = [p for p in points if p[1] > 0]
    if now.value <= 0 or not left or not right:
        return now.newton
    (a, slope_a), (b, slope_b) = max(left), min(right)
    newton = _scale(name, now.newton)
    if not a < b:  # training was not the same each time
        return now.newton
    low, high = a + INNER * (b - a), b - INNER * (b - a)
    if low <= newton <= high and abs(newton - _scale(name, now.value)) < LONGEST:
        return _value(name, newton)
    return _value(name, min(max(a - slope_a * (b - a) / (slope_b - slope_a), low), high))


__all__ = ["Walk", "walk"]
