"""Positive variables: averages of squares, norms, what a root or a logarithm is taken of.

A Gaussian of the same two moments reaches down to zero, where 1 / x and its derivatives have no bounds. A Gamma law
does not; of an average of squares of equal Gaussians it is the exact one.
"""

from __future__ import annotations

import torch
from torch import Tensor

NARROW = 200.0
"""Shape from which the closed form alone is exact to 1e-4 at all nodes."""
STEPS = 8


def quantiles(mean: Tensor, std: Tensor, xi: Tensor) -> Tensor:
    """The Gamma variable of this mean and standard deviation that is as likely to be exceeded as a normal xi.

    The upper half by Wilson and Hilferty's cube, the lower, where the cube ends, by Newton's method on ln P(shape, x).

    Args:
        mean, std: positive, of one shape.
        xi: standard normal values, one dimension more (the last).

    References:
        Wilson and Hilferty, The Distribution of Chi-Square (1931).
    """
    shape = (mean / std.clamp(min=1e-12 * mean)).square().unsqueeze(-1)
    spread = 1 / (9 * shape)
    cube = (1 - spread + xi * spread.sqrt()).clamp(min=1e-3) ** 3
    below = (xi < 0) & (shape < NARROW)
    if bool(below.any()):
        cube = torch.where(below, _lower(shape, xi, cube), cube)
    return mean.unsqueeze(-1) * cube


def _lower(shape: Tensor, xi: Tensor, start: Tensor) -> Tensor:
    """The quantile over the mean where xi < 0."""
    shape, xi, start = torch.broadcast_tensors(shape.clamp(max=NARROW), xi.clamp(max=0.0), start)
    target = torch.special.log_ndtr(xi)
    small = (target + torch.lgamma(shape + 1)) / shape  # P(a, x) = x^a / Gamma(a + 1) near zero
    where = torch.maximum(small, start.log() + shape.log())
    for _ in range(STEPS):
        x = where.exp()
        chance = torch.special.gammainc(shape, x).clamp(min=1e-300)
        slope = (shape * where - x - torch.lgamma(shape)).exp() / chance
        where = where - (chance.log() - target) / slope.clamp(min=1e-3)
    return where.exp() / shape


__all__ = ["quantiles"]
