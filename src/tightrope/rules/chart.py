"""Functions of (mean, std) over a whole map of laws, from their values at a few points.

A Gaussian expectation E f(m + s xi) is smooth in m on the scale of s, and smooth in ln s, whatever f is. Where a map
has many more elements than that takes points, expectations are evaluated at Chebyshev points of the rectangle that
holds all (mean, ln std), and interpolated: barycentric Lagrange interpolation converges faster than any power.

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
"""Points in each direction; and further ones for each standard deviation of the mean's range, and each unit of ln std.
Kinked and steep functions are then off by at most 5e-6."""
SAVING = 4
"""Elements a point has to stand for."""
CHUNK = 1 << 14


@dataclass(frozen=True)
class Chart:
    """Chebyshev points for the laws of a map.

    Attributes:
        mean, std: at the points, (points,).
        shape: of the map.
        along_mean, along_scale: interpolation weights of each element, (elements, points along the direction).
    """

    mean: Tensor
    std: Tensor
    shape: tuple[int, ...]
    along_mean: Tensor
    along_scale: Tensor

    def fill(self, values: Tensor) -> Tensor:
        """Values at the points, (points, ...), interpolated to the map: (*shape, ...)."""
        rest = tuple(values.shape[1:])
        rows, columns = self.along_mean.shape[1], self.along_scale.shape[1]
        table = values.expand(rows * columns, *rest).reshape(rows, -1)
        parts = []
        for first, second in zip(self.along_mean.split(CHUNK), self.along_scale.split(CHUNK), strict=True):
            made = (first @ table).reshape(len(first), columns, -1)
            parts.append(made[:, 0] if columns == 1 else torch.bmm(second[:, None], made)[:, 0])
        return torch.cat(parts).reshape(*self.shape, *rest)


def chart(mean: Tensor, std: Tensor) -> Chart | None:
    """Points for a map of laws; None where the map has too few elements, or its laws differ too much.

    Args:
        mean, std: of the same shape, std > 0.
    """
    if mean.numel() < 2 * SAVING:
        return None
    (low, high), (thin, wide) = ((float(edge) for edge in torch.aminmax(field)) for field in (mean, std))
    if not (math.isfinite(low) and math.isfinite(high) and 0 < thin <= wide < math.inf):
        return None
    rows, columns = _count((high - low) / thin, PER_MEAN), _count(math.log(wide / thin), PER_SCALE)
    if rows * columns * SAVING > mean.numel():
        return None
    m, s = _points(low, high, rows), _points(math.log(thin), math.log(wide), columns)
    return Chart(
        m.repeat_interleave(columns), torch.exp(s).repeat(rows), tuple(mean.shape), _weights(mean.reshape(-1), m),
        _weights(std.reshape(-1).log(), s),
    )  # fmt: skip


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
    hit = distance == 0
    made = signs / torch.where(hit, torch.ones_like(distance), distance)
    made = torch.where(hit.any(1, keepdim=True), hit.to(x.dtype), made)
    return made / made.sum(1, keepdim=True)
