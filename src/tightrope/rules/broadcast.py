"""The gradient of an operand that was broadcast: sums over the samples, sites and channels that it lacks."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from tightrope.roles import Axes, Role
from tightrope.rules.state import State, state_shape


def reduced(gradient: State, target: State, axes: Axes) -> State:
    """The gradient of an operand that was broadcast: summed over the samples, sites and channels it lacks.

    Args:
        gradient: of the result, with the result's axes.
        target: the operand's state.
        axes: the result's axes.
    """
    lead = len(axes.dims) - len(target.axes.dims)
    missing = [i for i, size in enumerate(axes.shape) if i < lead or (target.axes.shape[i - lead] == 1 and size > 1)]
    if not missing:
        return replace(gradient, axes=target.axes)
    full = gradient.map(lambda f: f.expand(state_shape(axes)))
    return summed(full, axes, missing, target.axes)


def coherent(field: Tensor, sites: list[int]) -> Tensor:
    """Variance of a sum over sites that share what they hold, at amplitudes of their own: (sum of sqrt f)^2.

    A negative field is what deviations that sum to zero take away again.
    """
    if not sites:
        return field
    return field.sum(sites, keepdim=True).sign() * field.abs().sqrt().sum(sites, keepdim=True).square()


def summed(state: State, axes: Axes, over: list[int], target: Axes) -> State:
    """The law of a sum over whole dimensions (samples, sites or channels) of a tensor.

    A sum over m samples and s sites of a channel multiplies its mean by m s; of the components, what is shared adds
    up coherently (amplitudes before they are squared), what is not adds up in variance.
    """
    samples = 1
    for dim in over:
        samples *= math.prod(axis.size for axis in axes.dims[dim] if axis.role is Role.SAMPLE)
    sites = [d for d in over if any(axis.role is Role.SITE for axis in axes.dims[d])]
    rest = [d for d in over if d not in sites]
    mean, constant, sample, site, residual = (f.expand(state_shape(axes)) for f in state.fields)
    mean = mean.sum(over, keepdim=True) * samples

    def pooled(field: Tensor, shared_samples: bool, shared_sites: bool) -> Tensor:
        total = coherent(field, sites) if shared_sites else field.sum(sites, keepdim=True) if sites else field
        total = total.sum(rest, keepdim=True) if rest else total
        return total * (samples**2 if shared_samples else samples)

    total = State(
        axes, mean, pooled(constant, True, True), pooled(sample, False, True), pooled(site, True, False),
        pooled(residual, False, False), state.width,
    )  # fmt: skip
    gone = [d for d in over if d < len(axes.dims) - len(target.dims)]
    shape = [s for d, s in enumerate(total.mean.shape) if d not in gone]
    if not any(a.role is Role.SAMPLE for dim in target.dims for a in dim):
        total = replace(total, residual=total.residual + total.sample, sample=total.sample * 0)
    return total.map(lambda f: f.reshape(shape), target)
