"""A statistic beside its own law under the null hypothesis, by Monte Carlo."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RESAMPLES = 999
"""Draws under the null: the p-value is then a multiple of a thousandth."""
FEWEST = 199
BUDGET = 50_000_000
"""Labels drawn in all, about three seconds; beyond it there are fewer draws."""
SURE = 0.01
"""p-value from which a verdict speaks: a calibrated model is then called otherwise in one case of a hundred."""


@dataclass(frozen=True)
class Measure:
    """A calibration error, and what a calibrated model of the same predictions shows of it by chance.

    Attributes:
        value: the error.
        null: its mean for a calibrated model; the estimator's own bias.
        high: its 95 % point for one.
        p: share of calibrated models that show as much; at least one of those drawn counts, so it is never 0.
    """

    value: float
    null: float
    high: float
    p: float

    @classmethod
    def of(cls, value: float, null: Tensor) -> Measure:
        """Beside draws under the null."""
        above = int((null >= value - 1e-12).sum())  # equal counts may differ in their rounding
        high = float(torch.quantile(null, 0.95))
        return cls(value, float(null.mean()), high, (1 + above) / (1 + len(null)))

    @property
    def excess(self) -> float:
        """The error beyond the estimator's own bias."""
        return self.value - self.null

    def __str__(self) -> str:
        return f"{self.value:.4f}   calibrated: {self.null:.4f}, 95 % below {self.high:.4f}   p {self.p:.3f}"


def draws(samples: int) -> int:
    """How many draws under the null there is time for."""
    return max(min(RESAMPLES, BUDGET // samples), FEWEST)


__all__ = ["SURE", "Measure", "draws"]
