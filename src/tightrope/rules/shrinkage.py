"""What few samples tell of the population behind them: moments less what chance has put into them."""

from __future__ import annotations

import torch
from torch import Tensor


def population(mean: Tensor, variance: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Moments of the population behind n samples, from those of the samples (biased variance).

    Their mean owes Var / n of its square to chance, and a map of variances 2 / (n + 1) of its own square. What is the
    same in all samples (a start token) owes nothing.

    Reference: James and Stein, Estimation with Quadratic Loss (1961).
    """
    variance = variance * n / (n - 1)
    varies = variance > 0
    if not bool(varies.any()):
        return mean, variance
    square, noise = float(mean[varies].square().mean()), float(variance[varies].mean()) / n
    keep = max(0.0, 1.0 - noise / square) if square > 0 else 0.0
    # Below a tenth of a standard deviation in all, a map of means is not worth its cost.
    factor = keep**0.5 if keep * square > 0.01 * noise * n else 0.0
    return torch.where(varies, mean * factor, mean), _evened(variance, varies, n)


def _evened(variance: Tensor, varies: Tensor, n: int) -> Tensor:
    """A map of variances of n samples each, less what chance spreads it."""
    level = variance[varies].mean()
    spread, chance = (variance[varies] - level).square().mean(), variance[varies].square().mean() * 2 / (n + 1)
    keep = (1 - chance / spread.clamp(min=1e-300)).clamp(min=0) if len(variance[varies]) > 1 else torch.ones(())
    return torch.where(varies, level + (variance - level) * keep.sqrt(), variance)


def shrunk(deviations: Tensor) -> Tensor:
    """Covariance of few rows of many channels, its off-diagonal shrunk by the part that sampling explains.

    Reference: Schaefer and Strimmer, A Shrinkage Approach to Large-Scale Covariance Matrix Estimation (2005).
    """
    n = deviations.shape[0]
    covariance = deviations.T @ deviations / n
    noise = ((deviations.square().T @ deviations.square()) / n - covariance.square()) / max(n - 1, 1)
    signal = covariance.square()
    off = 1.0 - torch.eye(len(covariance), dtype=covariance.dtype)
    total = float((signal * off).sum())
    keep = max(0.0, 1.0 - float((noise * off).sum()) / total) if total > 0 else 0.0
    return covariance * (keep * off + (1 - off))


__all__ = ["population", "shrunk"]
