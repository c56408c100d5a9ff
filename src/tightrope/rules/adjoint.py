"""Gradients on their way back through functions of one Gaussian variable."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tightrope.rules.expectation import Latent, product
from tightrope.rules.state import State


@dataclass(frozen=True)
class Adjoint:
    """The way back from the end of a chain: derivatives at the nodes, times the gradient that reached its end."""

    variable: Latent
    upstream: State

    def state(self, nodes: Tensor) -> State:
        """The gradient whose derivative from the chain's end has these values at the nodes."""
        upstream = replace(self.upstream, latent=None, nodes=None)
        return replace(product(upstream, self.variable.state(nodes)), latent=self, nodes=nodes)


def joined(left: State, right: State) -> State:
    """The sum of two gradients of one value; ways back along one chain add up before they are squared."""
    for one, other in ((left, right), (right, left)):
        if one.exact and not bool(one.mean.any()):
            return other
    a, b = left.latent, right.latent
    if isinstance(a, Adjoint) and isinstance(b, Adjoint) and a.variable is b.variable and a.upstream is b.upstream:
        assert left.nodes is not None and right.nodes is not None
        return replace(a.state(left.nodes + right.nodes), axes=left.axes)
    total = left.plus(right)
    for one, other in ((left, right), (right, left)):
        if isinstance(one.latent, Adjoint) and not isinstance(other.latent, Adjoint) and one.nodes is not None:
            return _profiled(total, one, one.latent.variable, one.nodes)
    return total


def _profiled(total: State, one: State, variable: Latent, nodes: Tensor) -> State:
    """A sum of gradients of which one part depends on its value: the energies at each value add up."""
    energy, whole = float(one.second_moment.mean()), float(total.second_moment.mean())
    level = variable.weighted(nodes.square()).clamp(min=1e-300).unsqueeze(-1)
    if not 0 < energy <= whole < float("inf"):
        return total
    share = energy / whole
    profile = (share * nodes.square() / level + 1 - share).sqrt()
    plain = replace(total, latent=None, nodes=None)
    return replace(total, latent=Adjoint(variable, plain), nodes=torch.as_tensor(profile))
