"""How far a batch's second moment lies from that of all samples: the part of a band that the drawn samples make.

A sample's energy is Q = |x - c|^2 over its sites and channels, c the mean over all elements. For Gaussian x about a
map m with covariance C

    Var Q = 2 tr C^2 + 4 (m - c)' C (m - c),

and ln(std) of n samples has a variance of Var Q / (4 n E[Q]^2). Where samples differ in amplitude, a batch of n holds
no louder ones than n draws have, and its second moment is typically below that of the population.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tightrope.roles import Role
from tightrope.rules.amplitude import ETA

if TYPE_CHECKING:
    from tightrope.rules.state import State

BATCHES = 256
"""Batches of amplitudes behind the law of a batch's mean energy: 4 % on its spread."""
EXTREME = 1e-70
"""Energies beyond which, either way, their squares are no numbers."""
MOST_SAMPLES = 256
"""Amplitudes in each; more samples scale as independent ones do."""


@lru_cache(maxsize=16)
def _scores(samples: int) -> tuple[Tensor, Tensor]:
    """Standard normal draws, (batches, samples), always the same: the node above each, and its share."""
    eta = torch.randn(BATCHES, samples, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    place = torch.searchsorted(ETA, eta).clamp(1, len(ETA) - 1)
    return place, ((eta - ETA[place - 1]) / (ETA[place] - ETA[place - 1])).clamp(0, 1)


def batch(level: Tensor, samples: int) -> tuple[float, float]:
    """ln of the mean energy of n samples relative to that of all: its mean and its variance.

    Args:
        level: ln(amplitude) at the nodes of `amplitude.ETA`.
        samples: n.
    """
    return _batch(tuple(level.tolist()), samples)


@lru_cache(maxsize=1024)
def _batch(level: tuple[float, ...], samples: int) -> tuple[float, float]:
    """`batch`; many tensors of a step have the amplitude of one that came before."""
    count = min(samples, MOST_SAMPLES)
    place, share = _scores(count)
    nodes = torch.tensor(level, dtype=torch.float64)
    drawn = 2 * torch.lerp(nodes[place - 1], nodes[place], share)
    logs = torch.logsumexp(drawn, 1) - math.log(count)
    everyone = torch.logsumexp(logs, 0) - math.log(len(logs))
    rest = count / samples  # what one batch of the most samples leaves to the mean of several
    return float(logs.mean() - everyone) * rest, float(logs.var()) * rest


def of_batch(state: State, centre: float, energy: float) -> tuple[float, float]:
    """What a batch's variance is to the population's, and the variance of ln(std) over draws of batch and channels.

    Args:
        state: of an activation, or of a gradient.
        centre: mean over all elements.
        energy: E[(x - centre)^2] over all elements.
    """
    samples = state.axes.count(Role.SAMPLE)
    if samples < 2 or energy <= 0 or not math.isfinite(energy) or not all(state.shape):
        return 1.0, 0.0
    if not EXTREME < energy < 1 / EXTREME:  # squares of energies would leave the range of numbers
        unit = energy**-0.5
        return of_batch(state.scaled(unit), centre * unit, 1.0)
    # Weights known by law: finitely many channels are drawn, and all samples see the same ones.
    drawn = (float(state.constant.clamp(min=0).mean()) / energy) ** 2 / (2 * max(state.axes.count(Role.CHANNEL), 1))
    scale = 4 * samples * (energy * math.prod(state.shape)) ** 2
    if state.amplitude is not None:
        typical, spread = batch(state.amplitude, samples)
        # An elementwise function has told its amplitude what its own channels add, a linear map has not.
        own = _gaussian(replace(state, covariance=None), centre) / scale if state.memory == 0 else 0.0
        return math.exp(typical), spread / 4 + own + drawn
    gaussian = _gaussian(state, centre) / scale
    if state.gain is None:
        return 1.0, gaussian + drawn
    typical, spread = batch(state.gain.clamp(min=1e-300).log() / 2, samples)
    return math.exp(typical), spread / 4 + gaussian + drawn


def _gaussian(state: State, centre: float) -> float:
    """Var Q of Gaussian samples."""
    count, mean = math.prod(state.shape), state.mean - centre
    if state.covariance is not None and len(state.covariance) == count:
        m = mean.expand(state.shape).reshape(-1)
        return max(2 * float(state.covariance.square().sum()) + 4 * float(m @ state.covariance @ m), 0.0)
    sites = max(state.axes.count(Role.SITE), 1)
    shared = (state.sample + state.constant.clamp(max=0)).clamp(min=0)
    own, others = shared + state.residual, (sites - 1) * shared
    square = (own.square() + others * shared).mean()
    return count * float(2 * square + 4 * (mean.square() * (own + others)).mean())


def coherent(width: float, step: float) -> float:
    """A relative variance to which each of many layers adds with the same sign: standard deviations add up.

    Args:
        width: relative variance of the second moment so far.
        step: standard deviation that joins.
    """
    return (math.sqrt(max(width, 0.0)) + step) ** 2
