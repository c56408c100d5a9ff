"""Numbers with their 95 % intervals: the jackknife over groups, and ratios of two estimates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

LEVEL = 0.95
"""Coverage of every interval."""


@dataclass(frozen=True)
class Estimate:
    """One number and where it lies with 95 % confidence.

    Attributes:
        value: the estimate; infinite where the denominator of a ratio is lost in its noise.
        error: its standard error; infinite where the value is.
        low, high: ends of the interval; `high` is infinite where the data set no upper bound.
    """

    value: float
    error: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isinf(self.low):
            return "infinite"
        if math.isinf(self.value):
            return f"not resolved, at least {self.low:.3g}"
        if math.isinf(self.high):
            return f"{self.value:.3g}, at least {self.low:.3g}, no upper bound"
        return f"{self.value:.3g}, 95 % [{self.low:.3g}, {self.high:.3g}]"


def student(freedom: int) -> float:
    """The two-sided 95 % point of Student's t; within 0.2 % from 3 degrees of freedom on.

    References:
        Fisher, Cornish (1960), The percentile points of distributions having known cumulants, Technometrics 2.
    """
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / float(freedom) ** (i + 1) for i, term in enumerate(terms))


def covariance(left_out: Tensor) -> Tensor:
    """Covariance of estimates by the jackknife; `left_out` has a row for each group that was left out.

    References:
        Efron, Stein (1981), The jackknife estimate of variance, Annals of Statistics 9.
    """
    off = left_out - left_out.mean(0)
    return off.T @ off * (len(left_out) - 1) / len(left_out)


def plain(value: float, variance: float, t: float) -> Estimate:
    """A number that may have any sign: symmetric interval."""
    error = math.sqrt(max(variance, 0.0))
    return Estimate(value, error, value - t * error, value + t * error)


def positive(value: float, variance: float, t: float) -> Estimate:
    """A positive number: the interval is symmetric in the logarithm, in which a variance is less skewed."""
    error = math.sqrt(max(variance, 0.0))
    if value <= 0:
        return Estimate(max(value, 0.0), error, 0.0, max(value, 0.0) + t * error)
    factor = math.exp(min(t * error / value, 700.0))
    return Estimate(value, error, value / factor, value * factor)


def ratio(top: float, bottom: float, spread: Tensor, t: float) -> Estimate:
    """The ratio of two unbiased estimates, of two positive numbers.

    The ratio r = top / bottom is biased by r (Var bottom / bottom^2 - Cov / (top bottom)) in the first order; Beale's
    estimator r (1 + Cov / (top bottom)) / (1 + Var bottom / bottom^2) takes that off and stays finite. The interval is
    Fieller's: all b >= 0 at which top - b bottom is not significantly different from 0. It holds also where
    the bottom is hardly known, and then has no upper end.

    Args:
        top, bottom: the estimates.
        spread: their covariance, shape (2, 2).
        t: point of Student's distribution.

    References:
        Fieller (1954), Some problems in interval estimation, JRSS B 16; Tin (1965), Comparison of some ratio
        estimators, JASA 60, for Beale's.
    """
    v_top, both, v_bottom = float(spread[0, 0]), float(spread[0, 1]), float(spread[1, 1])
    low, high = _fieller(top, bottom, (v_top, both, v_bottom), t)
    if top <= 0 or bottom <= 0:
        value = 0.0 if top <= 0 < bottom else math.inf
        return Estimate(value, math.inf, 0.0 if top <= 0 else low, high)
    r, value = top / bottom, beale(top, bottom, both, v_bottom)
    relative = v_top / top**2 + v_bottom / bottom**2 - 2 * both / (top * bottom)
    return Estimate(value, r * math.sqrt(max(relative, 0.0)), low, high)


def beale(top: float, bottom: float, both: float, v_bottom: float) -> float:
    """top / bottom without its bias of the first order."""
    return (top / bottom + both / bottom**2) / (1 + v_bottom / bottom**2)


def _fieller(top: float, bottom: float, spread: tuple[float, float, float], t: float) -> tuple[float, float]:
    """The b >= 0 with (top - b bottom)^2 <= t^2 Var(top - b bottom): a b^2 - 2 h b + c <= 0."""
    v_top, both, v_bottom = spread
    a = bottom**2 - t**2 * v_bottom
    h = top * bottom - t**2 * both
    c = top**2 - t**2 * v_top
    inside = h * h - a * c
    if inside <= 0:  # all b, or a single one without noise
        return (max(h / a, 0.0),) * 2 if a > 0 else (0.0, math.inf)
    root = math.sqrt(inside)
    if a > 0:
        if bottom < 0 < c:  # significantly below zero: beyond every bound
            return math.inf, math.inf
        return max((h - root) / a, 0.0), max((h + root) / a, 0.0)
    ends = [x for x in ((h - root) / a, (h + root) / a) if x > 0] if a < 0 else [c / (2 * h)]
    # the set is what lies outside the two roots; between a root below 0 and one above it, what lies beyond the latter
    return (max(ends), math.inf) if c > 0 and ends else (0.0, math.inf)


def relative_log(values: Tensor) -> float:
    """Standard error of the logarithm of a positive estimate, from its values with one group left out."""
    return math.sqrt(float(covariance(torch.log(values)[:, None])))


__all__ = ["LEVEL", "Estimate", "beale", "covariance", "plain", "positive", "ratio", "relative_log", "student"]
