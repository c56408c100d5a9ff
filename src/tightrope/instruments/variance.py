"""The law of total variance over members, and its entropy form, in float64 and without cancellation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

FEW = 16
"""Members below which their disagreement tells too little of its own spread: normal theory is the bound there."""


Z95 = 1.96
"""Two-sided 95 % point of the normal law."""


@dataclass(frozen=True, eq=False)
class Part:
    """One part of the uncertainty of every sample.

    Attributes:
        value: of each sample; in the units of the target squared, or nats.
        error: its standard error from the finite number of members; infinite from a single one.
        average, average_error: the mean over samples (and outputs), with the error that members shared by all samples
            leave.
    """

    value: Tensor
    error: Tensor
    average: float
    average_error: float

    @property
    def interval(self) -> tuple[Tensor, Tensor]:
        """Ends of the 95 % interval, symmetric in the logarithm, in which a variance is less skewed."""
        factor = torch.exp(torch.where(self.value > 0, Z95 * self.error / self.value, torch.zeros_like(self.value)))
        return self.value / factor, self.value * factor

    @classmethod
    def of(cls, value: Tensor, pseudo: Tensor, bound: Tensor | None = None) -> Part:
        """From an estimate, the members' pseudo-values (members, ...), and the least error that theory allows."""
        members = len(pseudo)
        means = pseudo.flatten(1).mean(1)
        if members == 1:
            return cls(value, torch.full_like(value, math.inf), float(value.mean()), math.inf)
        error, shared = pseudo.std(0) / math.sqrt(members), float(means.std()) / math.sqrt(members)
        if bound is not None and members < FEW:
            error, shared = torch.maximum(error, bound), max(shared, float(bound.mean()))
        return cls(value, error, float(value.mean()), shared)


@dataclass(frozen=True, eq=False)
class Parts:
    """Total = aleatoric (the mean over members of what each holds random) + epistemic (what they disagree about)."""

    total: Part
    aleatoric: Part
    epistemic: Part


def of_moments(means: Tensor, variances: Tensor) -> Parts:
    """Law of total variance: Var y = E[Var(y | member)] + Var E[y | member].

    The second term is the sample variance, unbiased for the population that members are drawn from, around a mean that
    is taken off first.

    Args:
        means, variances: of each member's predictive law, (members, ...), float64.
    """
    return _total(variances, *_spread(means))


def of_probabilities(log_p: Tensor) -> Parts:
    """The same of one-hot labels, summed over classes: E sum p (1 - p) and sum Var p.

    Args:
        log_p: log probabilities, (members, samples, classes), float64.
    """
    p = log_p.exp()
    spread, pseudo = _spread(p)
    return _total((p * (1 - p)).sum(-1), spread.sum(-1), pseudo.sum(-1))


def of_entropy(log_p: Tensor) -> Parts:
    """Entropy of the mean law = mean entropy of the members + mutual information of label and member, in nats.

    The mutual information is the mean Kullback-Leibler divergence of the members from their mean. M members show about
    (M - 1) / M of it; the jackknife takes that bias off. Its estimate is cut where the total would exceed log K.

    Args:
        log_p: log probabilities, (members, samples, classes), float64.

    References:
        Depeweg et al. (2018), Decomposition of uncertainty in Bayesian deep learning, ICML; Miller (1974), The
        jackknife, Biometrika 61.
    """
    members = len(log_p)
    own = torch.special.entr(log_p.exp()).sum(-1)
    mean = torch.logsumexp(log_p, 0) - math.log(members)
    weight = mean.exp()
    apart = (weight > 0) & (log_p != log_p[0]).any(0)
    off = torch.where(apart, torch.expm1(log_p - mean), torch.zeros_like(log_p))
    distance = (weight * _bregman(off)).sum(-1)
    shown = distance.mean(0)
    if members == 1:
        pseudo = shown[None]
    else:
        moved = (weight * _bregman(-off / (members - 1))).sum(-1)
        left = (distance.sum(0) - distance) / (members - 1) - moved  # what the others show without one
        pseudo = members * shown - (members - 1) * left
    most = (math.log(log_p.shape[-1]) - own.mean(0)).clamp(min=0)
    return _total(own, torch.minimum(pseudo.mean(0), most), pseudo)


def _spread(x: Tensor) -> tuple[Tensor, Tensor]:
    """Sample variance of members about their mean, and its pseudo-values."""
    members, off = len(x), x - x[0]  # equal members are then equal to their mean, too
    off = off - off.mean(0)
    if members == 1:
        return torch.zeros_like(off[0]), torch.zeros_like(off)
    square = off.square()
    variance = square.sum(0) / (members - 1)
    if members == 2:
        return variance, variance.expand_as(square)
    left = ((members - 1) * variance - members / (members - 1) * square) / (members - 2)
    return variance, members * variance - (members - 1) * left


def _total(own: Tensor, spread: Tensor, pseudo: Tensor) -> Parts:
    """The three parts; of few members the error of the spread is at least what normal ones have."""
    members = len(own)
    aleatoric = Part.of(own.mean(0), own)
    if members == 1:
        return Parts(Part.of(own[0], own), aleatoric, Part.of(spread, pseudo))
    # Var s^2 = 2 sigma^4 / (M - 1) in one direction; several directions that share a trace vary less
    bound = spread * math.sqrt(2 / (members - 1))
    total = Part.of(own.mean(0) + spread, own + pseudo, torch.hypot(aleatoric.error, bound))
    return Parts(total, aleatoric, Part.of(spread, pseudo, bound))


def _bregman(d: Tensor) -> Tensor:
    """(1 + d) log(1 + d) - d, which is never negative; d >= -1."""
    d = d.clamp(min=-1.0)
    small = d.square() * (0.5 - d / 6 + d.square() / 12)
    return torch.where(d.abs() < 1e-4, small, torch.special.xlog1py(1 + d, d) - d)


__all__ = ["FEW", "Part", "Parts", "of_entropy", "of_moments", "of_probabilities"]
