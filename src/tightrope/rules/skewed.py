"""Sums of a rectified and a Gaussian tensor: the streams of residual nets that rectify behind each join.

Such a stream leans to one side, and block after block does so more: its law is the Gaussian's, passed through a
quantile function that is found by convolution. Mean and variance of the sum need none of that; what the next rectifier
makes of it does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tightrope.roles import Role
from tightrope.rules.adjoint import Adjoint
from tightrope.rules.expectation import COUNTER, Latent, split_nodes
from tightrope.rules.state import DTYPE, State

ALIKE = 0.05
"""Variation of means and deviations between elements, in standard deviations of the sum, up to which one quantile
function serves all of them."""
CONDITIONAL = 25
"""Values of the Gaussian summand at which the sum's slope is averaged."""
GRID, SPAN = 512, 9.0
"""Points and half-width, in standard deviations, of the sum's distribution function."""


@dataclass(frozen=True)
class Convolved:
    """A rectified summand beside a Gaussian one.

    Attributes:
        number: id of the rectified summand's value.
        one: its law, a function of a Gaussian.
        mean, spread: of the Gaussian summand.
        z: values of the sum at the nodes of its own variable, (nodes,).
    """

    number: int | None
    one: State
    mean: float
    spread: float
    z: Tensor

    def gradient(self, held: Adjoint, slopes: Tensor | None) -> State:
        """The rectified summand's gradient: where it is large the sum is positive, and passes the gradient on.

        Args:
            held: the way back from behind the sum.
            slopes: the sum's derivatives at the nodes of its own variable.
        """
        variable, nodes = self.one.latent, self.one.nodes
        assert isinstance(variable, Latent) and nodes is not None and slopes is not None
        z, order = self.z.sort()
        energy = _middle(slopes).square()[order]
        t = torch.linspace(-6, 6, CONDITIONAL, dtype=DTYPE)
        density = torch.exp(-t.square() / 2)
        at = (nodes.unsqueeze(-1) + self.mean + self.spread * t).clamp(float(z[0]), float(z[-1]))
        given = (_at(at, z, energy).clamp(min=0) * density).sum(-1) / density.sum()
        return Adjoint(variable, held.upstream).state(given.sqrt())


def convolved(
    total: State, left: tuple[int | None, State], right: tuple[int | None, State]
) -> tuple[State, Convolved | None]:
    """A sum with its quantile function, where one summand is a function of a Gaussian and the other is Gaussian.

    Args:
        total: the law of the sum.
        left, right: the independent summands, with their ids.
    """
    (number, one), (_, other) = (left, right) if isinstance(left[1].latent, Latent) else (right, left)
    if not isinstance(one.latent, Latent) or isinstance(other.latent, Latent) or one.nodes is None:
        return total, None
    if one.latent.scale is not None or total.axes.count(Role.SITE) == 1 or not _alike(total, one, other):
        return total, None
    values, weights = _middle(one.nodes), _middle(one.latent.weights)
    mean, std = float(total.mean.mean()), float(total.variance.mean()) ** 0.5
    centre, spread = float(other.mean.mean()), float(other.variance.mean()) ** 0.5
    t = mean + std * torch.linspace(-SPAN, SPAN, GRID, dtype=DTYPE)
    below = (torch.special.ndtr((t[:, None] - values - centre) / spread) * weights).sum(-1)
    probit = torch.special.ndtri(below.clamp(1e-15, 1 - 1e-15))
    rising = torch.cat([torch.ones(1, dtype=torch.bool), probit.diff() > 1e-9])
    probit, standard = probit[rising], (t[rising] - mean) / std
    if len(probit) < GRID // 8:
        return total, None
    edge = _at(torch.tensor([-mean / std], dtype=DTYPE), standard, probit).reshape([1] * total.mean.ndim)
    xi, weight = split_nodes(-edge, torch.ones_like(edge), (0.0,))
    variable = Latent(next(COUNTER), xi, weight, replace(total, latent=None, nodes=None))
    quantiles = _at(xi, probit, standard)
    nodes = total.mean.unsqueeze(-1) + total.variance.sqrt().unsqueeze(-1) * quantiles
    made = replace(total, latent=variable, nodes=nodes)
    return made, Convolved(number, one, centre, spread, mean + std * quantiles.reshape(-1))


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
