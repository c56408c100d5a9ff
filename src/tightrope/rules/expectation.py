"""Expectations of functions of Gaussian variables by quadrature, for whole maps of laws at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from tightrope.rules.state import DTYPE, State

SPAN = 8.5
"""Half-width of the quadrature in standard deviations; the Gaussian mass outside is 2e-17."""
PIECE_NODES = 32
"""Gauss-Legendre nodes on each piece between kinks: 1e-9 on a whole Gaussian, 1e-12 on half of one."""
HERMITE = 24
"""Terms of the Hermite series; what they leave out of the variance is given to the next power."""
COUNTER = itertools.count()


@lru_cache(maxsize=8)
def legendre(nodes: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on [-1, 1]."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    return torch.as_tensor(x, dtype=DTYPE), torch.as_tensor(w, dtype=DTYPE)


@dataclass(frozen=True)
class Latent:
    """A Gaussian variable z = mean + std * xi and the nodes on which functions of it are evaluated.

    Attributes:
        number: tells latent variables apart.
        xi: standard normal nodes, last dimension; broadcasts against the law's shape.
        weights: quadrature weights, of the same shape, summing to 1.
        base: the law of z.
    """

    number: int
    xi: Tensor
    weights: Tensor
    base: State = field(repr=False)

    @property
    def z(self) -> Tensor:
        """The variable's own values at the nodes."""
        return self.base.mean.unsqueeze(-1) + self.base.variance.clamp(min=0).sqrt().unsqueeze(-1) * self.xi

    def expect(self, values: Tensor) -> Tensor:
        """E of a function given by its values at the nodes."""
        return (values * self.weights).sum(-1)

    def state(self, values: Tensor) -> State:
        """The law of a function given by its values at the nodes.

        The covariance of f(z) and f(z') with correlation rho is sum_j h_j^2 rho^j over the Hermite
        coefficients h_j = E[f(mean + std xi) He_j(xi)] / sqrt(j!).
        """
        mean = self.expect(values)
        total = self.expect((values - mean.unsqueeze(-1)).square())
        shared = levels(self.base)
        variance = shared[-1]
        if all(bool((level == 0).all()) for level in shared[:-1]):
            parts = [torch.zeros_like(total)] * 3
        else:
            power = self._series(values)
            rest = (total - power.sum(-1)).clamp(min=0)
            parts = []
            for level in shared[:-1]:
                rho = torch.where(variance > 0, level / variance.clamp(min=1e-300), torch.zeros_like(level)).clamp(0, 1)
                degrees = torch.arange(1, HERMITE + 1, dtype=DTYPE)
                series = (power * rho.unsqueeze(-1) ** degrees).sum(-1) + rest * rho ** (HERMITE + 1)
                parts.append(torch.minimum(series, total))
        return from_levels(self.base, mean, (*parts, total))

    def _series(self, values: Tensor) -> Tensor:
        """h_j^2 for j = 1 ... HERMITE."""
        previous, current = torch.ones_like(self.xi), self.xi
        found = []
        for j in range(1, HERMITE + 1):
            found.append(self.expect(values * current).square())
            previous, current = current, (self.xi * current - math.sqrt(j) * previous) / math.sqrt(j + 1)
        return torch.stack(found, -1)


def latent(base: State, kinks: Sequence[float] = ()) -> Latent:
    """Quadrature nodes for functions of a variable with this law, split at the function's kinks."""
    mean, std = torch.broadcast_tensors(base.mean, base.variance.clamp(min=0).sqrt())
    safe = std.clamp(min=1e-300)
    edges = [torch.full_like(mean, -SPAN)]
    edges += [((kink - mean) / safe).clamp(-SPAN, SPAN) for kink in sorted(kinks)]
    edges.append(torch.full_like(mean, SPAN))
    x, w = legendre(PIECE_NODES if kinks else 2 * PIECE_NODES)
    nodes, weights = [], []
    for low, high in itertools.pairwise(edges):
        half, centre = ((high - low) / 2).unsqueeze(-1), ((high + low) / 2).unsqueeze(-1)
        xi = centre + half * x
        nodes.append(xi)
        weights.append(half * w * torch.exp(-xi.square() / 2))
    xi, weight = torch.cat(nodes, -1), torch.cat(weights, -1)
    return Latent(next(COUNTER), xi, weight / weight.sum(-1, keepdim=True), base)


def levels(state: State) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Covariance of two elements of one channel: of different samples and sites, of different samples at
    the same site, of the same sample at different sites, of the same element."""
    a = state.constant
    return a, a + state.site, a + state.sample, state.variance


def from_levels(like: State, mean: Tensor, found: tuple[Tensor, ...]) -> State:
    """The inverse of `levels`."""
    a, site, sample, total = found
    site, sample = (site - a).clamp(min=0), (sample - a).clamp(min=0)
    residual = (total - a - site - sample).clamp(min=0)
    return State(like.axes, mean, a, sample, site, residual, like.width)


def product(left: State, right: State) -> State:
    """The law of the elementwise product of two independent tensors."""
    mean = left.mean * right.mean
    both = mean.square()
    found = []
    for a, b in zip(levels(left), levels(right), strict=True):
        found.append((left.mean.square() + a) * (right.mean.square() + b) - both)
    made = from_levels(left if len(left.axes.dims) >= len(right.axes.dims) else right, mean, tuple(found))
    return State(made.axes, *made.fields, width=left.width + right.width)
