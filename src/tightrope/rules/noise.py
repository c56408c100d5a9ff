"""Random masks and random tensors: dropout, stochastic depth, and what fresh tensors hold."""

from __future__ import annotations

from dataclasses import replace

from tightrope.roles import Role
from tightrope.rules.registry import Call, Gradients, rule
from tightrope.rules.state import State

FRESH = frozenset((
    "randn", "randn_like", "rand", "rand_like", "empty", "empty_like", "new_empty", "zeros", "zeros_like", "new_zeros",
    "ones", "ones_like", "new_ones", "full", "full_like", "new_full",
))  # fmt: skip
"""Operations whose result depends on no number that they are given a tensor of."""


@rule("dropout", "alpha_dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "feature_alpha_dropout")
def dropout(call: Call) -> State:
    """Inverted dropout keeps the mean; E[x^2] grows by 1 / (1 - p). Masks of whole channels are shared by all sites."""
    return _masked(call, call.input)


@dropout.gradient
def _(call: Call, upstream: State) -> Gradients:
    number = call.id(0, "input")
    assert number is not None
    return {number: _masked(call, upstream)}


def _masked(call: Call, state: State) -> State:
    """The law of the tensor times an independent mask of mean 1 and variance p / (1 - p)."""
    p = float(call.argument(1, "p", 0.5)) if call.argument(2, "training", True) else 0.0
    if p <= 0.0 or p >= 1.0:
        return replace(state.scaled(0.0) if p >= 1.0 else state, axes=state.axes)
    odds = p / (1 - p)
    plain = replace(state, latent=None, nodes=None, covariance=None)
    if call.entry.op in ("dropout", "alpha_dropout"):
        return replace(plain, residual=state.residual + odds * state.second_moment)
    together = state.mean.square() + state.constant + state.sample
    apart = state.site + state.residual
    return replace(plain, sample=state.sample + odds * together, residual=state.residual + odds * apart)


def fresh(call: Call, mean: float, variance: float) -> State:
    """A tensor of independent draws; without sites a draw is the sample's own."""
    axes = call.axes[0]
    sites = axes.count(Role.SITE) > 1
    part = {"residual" if sites else "sample": variance}
    return State.of(axes, mean, **part)


@rule("bernoulli")
def bernoulli(call: Call) -> State:
    """Zeros and ones: of probability p, or of the input's own value."""
    p = call.argument(1, "p", None)
    mean = float(p) if isinstance(p, (int, float)) else float(call.input.mean.mean())
    return fresh(call, mean, mean * (1 - mean))


@rule("randn", "randn_like")
def normal_noise(call: Call) -> State:
    """Standard normal draws."""
    return fresh(call, 0.0, 1.0)


@rule("normal")
def normal(call: Call) -> State:
    """Normal draws of a given mean and standard deviation."""
    tensor = call.entry.inplace
    mean = call.argument(1 if tensor else 0, "mean", 0.0)
    std = call.argument(2 if tensor else 1, "std", 1.0)
    if not isinstance(mean, (int, float)) or not isinstance(std, (int, float)):
        raise NotImplementedError("normal with tensors of means")
    return fresh(call, float(mean), float(std) ** 2)


@rule("rand", "rand_like", "uniform")
def uniform(call: Call) -> State:
    """Uniform draws, on [0, 1) unless told."""
    low, high = (
        (call.argument(1, "from", 0.0), call.argument(2, "to", 1.0)) if call.entry.op == "uniform" else (0.0, 1.0)
    )
    return fresh(call, (low + high) / 2, (high - low) ** 2 / 12)


@rule("zeros_like", "new_zeros", "zeros", "zero", "new_empty", "empty_like", "empty", trivial=True)
def zeros(call: Call) -> State:
    """Zeros; memory that is not filled yet counts as such until it is."""
    return State.of(call.axes[0], 0.0)


@rule("ones_like", "new_ones", "ones", trivial=True)
def ones(call: Call) -> State:
    """Ones."""
    return State.of(call.axes[0], 1.0)


@rule("full_like", "new_full", "full", "fill", trivial=True)
def filled(call: Call) -> State:
    """One number everywhere."""
    value = call.argument(2 if call.entry.op == "new_full" else 1, "value", call.entry.kwargs.get("fill_value"))
    if not isinstance(value, (int, float)):
        raise NotImplementedError(f"{call.entry.op} with a tensor")
    return State.of(call.axes[0], float(value))


def _nothing(call: Call, upstream: State) -> Gradients:
    """Random draws and constants pass no gradient on."""
    return {}


for _made in (bernoulli, normal_noise, normal, uniform, zeros, ones, filled):
    _made.gradient(_nothing)
