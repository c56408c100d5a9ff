"""Derivatives of a validation loss in hyperparameters by implicit differentiation, each with its errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tightrope.errors import TightropeError
from tightrope.instruments.estimate import student
from tightrope.instruments.heading import Compass, Heading
from tightrope.instruments.hessian import unflat
from tightrope.instruments.objective import RATES, Loss, Mixed, Objective, Task, Values
from tightrope.instruments.solve import Solution, solve
from tightrope.instruments.validation import Validation

LONGEST = math.log(10.0)
"""Longest step of a proposal in the logarithm (of the odds, for a rate)."""
LOOK = 0.01
"""Step in the logarithm (of the odds) with which the second derivative is taken."""
FIRST = 0.5
"""From zero, a value is proposed that moves the weights by this part of their norm at most."""
HIGHEST = 0.1
"""Highest rate that is proposed from zero."""


class Survey:
    """The linear systems of a task, solved once for all hyperparameters, and the errors of what follows."""

    def __init__(
        self, task: Task, val: tuple[tuple[Any, ...], tuple[float, ...]], criterion: Loss | None,
        tolerance: float | None, products: int, damping: float,
    ) -> None:  # fmt: skip
        self.task, self.val, self.criterion = task, val, criterion
        self.tolerance, self.budget, self.asked = tolerance, products, damping

    def read(self, values: Values, said: tuple[str, ...]) -> Compass:
        self.values = values
        self.here = here = _Point(self.task, values, self.val, self.criterion)
        exact = here.check.gradient.dtype == torch.float64
        tolerance = self.tolerance or (1e-10 if exact else 1e-4)
        sides = [here.check.gradient, here.task.gradient, *(m.mean for m in here.mixed.values())]
        system = solve(here.task, sides, tolerance=tolerance, products=self.budget, damping=self.asked)
        self.system, self.back, away = system, system.solutions[0], system.solutions[1]
        self.responses = dict(zip(values, system.solutions[2:], strict=True))
        self.bent = {n: here.task.of_draws(u.vector) for n, u in self.responses.items()}
        # the graphs end with the first shift of the weights: what needs them comes before
        self.added = {n: here.check.samples(u.vector) for n, u in self.responses.items()}
        drifts = self._drift(-away.vector, values)
        headings = {n: self._heading(n, drifts[n]) for n in values}
        size = float(torch.cat([p.detach().reshape(-1) for p in here.task.parameters]).norm())
        return Compass(
            headings, here.check.loss, float(here.task.gradient.norm()), float(away.vector.norm()) / max(size, 1e-300),
            max(s.residual for s in system.solutions), all(s.converged for s in system.solutions), system.lowest,
            system.damping, here.task.gradient.numel(), here.task.products, len(self.task.seeds), said,
        )  # fmt: skip

    def _heading(self, name: str, drift: float) -> Heading:
        value, u, v, g = self.values[name], self.responses[name], self.back, self.here.check.gradient
        mixed = self.here.mixed[name]
        derivative = -_dot(g, u.vector) - _dot(v.vector, u.rest)
        added = self.added[name]
        sampling, t = math.nan, 0.0
        if added is not None and len(added) > 3:
            sampling, t = float(added.std()) * math.sqrt(len(added)), student(len(added) - 1)
        draws = self._draws(name)
        solver = self._solver(u, v, g)
        damping = abs(_dot(g, u.more - u.vector)) if self.system.damping > 0 else 0.0
        difference = 0.0
        if isinstance(mixed.bias, Tensor):
            difference = self._bias(mixed.bias)
        t_draws = student(max(len(self.task.seeds) - 1, 3))
        numerical = t_draws * draws + solver + abs(drift) + damping + difference
        drawn = math.hypot(0.0 if math.isnan(sampling) else t * sampling, t_draws * draws)
        second = self._second(name)
        return Heading(
            name, value, derivative, second, drawn + numerical - t_draws * draws, numerical, sampling, draws, solver,
            abs(drift), damping, difference, self._newton(name, derivative, second),
        )  # fmt: skip

    def _draws(self, name: str) -> float:
        """Standard error over draws: each one's part in the mixed derivative and in the Hessian, to first order."""
        count = len(self.task.seeds)
        if count < 2:
            return 0.0
        parts = (self.here.mixed[name].draws - self.bent[name]).double() @ self.back.vector.double()
        return float(parts.std()) / math.sqrt(count)

    def _bias(self, bias: Tensor) -> float:
        """What of the difference between a wide and a narrow quotient is beyond its noise."""
        parts = bias.double() @ self.back.vector.double()
        noise = float(parts.std()) / math.sqrt(len(parts)) if len(parts) > 1 else 0.0
        return max(abs(float(parts.mean())) - 2 * noise, 0.0)

    def _solver(self, u: Solution, v: Solution, g: Tensor) -> float:
        """|r_v' H⁻¹ r_u| by the smallest curvature that was met, and rounding of the last sum."""
        floor = self.system.lowest + self.system.damping
        rounding = torch.finfo(g.dtype).eps * float(g.norm()) * float(u.vector.norm())
        product = float(u.rest.norm()) * float(v.rest.norm())
        return rounding + (product / floor if floor > 0 else 0.0 if product == 0 else math.inf)

    def _second(self, name: str) -> float:
        """The second derivative by one step along the response of the weights."""
        step = _width(name, self.values[name])
        moved = {**self.values, name: self.values[name] + step}
        return self._drift(-step * self.responses[name].vector, moved, only=name)[name] / step

    def _drift(self, shift: Tensor, values: Values, only: str | None = None) -> dict[str, float]:
        """By how much the derivatives change, to first order, with the weights and the values.

        The value -g'u - v'(c - H u) is stationary in u and v, so that only g, c and H have to be taken anew.
        """
        names = [only] if only is not None else list(values)
        try:
            with _shifted(self.here.task.parameters, shift):
                there = _Point(self.task, values, self.val, self.criterion, names)
                turned = {name: there.task(self.responses[name].vector) for name in names}
        except TightropeError:  # not finite so far away
            return dict.fromkeys(names, math.inf)
        found = {}
        for name in names:
            u, v = self.responses[name].vector, self.back.vector
            slope = _dot(there.check.gradient - self.here.check.gradient, u)
            mixed = _dot(v, there.mixed[name].mean - self.here.mixed[name].mean)
            bent = _dot(v, turned[name] - self.bent[name].mean(0))
            change = bent - slope - mixed
            found[name] = change if math.isfinite(change) else math.inf
        return found

    def _newton(self, name: str, derivative: float, second: float) -> float:
        """A Newton step in the logarithm (of the odds, for a rate), no longer than `LONGEST`."""
        value = self.values[name]
        if value == 0:
            return self._from_zero(name, derivative, second)
        speed, turn = (value * (1 - value), 1 - 2 * value) if name in RATES else (value, 1.0)
        slope = derivative * speed
        bend = second * speed**2 + slope * turn
        step = -slope / bend if bend > 0 and math.isfinite(bend) else -math.copysign(math.inf, slope) if slope else 0.0
        step = min(max(step, -LONGEST), LONGEST)
        if name in RATES:
            odds = value / (1 - value) * math.exp(step)
            return odds / (1 + odds)
        return value * math.exp(step)

    def _from_zero(self, name: str, derivative: float, second: float) -> float:
        if derivative >= 0:
            return 0.0
        response = float(self.responses[name].vector.norm())
        size = float(torch.cat([p.detach().reshape(-1) for p in self.here.task.parameters]).norm())
        most = FIRST * size / response if response > 0 else HIGHEST
        most = min(most, HIGHEST) if name in RATES else most
        return min(-derivative / second, most) if second > 0 else most


class _Point:
    """Training objective, validation loss and mixed derivatives at one place."""

    def __init__(
        self, task: Task, values: Values, val: tuple[tuple[Any, ...], tuple[float, ...]], criterion: Loss | None,
        names: Iterable[str] | None = None,
    ) -> None:  # fmt: skip
        self.task = Objective(task, values)
        self.check = Validation(task.model, *val, criterion)
        self.mixed: dict[str, Mixed] = {name: self.task.mixed(name) for name in (values if names is None else names)}


@contextmanager
def _shifted(parameters: list[Tensor], by: Tensor) -> Iterator[None]:
    before = [p.detach().clone() for p in parameters]
    try:
        with torch.no_grad():
            for p, part in zip(parameters, unflat(by, parameters), strict=True):
                p.add_(part)
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(parameters, before, strict=True):
                p.copy_(old)


def _width(name: str, value: float) -> float:
    if value == 0:
        return LOOK * HIGHEST
    return LOOK * value * (1 - value) if name in RATES else LOOK * value


def _dot(a: Tensor, b: Tensor) -> float:
    return float(a.double() @ b.double())


__all__ = ["LONGEST", "Survey"]
