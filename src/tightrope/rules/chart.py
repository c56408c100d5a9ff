"""Functions of the mean and std over a whole map of laws, from their values at a few points.

A Gaussian expectation E f(m + s xi) is smooth in m / s and in ln s, whatever f is. Where a map has many more elements
than that takes points, expectations are evaluated at Chebyshev points of the rectangle that holds most (m / s, ln s),
and interpolated: barycentric Lagrange interpolation converges faster than any power.

Reference: Trefethen, Approximation Theory and Approximation Practice (2013).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NONE, SMALL = 1e-6, 1e-3
"""Variation, in standard deviations, below which one point, or two, leave an error of 1e-6."""
LEAST, PER_MEAN, PER_SCALE = 4, 2.0, 4.0
"""Points in each direction; and further ones for each unit of the mean over std, and of ln std.
Kinked and steep functions are then off by at most 1e-5."""
SAVING = 4
"""Elements a point has to stand for."""
LEAST_BULK = 1000
"""Elements from which on the outermost ones are looked for."""
EXACT, MOST = 1 << 22, 1 << 26
"""Weights that are held in double precision, and at all: a quarter of a GiB."""


@dataclass(frozen=True)
class Chart:
    """Points that stand for the laws of a map: Chebyshev points for most elements, and strays for themselves.

    Attributes:
        mean, std: at the points, (Chebyshev points + strays,).
        shape: of the map.
        weights: what each Chebyshev point counts for each element, (elements, Chebyshev points).
        strays: elements that are points of their own, (strays,).
    """

    mean: Tensor
    std: Tensor
    shape: tuple[int, ...]
    weights: Tensor
    strays: Tensor

    def fill(self, values: Tensor) -> Tensor:
        """Values at the points, (points, ...), interpolated to the map: (*shape, ...)."""
        rest = tuple(values.shape[1:])
        table = values.expand(len(self.mean), *rest).reshape(len(self.mean), -1)
        regular = self.weights.shape[1]
        made = (self.weights @ table[:regular].to(self.weights.dtype)).to(values.dtype)
        if len(self.strays):
            made[self.strays] = table[regular:]
        return made.reshape(*self.shape, *rest)


def chart(mean: Tensor, std: Tensor) -> Chart | None:
    """Points for a map of laws; None where the map has too few elements, or its laws differ too much.

    Args:
        mean, std: of the same shape, std > 0.
    """
    count = mean.numel()
    if count < 2 * SAVING or not bool((torch.isfinite(mean) & torch.isfinite(std) & (std > 0)).all()):
        return None
    height, scale = (mean / std).reshape(-1), std.reshape(-1).log()
    inside = (_bulk(height) & _bulk(scale)) if count > LEAST_BULK else torch.ones_like(height, dtype=torch.bool)
    strays = (~inside).nonzero()[:, 0]
    (low, high), (thin, wide) = ((float(edge) for edge in field[inside].aminmax()) for field in (height, scale))
    rows, columns = _count(high - low, PER_MEAN), _count(wide - thin, PER_SCALE)
    if rows * columns + len(strays) > count // SAVING or rows * columns > MOST // count:
        return None
    a, b = _points(low, high, rows), _points(thin, wide, columns)
    dtype = torch.float64 if rows * columns * count <= EXACT else torch.float32
    weights = _weights(height.clamp(low, high), a).to(dtype)
    if columns > 1:
        weights = (weights[:, :, None] * _weights(scale.clamp(thin, wide), b).to(dtype)[:, None]).flatten(1)
    spread = torch.exp(b).repeat(rows)
    means = torch.cat([a.repeat_interleave(columns) * spread, mean.reshape(-1)[strays]])
    return Chart(means, torch.cat([spread, std.reshape(-1)[strays]]), tuple(mean.shape), weights, strays)


def _bulk(x: Tensor) -> Tensor:
    """Which elements lie within, or not far from, the central 90 %."""
    edges = torch.tensor([0.05, 0.95], dtype=x.dtype)
    low, high = (float(edge) for edge in torch.quantile(x[:: max(len(x) // LEAST_BULK, 1)], edges))
    margin = 0.75 * (high - low) + NONE
    return (x >= low - margin) & (x <= high + margin)


def _count(span: float, each: float) -> int:
    if span < SMALL:
        return 1 if span < NONE else 2
    return LEAST + math.ceil(each * span)


def _points(low: float, high: float, count: int) -> Tensor:
    """Chebyshev points of the second kind between two edges."""
    if count == 1:
        return torch.tensor([(low + high) / 2], dtype=torch.float64)
    angle = torch.arange(count, dtype=torch.float64) * (math.pi / (count - 1))
    return (low + high) / 2 - (high - low) / 2 * torch.cos(angle)


def _weights(x: Tensor, points: Tensor) -> Tensor:
    """Barycentric weights of each point at each x, summing to 1."""
    count = len(points)
    if count == 1:
        return x.new_ones(len(x), 1)
    signs = (-1.0) ** torch.arange(count, dtype=x.dtype)
    signs[0] /= 2
    signs[-1] /= 2
    distance = x[:, None] - points
    made = signs / distance.masked_fill_(distance == 0, 1e-200)
    return made.div_(made.sum(1, keepdim=True))
