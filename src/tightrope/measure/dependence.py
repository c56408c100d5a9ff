"""Whether labels depend on data at all: a permutation test that asks for no particular form of dependence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

WAVES = 256
"""Random waves that stand for a Gaussian kernel."""
SHUFFLES = 99
TOGETHER = 1 << 21
"""Numbers of labels that are multiplied at once."""
PLANTED = 0.5
"""Share of the labels that follow the data in the test's own trial."""


@dataclass(frozen=True)
class Dependence:
    """What a test of dependence found.

    Attributes:
        z: of the statistic against labels that are permuted inside their batches, in standard deviations.
        power: the same for labels of which a half was made to follow the data along directions drawn at random.
        samples: how many different ones there were.
    """

    z: float
    power: float
    samples: int


def dependence(data: Sequence[Tensor], labels: Sequence[Tensor]) -> Dependence | None:
    """Test whether labels depend on data: |sum_n phi(x_n) y_n^T|^2 for features phi that are linear and wavelike.

    The waves are random Fourier features of a Gaussian kernel, so that any smooth dependence shows (Rahimi and Recht,
    2007; Gretton et al., 2005). Of samples that come again the first counts.

    Args:
        data: rows of each batch.
        labels: as many rows of each batch.

    Returns:
        None where nothing varies.
    """
    x, y = torch.cat(list(data)).double(), torch.cat(list(labels)).double()
    batch = torch.cat([torch.full((len(rows),), i) for i, rows in enumerate(data)])
    fresh = _first_of_each(x)
    x, y, batch = x[fresh], y[fresh], batch[fresh]
    y = y - y.mean(0)
    if len(x) < 4 or float(y.square().sum()) <= 0 or not bool(torch.isfinite(x).all() & torch.isfinite(y).all()):
        return None
    generator = torch.Generator().manual_seed(0)
    phi = _features(x, generator)
    if phi is None:
        return None
    within = [(batch == i).nonzero().flatten() for i in batch.unique()]

    def shuffled() -> Tensor:
        order = torch.arange(len(x))
        for rows in within:
            order[rows] = rows[torch.randperm(len(rows), generator=generator)]
        return order

    chance = _sizes(phi, y, [shuffled() for _ in range(SHUFFLES)])
    spread = max(float(chance.std()), 1e-12 * float(chance.mean()))
    planted = y[shuffled()]
    chosen = (torch.rand(len(x), generator=generator) < PLANTED).nonzero().flatten()
    along = phi[chosen] @ torch.randn(phi.shape[1], generator=generator, dtype=phi.dtype)
    ranked = planted[chosen] @ torch.randn(y.shape[1], generator=generator, dtype=y.dtype)
    planted[chosen[along.argsort()]] = planted[chosen[ranked.argsort()]]
    seen, trial = ((float(size) - float(chance.mean())) / spread for size in _statistic(phi, torch.stack([y, planted])))
    return Dependence(seen, trial, len(x))


def _sizes(phi: Tensor, y: Tensor, orders: list[Tensor]) -> Tensor:
    """The statistic with labels in each of several orders, as many at once as memory allows."""
    together = max(1, TOGETHER // y.numel())
    parts = [orders[i : i + together] for i in range(0, len(orders), together)]
    return torch.cat([_statistic(phi, torch.stack([y[order] for order in part])) for part in parts])


def _statistic(phi: Tensor, y: Tensor) -> Tensor:
    """|sum_n phi(x_n) y_n^T|^2 of labels (set, sample, column): one number a set."""
    sums = phi.T @ y.transpose(0, 1).reshape(len(phi), -1)
    return sums.square().sum(0).reshape(len(y), -1).sum(1)


def _first_of_each(x: Tensor) -> Tensor:
    seen: dict[bytes, int] = {}
    for i, row in enumerate(x.numpy()):
        seen.setdefault(row.tobytes(), i)
    return torch.tensor(sorted(seen.values()))


def _features(x: Tensor, generator: torch.Generator) -> Tensor | None:
    """Centred linear features and waves, both of the same weight in all."""
    x = x - x.mean(0)
    spread = x.square().mean(0).sqrt()
    x = x[:, spread > 1e-9 * spread.max()] / spread[spread > 1e-9 * spread.max()]
    if x.shape[1] == 0:
        return None
    waves = torch.randn(x.shape[1], WAVES, generator=generator, dtype=x.dtype) / math.sqrt(x.shape[1])
    phase = 2 * math.pi * torch.rand(WAVES, generator=generator, dtype=x.dtype)
    wavy = torch.cos(x @ waves + phase)
    blocks = [x, wavy - wavy.mean(0)]
    return torch.cat([block / block.square().sum().sqrt() for block in blocks], 1)


__all__ = ["Dependence", "dependence"]
