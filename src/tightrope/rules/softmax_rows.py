"""Exact moments of the softmax weights of a row of finitely many Gaussian scores, by one integral.

For scores s_j independent N(m_j, v) and Z = sum_j e^s_j, 1/Z = int exp(-t Z) dt and 1/Z^2 = int t exp(-t Z) dt make
products of one-score expectations out of

    E sum_j A_j^2    = int sum_j E[e^2s_j exp(-t e^s_j)] prod_{k != j} E exp(-t e^s_k) t dt
    E sum_j A_j s_j  = int sum_j E[s_j e^s_j exp(-t e^s_j)] prod_{k != j} E exp(-t e^s_k) dt
    E ln Z           = int (exp(-t) - prod_k E exp(-t e^s_k)) dt / t   (Frullani)

Means are rounded to a grid of ln t, so that a row is the number of its scores at each level: neither time nor memory
grows with its length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from tightrope.rules.expectation import legendre
from tightrope.rules.state import DTYPE

STEP = 1 / 16
"""Spacing of the levels of mean scores and of the integrals' grid, in ln t."""
DEPTH = 40.0
"""Scores that lie this far below the largest get no weight: exp(-40) of it."""
REACH = 8.5
"""Standard deviations of a Gaussian that are integrated over."""


@dataclass(frozen=True)
class RowMoments:
    """Moments of the weights of rows, each of shape (row,).

    Attributes:
        participation: E sum_j A_j^2, one over the number of keys that a row attends to.
        entropy: E[-sum_j A_j ln A_j], in nats.
    """

    participation: Tensor
    entropy: Tensor


def levels(means: Tensor) -> Tensor:
    """How many scores of each row lie how many steps below the row's largest mean.

    Args:
        means: (row, key), -inf where masked.

    Returns:
        (row, level) counts.
    """
    top = means.amax(-1, keepdim=True)
    below = torch.nan_to_num(top - means, nan=math.inf)
    inside = below < DEPTH
    at = torch.where(inside, (below / STEP).round(), torch.zeros_like(below)).long()
    counts = torch.zeros(means.shape[0], int(at.max()) + 1, dtype=DTYPE)
    return counts.scatter_add_(1, at, inside.to(DTYPE))


def row_moments(counts: Tensor, std: float) -> RowMoments:
    """Moments of softmax(s) where a row's scores scatter by `std` about means at the given levels.

    Args:
        counts: (row, level) as from `levels`; counts may be fractions.
        std: of each score about its mean.
    """
    counts = counts.to(DTYPE)
    steps = torch.arange(counts.shape[1], dtype=DTYPE)
    if std < 1e-3:  # no randomness that matters: the weights are what they are
        weight = torch.exp(-STEP * steps)
        whole = (counts * weight).sum(-1, keepdim=True)
        entropy = whole.log().squeeze(-1) + (counts * weight * STEP * steps).sum(-1) / whole.squeeze(-1)
        return RowMoments((counts * weight.square()).sum(-1) / whole.squeeze(-1).square(), entropy)
    low = -math.ceil((math.log(float(counts.sum(-1).max())) + REACH * std + 12.0) / STEP)
    high = math.ceil((REACH * std + 5.0) / STEP)
    table = _table(low - counts.shape[1] + 1, high, round(std, 12))
    windows = table.unfold(1, counts.shape[1], 1).flip(-1)  # (function, grid, level)
    grid = torch.arange(low, high + 1, dtype=DTYPE) * STEP
    left = torch.exp(counts @ windows[0].T)
    pair = counts @ windows[1].T
    score = counts @ windows[2].T - (counts * steps * STEP) @ windows[3].T
    partition = (torch.exp(-torch.exp(grid)) - left).sum(-1) * STEP
    participation, along = ((left * f).sum(-1) * STEP for f in (pair, score))
    lengths = counts.sum(-1)
    smallest = 1 / lengths.clamp(min=1.0)
    entropy = torch.minimum((partition - along).clamp(min=0), lengths.clamp(min=1.0).log())
    return RowMoments(torch.maximum(participation, smallest).clamp(max=1.0), entropy)


@lru_cache(maxsize=64)
def _table(low: int, high: int, std: float) -> Tensor:
    """Functions of x = ln t on a grid, (function, grid), for z standard normal and y = e^(x + std z).

    ln E e^-y, and E[y^2 e^-y], E[std z y e^-y], E[y e^-y], each over E e^-y.
    """
    nodes, weights = legendre(64 if std < 2 else 96 if std < 3 else 256 if std < 5 else 768)
    weights = weights * torch.exp(-(REACH * nodes).square() / 2)
    weights = weights / weights.sum()
    z = std * REACH * nodes
    # beyond e^7 nothing is left of e^-y, and y itself would overflow for scores that scatter by 40 or more
    y = torch.exp((torch.arange(low, high + 1, dtype=DTYPE).unsqueeze(1) * STEP + z).clamp(max=7.0))
    faded = torch.exp(-y)
    alone = (faded @ weights).clamp(min=1e-300)
    lost = -torch.expm1(-y) @ weights
    log = torch.where(lost < 0.5, torch.log1p(-lost.clamp(max=0.5)), alone.log())
    first = y * faded
    return torch.stack([log, (y * first) @ weights / alone, (first * z) @ weights / alone, first @ weights / alone])


__all__ = ["RowMoments", "levels", "row_moments"]
