"""Sums of a rectified and a Gaussian tensor: the streams of residual nets that rectify behind each join.

Such a stream leans to one side, and block after block does so more: its law is the Gaussian's, passed through a
quantile function that is found by convolution. Mean and variance of the sum need none of that; what the next rectifier
makes of it does.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tightrope.roles import Role
from tightrope.rules.expectation import COUNTER, Latent, split_nodes
from tightrope.rules.state import DTYPE, State

ALIKE = 0.05
"""Variation of means and deviations between elements, in standard deviations of the sum, up to which one quantile
function serves all of them."""
GRID, SPAN = 512, 9.0
"""Points and half-width, in standard deviations, of the sum's distribution function."""


def convolved(total: State, left: State, right: State) -> State:
    """A sum with its quantile function, where one summand is a function of a Gaussian and the other is Gaussian.

    Args:
        total: the law of the sum.
        left, right: the independent summands.
    """
    one, other = (left, right) if isinstance(left.latent, Latent) else (right, left)
    if not isinstance(one.latent, Latent) or isinstance(other.latent, Latent) or one.nodes is None:
        return total
    if one.latent.scale is not None or total.axes.count(Role.SITE) == 1 or not _alike(total, one, other):
        return total
    values, weights = _middle(one.nodes), _middle(one.latent.weights)
    mean, std = float(total.mean.mean()), float(total.variance.mean()) ** 0.5
    spread = float(other.variance.mean()) ** 0.5
    t = mean + std * torch.linspace(-SPAN, SPAN, GRID, dtype=DTYPE)
    below = (torch.special.ndtr((t[:, None] - values - float(other.mean.mean())) / spread) * weights).sum(-1)
    probit = torch.special.ndtri(below.clamp(1e-15, 1 - 1e-15))
    rising = torch.cat([torch.ones(1, dtype=torch.bool), probit.diff() > 1e-9])
    probit, standard = probit[rising], (t[rising] - mean) / std
    if len(probit) < GRID // 8:
        return total
    edge = _at(torch.tensor([-mean / std], dtype=DTYPE), standard, probit).reshape([1] * total.mean.ndim)
    xi, weight = split_nodes(-edge, torch.ones_like(edge), (0.0,))
    variable = Latent(next(COUNTER), xi, weight, replace(total, latent=None, nodes=None))
    quantiles = _at(xi, probit, standard)
    nodes = total.mean.unsqueeze(-1) + total.variance.sqrt().unsqueeze(-1) * quantiles
    return replace(total, latent=variable, nodes=nodes)


def _alike(total: State, *summands: State) -> bool:
    scale = float(total.variance.mean())
    if not 0 < scale < float("inf"):
        return False
    fields = [field for state in summands for field in (state.mean, state.variance.clamp(min=0).sqrt())]
    return all(float((f - f.mean()).square().mean()) < ALIKE**2 * scale for f in fields) and all(
        float(state.variance.min()) > 0 for state in summands
    )


def _middle(nodes: Tensor) -> Tensor:
    """The nodes of one element."""
    flat = nodes.reshape(-1, nodes.shape[-1])
    return flat[len(flat) // 2]


def _at(x: Tensor, known: Tensor, values: Tensor) -> Tensor:
    """Linear interpolation, continued at the ends."""
    right = torch.searchsorted(known, x.contiguous()).clamp(1, len(known) - 1)
    part = (x - known[right - 1]) / (known[right] - known[right - 1])
    made: Tensor = values[right - 1] + part * (values[right] - values[right - 1])
    return made
