"""How the loss of a run goes, and how much its learning rates allow."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tightrope.checks.optim.ratios import is_weight, ratio, typical
from tightrope.measure.updates import Updates
from tightrope.study import History

WINDOWS = 4
"""A run's begin and end are its first and last quarter."""

STILL = 0.02
"""Share of the loss below which its fall counts as none (trials: every healthy run of 50 steps fell further)."""
NOISE = 2.0
"""Standard errors within which a fall is none."""


@dataclass(frozen=True)
class Progress:
    """The losses of a run, one a step.

    Attributes:
        losses: mean over the passes of each step.
        first: the first one.
        worst: the largest; infinite when one was not finite.
        begin, end: means over the first and last quarter.
        error: standard error of their difference.
    """

    losses: tuple[float, ...]
    first: float
    worst: float
    begin: float
    end: float
    error: float

    @property
    def steps(self) -> int:
        """Number of steps whose loss is known."""
        return len(self.losses)

    @property
    def moved(self) -> float:
        """By which share of itself the loss went down between the first and the last quarter."""
        return (self.begin - self.end) / max(abs(self.begin), 1e-12)


def progress(history: History | None) -> Progress | None:
    """How the loss went so far; None with fewer than two losses."""
    if history is None or len(history.losses) < 2:
        return None
    means = [statistics.fmean(history.losses[n]) for n in sorted(history.losses)]
    finite = [x for x in means if math.isfinite(x)]
    if not finite or not math.isfinite(means[0]):
        return None
    size = max(len(finite) // WINDOWS, 1)
    head, tail = finite[:size], finite[-size:]
    worst = max(means) if len(finite) == len(means) else math.inf
    error = math.hypot(_error(head), _error(tail))
    return Progress(tuple(means), means[0], worst, statistics.fmean(head), statistics.fmean(tail), error)


def _error(values: Sequence[float]) -> float:
    """Standard error of a mean."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def ratios(updates: Updates, history: History | None, of: Callable[[Updates], float | None] = typical) -> list[float]:
    """The ratio of update to weight in each recorded step so far, typical or largest."""
    every = {updates.step: updates}
    if history is not None:
        every.update({study.updates.step: study.updates for study in history.earlier if study.updates is not None})
    found = (of(every[step]) for step in sorted(every))
    return [ratio for ratio in found if ratio is not None and math.isfinite(ratio)]


def spent(rates: dict[int, float], steps: int) -> float:
    """Sum of the learning rates of all steps over the largest: the number of steps at full rate that they make."""
    points = sorted(rates.items())
    ends = [*(step for step, _ in points[1:]), steps + 1]
    total = sum(rate * (end - step) for (step, rate), end in zip(points, ends, strict=True))
    largest = max(rates.values())
    return total / largest if largest > 0 else 0.0


def stands(run: Progress) -> bool:
    """Whether the loss neither falls nor rises beyond noise."""
    return abs(run.begin - run.end) < max(NOISE * run.error, STILL * abs(run.begin))


def follows_gradient(updates: Updates) -> bool:
    """Whether the updates' size is other than the rate's own, which adaptive optimizers keep to."""
    rows = [row for row in updates.rows if is_weight(row) and row.groups and ratio(row) > 0]
    sizes = [(row.change or 0.0) / max(row.groups[0].number("lr"), 1e-45) for row in rows]
    return not sizes or not all(0.1 < size < 10 for size in sizes)
