"""Losses over classes: cross-entropy, negative log-likelihood and the logarithm of a softmax.

The gradient with respect to the logits is (w p - t) / N with the target t, its weight w and the softmax p. Targets
are known beforehand; predictions and targets are independent, as they are before training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tightrope.law import COMPONENTS
from tightrope.roles import Axes, Role
from tightrope.rules.expectation import product
from tightrope.rules.registry import Call, Gradients, rule
from tightrope.rules.softmax_law import Softmax, softmax_law
from tightrope.rules.state import DTYPE, State
from tightrope.rules.targets import Target, of_indices, of_probabilities


@rule("cross_entropy")
def cross_entropy(call: Call) -> State:
    """E[loss] = E[ln sum exp z] - E[z_y], over the real targets.

    Raises:
        NotImplementedError: the target's content is unknown.
    """
    logits = _classes_last(call.input)
    target = _target(call, logits)
    law = softmax_law(logits, target.draw)
    call.saved.update(law=law, target=target)
    mean = target.weight * law.partition - _picked(target.state.mean, logits.mean)
    return _reduced(call, mean, law.variance, target, logits.axes)


@cross_entropy.gradient
def _(call: Call, upstream: State) -> Gradients:
    number, target, law = call.id(0, "input"), call.saved["target"], call.saved["law"]
    assert number is not None
    made = _times_upstream(call, upstream, _logit_gradient(law, target), target)
    return {number: _classes_back(made, call.input)}


def _logit_gradient(law: Softmax, target: Target) -> State:
    """w p - t, before any reduction."""
    p, weight, square = law.probability, target.weight, target.square
    known, tied = target.state, target.cross - weight * target.state.mean
    alike = p.mean.shape[-1] == 1 < known.mean.shape[-1]
    if alike:
        known, tied = known.moved(), tied.mean(-1, keepdim=True)
    else:  # no map over positions and classes at once unless both sides have one
        coarse = [d for d, n in enumerate(known.mean.shape[:-1]) if n < weight.shape[d]]
        weight, square = (f.mean(coarse, keepdim=True) if coarse else f for f in (weight, square))
    parts = {name: getattr(p, name) * weight.square() for name in COMPONENTS}
    # Where the weight varies, it is the target's own: E[w p t] is not E[w p] E[t].
    rest = (square - weight.square()).clamp(min=0) * p.second_moment - 2 * p.mean * tied
    made = replace(p, mean=p.mean * weight, **parts).plus(known.scaled(-1.0))
    grown = ((made.variance + rest) / made.variance.clamp(min=1e-300)).clamp(min=0)
    return replace(made, **{name: getattr(made, name) * grown for name in COMPONENTS})


def _classes_last(x: State) -> State:
    dim = min(1, len(x.axes.dims) - 1)
    order = [d for d in range(len(x.axes.dims)) if d != dim] + [dim]
    moved = x.map(lambda f: f.permute(order), x.axes.permute(order))
    return replace(moved, covariance=x.covariance, amplitude=x.amplitude)


def _classes_back(gradient: State, like: State) -> State:
    dim = min(1, len(like.axes.dims) - 1)
    return gradient.map(lambda f: f.movedim(-1, dim), like.axes)


def _target(call: Call, logits: State) -> Target:
    """Raises: NotImplementedError: it depends on data or weights in a way that is not known."""
    ref = call.argument(1, "target")
    classes = logits.shape[-1]
    value = call.value(ref)
    if value.is_float:
        given = call.state(1, "target")
        assert given is not None
        return of_probabilities(call, given, logits.axes, classes)
    if value.content is None or value.content.is_meta:
        raise NotImplementedError(f"the target of {call.entry.op} is not known")
    return of_indices(call, value.content, logits.axes, classes)


def _picked(frequency: Tensor, score: Tensor) -> Tensor:
    """sum_c t_c z_c at each position; both may be averaged over positions."""
    lead = frequency.ndim - 1
    for d in range(lead):
        if frequency.shape[d] != score.shape[d]:
            frequency, score = frequency.mean(d, keepdim=True), score.mean(d, keepdim=True)
    return (frequency * score).sum(-1, keepdim=True)


def reduction(call: Call) -> str:
    """`mean`, `sum` or `none`, the deprecated flags included."""
    flags = [call.entry.kwargs.get(name) for name in ("size_average", "reduce")]
    if flags[1] is False:
        return "none"
    return "sum" if flags[0] is False else str(call.entry.kwargs.get("reduction", _positional(call)))


def _positional(call: Call) -> str:
    default = "mean"
    return next((x for x in call.entry.args[2:] if x in ("mean", "sum", "none", "batchmean")), default)


def _reduced(call: Call, mean: Tensor, levels: tuple[Tensor, ...], target: Target, axes: Axes) -> State:
    """The loss itself, from its law at each position."""
    a, site, sample, total = levels
    parts = [a, (sample - a).clamp(min=0), (site - a).clamp(min=0)]
    parts.append((total - sum(parts, torch.zeros((), dtype=DTYPE))).clamp(min=0))
    how = reduction(call)
    if how == "none":
        return State.from_fields(call.axes[0], (field.squeeze(-1) for field in (mean, *parts)))
    n, s = (Axes(axes.dims[:-1]).count(role) for role in (Role.SAMPLE, Role.SITE))
    scale = float(n * s) if how == "sum" else n * s / max(target.total, 1e-300)
    shared, alone = float(target.weight.mean()) ** 2, float(target.square.mean())
    spread = sum(float(p.mean()) / k for p, k in zip(parts[:3], (1, n, s), strict=True)) * shared
    spread += float(parts[3].mean()) / (n * s) * alone
    return State.of(call.axes[0], mean.mean() * scale, residual=spread * scale**2)


def _times_upstream(call: Call, upstream: State, gradient: State, target: Target) -> State:
    """The gradient of the reduced loss, times the gradient that reached it."""
    how = reduction(call)
    upstream = replace(upstream, latent=None, nodes=None, covariance=None, gain=None)
    if how == "none":
        return replace(product(gradient, upstream.map(lambda f: f.unsqueeze(-1), gradient.axes)), axes=gradient.axes)
    return scaled_by(upstream, gradient.scaled(_scale(call, target)))


def scaled_by(number: State, state: State) -> State:
    """A state times a scalar that may be random."""
    if number.exact:
        return state.scaled(float(number.mean))
    scalar = State.of(state.axes, float(number.mean), constant=float(number.variance))
    return replace(product(state, scalar), axes=state.axes)


# -- the logarithm of a softmax, and the likelihood of a class under it ---------------------------


@rule("log_softmax")
def log_softmax(call: Call) -> State:
    """ln p = z - ln sum exp z, along any dimension.

    Raises:
        NotImplementedError: the dimension is a sample's.
    """
    x, dim = call.input, _dimension(call)
    if x.axes.has(dim, Role.SAMPLE):
        raise NotImplementedError("log_softmax over samples")
    order = [d for d in range(len(x.axes.dims)) if d != dim] + [dim]
    logits = replace(
        x.map(lambda f: f.permute(order), x.axes.permute(order)), covariance=x.covariance, amplitude=x.amplitude
    )
    law = softmax_law(logits, lambda draws, sampled: None)
    call.saved["law"] = law
    partition = law.partition.movedim(-1, dim)
    held = None if x.covariance is None else _centred(x.covariance, law.probability.mean.reshape(-1))
    if held is not None:
        diagonal = held.diagonal().reshape([n if d == dim else 1 for d, n in enumerate(x.shape)])
        return replace(
            x,
            mean=x.mean - partition,
            sample=diagonal,
            residual=x.residual * 0,
            covariance=held,
            latent=None,
            nodes=None,
        )
    return replace(x, axes=call.axes[0], mean=x.mean - partition, latent=None, nodes=None, covariance=None)


def _centred(covariance: Tensor, p: Tensor) -> Tensor:
    """Covariance of z - sum_c p_c z_c: to first order, that of ln p."""
    share = torch.eye(len(p), dtype=DTYPE) - p.expand(len(covariance))[None, :]
    return share @ covariance @ share.T


@log_softmax.gradient
def _(call: Call, upstream: State) -> Gradients:
    number, dim = call.id(0, "input"), _dimension(call)
    assert number is not None
    p = call.saved["law"].probability.map(lambda f: f.movedim(-1, dim), call.axes[0])
    held = upstream.latent
    upstream = replace(upstream, latent=None, nodes=None, covariance=None, gain=None)
    if isinstance(held, _Likelihood) and dim == _class_dim(call):
        made = scaled_by(held.upstream, _logit_gradient(call.saved["law"], held.target).scaled(held.scale))
        return {number: _classes_back(made, call.input)}
    # A likelihood's gradient sums to the same number at each position; its classes are not independent.
    sums = upstream.mean.expand(*upstream.mean.shape[:dim], upstream.shape[dim], *upstream.mean.shape[dim + 1 :])
    total = sums.sum(dim, keepdim=True)
    spread: Tensor | float = 0.0
    if not all(entry.op in ("nll_loss", "kl_div", "gather") for entry in call.readers(call.entry.outputs[0])):
        spread = upstream.variance.expand(upstream.shape).sum(dim, keepdim=True)
    factor = State.of(call.axes[0], total, residual=spread)
    made = upstream.plus(product(p, factor).scaled(-1.0))
    return {number: replace(made, axes=call.input.axes)}


def _dimension(call: Call) -> int:
    rank = len(call.input.axes.dims)
    dim = call.argument(1, "dim")
    if dim is None:
        dim = 0 if rank in (0, 1, 3) else 1
    return int(dim) % rank


@rule("nll_loss")
def nll_loss(call: Call) -> State:
    """E[loss] = -E[x_y], over the real targets.

    Raises:
        NotImplementedError: the target's content is unknown.
    """
    x = _classes_last(call.input)
    target = _target(call, x)
    call.saved["target"] = target
    mean = -_picked(target.state.mean, x.mean)
    levels = [_picked(target.state.mean, part.expand(*part.shape[:-1], x.shape[-1])) for part in _levels(x)]
    return _reduced(call, mean, tuple(levels), target, x.axes)


def _levels(x: State) -> list[Tensor]:
    about = (x.mean - x.mean.mean(-1, keepdim=True)).square()
    a, site, sample, total = x.constant, x.constant + x.site, x.constant + x.sample, x.variance
    return [a, site, sample, total + about]


@nll_loss.gradient
def _(call: Call, upstream: State) -> Gradients:
    number, target = call.id(0, "input"), call.saved["target"]
    assert number is not None
    known = target.state.moved() if call.input.mean.shape[_class_dim(call)] == 1 else target.state
    made = _classes_back(_times_upstream(call, upstream, known.scaled(-1.0), target), call.input)
    if reduction(call) == "none":
        return {number: made}
    return {number: replace(made, latent=_Likelihood(target, _scale(call, target), upstream))}


@dataclass(frozen=True)
class _Likelihood:
    """Says of a gradient with respect to ln p that it is a likelihood's: its classes belong together."""

    target: Target
    scale: float
    upstream: State


def _scale(call: Call, target: Target) -> float:
    return 1.0 if reduction(call) == "sum" else 1.0 / max(target.total, 1e-300)


def _class_dim(call: Call) -> int:
    return min(1, len(call.input.axes.dims) - 1)
