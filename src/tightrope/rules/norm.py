"""Normalisers: the components of what they average over are deleted, the rest is divided by its spread.

One rule for all. A normaliser averages over a set R of positions: batch norm over samples and sites, layer norm over
channels, instance norm over sites. A variance component that takes n independent values inside R keeps the fraction
1 - 1/n of itself; with n = 1 it is gone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tightrope.roles import Axes, Axis, Role
from tightrope.rules.broadcast import reduced
from tightrope.rules.expectation import product
from tightrope.rules.lags import mean_factor
from tightrope.rules.registry import Call, Gradients, rule
from tightrope.rules.state import DTYPE, State

_PARTS = {
    "constant": (Role.CHANNEL,),
    "sample": (Role.CHANNEL, Role.SAMPLE),
    "site": (Role.CHANNEL, Role.SITE),
    "residual": (Role.CHANNEL, Role.SAMPLE, Role.SITE),
}
"""Roles of the axes along which each component takes independent values."""


@dataclass(frozen=True)
class Pool:
    """The set of positions that share one statistic.

    Attributes:
        dims: dimensions of the state that are averaged over.
        counts: number of positions by role.
        eps: added to the variance.
        centred: whether the mean is subtracted (RMS norm does not).
    """

    dims: tuple[int, ...]
    counts: dict[Role, int]
    eps: float
    centred: bool = True

    def independent(self, name: str) -> int:
        """Number of independent values that a component takes inside the pool."""
        return math.prod(self.counts.get(role, 1) for role in _PARTS[name])

    @property
    def size(self) -> int:
        """Number of positions."""
        return math.prod(self.counts.values())


def pool(axes: Axes, dims: Sequence[int], eps: float, *, centred: bool = True) -> Pool:
    """The pool made of whole dimensions of a tensor."""
    counts = dict.fromkeys(Role, 1)
    for dim in dims:
        for axis in axes.dims[dim]:
            counts[axis.role] *= axis.size
    return Pool(tuple(dims), counts, eps, centred)


def _average(field: Tensor, dims: Sequence[int]) -> Tensor:
    return field.mean(list(dims), keepdim=True) if dims else field


def normalise(x: State, over: Pool) -> tuple[State, Tensor]:
    """The law of (x - average) / sqrt(variance + eps), and the variance.

    Args:
        x: what is normalised.
        over: the positions that share a statistic.
    """
    mean = x.mean - _average(x.mean, over.dims) if over.centred else x.mean
    parts = _balanced(x, over)
    total = mean.square() + sum(parts.values(), torch.zeros((), dtype=DTYPE))
    variance = _average(total, over.dims)
    scale = (variance + over.eps).clamp(min=1e-300)
    parts = {name: part / scale for name, part in parts.items()}
    width = 0.0 if over.eps < 1e-3 else x.width
    return State(x.axes, mean / scale.sqrt(), **parts, width=width, lags=x.lags), variance


def back(gradient: State, out: State, variance: Tensor, over: Pool) -> State:
    """Gradient of the input of a normaliser, given that of its output before gain and bias.

    dx = (g - average(g) - y average(g y)) / sqrt(variance + eps): the average goes as in `normalise`, the projection on
    y by the covariances of g and y at every level, and 1 / variance fluctuates with as many degrees of freedom as
    the pool has independent values.
    """
    mean = gradient.mean - _average(gradient.mean, over.dims) if over.centred else gradient.mean
    left = State(gradient.axes, mean, **_balanced(gradient, over))
    energy = _average(left.second_moment, over.dims)
    along = _average(out.mean * mean, over.dims)
    lost = along.square() + _overlap(left, out, over)
    kept = (1 - (lost / energy.clamp(min=1e-300))).clamp(0, 1)
    spread = 1 / (variance + over.eps).clamp(min=1e-300) * _inverse(out, over)
    mean = mean - along * out.mean
    held = (energy * kept - _average(mean.square(), over.dims)).clamp(min=0)
    random = _average(left.variance, over.dims)
    factor = torch.where(random > 0, held / random.clamp(min=1e-300), torch.zeros_like(held))
    parts = {name: getattr(left, name) * factor * spread for name in _PARTS}
    if over.centred and over.counts[Role.SAMPLE] == over.size > 1:
        # It sums to zero over the batch: every two elements share minus the variance of their average.
        left_over = {name: 1 - 1 / over.independent(name) for name in parts}
        parts = {n: part / left_over[n] if left_over[n] > 0 else part * 0 for n, part in parts.items()}
        parts["constant"] = -sum((p / over.independent(n) for n, p in parts.items()), torch.zeros((), dtype=DTYPE))
    return State(gradient.axes, mean * spread.sqrt(), **parts, width=gradient.width, lags=gradient.lags)


def _balanced(x: State, over: Pool) -> dict[str, Any]:
    """Components of x less its average. Of what is centred within a channel the sum is zero, so that any two positions
    are slightly negatively correlated: Cov(x - average, x' - average) = Cov(x, x') - Var(average). Sums over the pool
    (gradients of weights and biases) need that, however small it is.
    """
    if not over.centred or over.counts[Role.CHANNEL] > 1 or over.counts[Role.SITE] == 1:
        return {name: getattr(x, name) * (1 - 1 / over.independent(name) if over.centred else 1.0) for name in _PARTS}
    n, s = over.counts[Role.SAMPLE], over.counts[Role.SITE]
    alike: Tensor | float = 1.0
    if x.lags is not None and len(x.shape) == 4:
        alike = mean_factor(x.lags, x.shape[2:]).reshape(1, -1, 1, 1)
    kept = {"site": x.site, "residual": x.residual}
    site, residual = _average(x.site, over.dims) / s, _average(x.residual, over.dims) * alike / (n * s)
    if n == 1:
        return {"constant": -site, "sample": -residual, **kept}
    return {"constant": -_average(x.sample, over.dims) / n - site - residual, "sample": x.sample, **kept}


def _overlap(g: State, y: State, over: Pool) -> Tensor:
    """Var of average(g y) over the pool: the sum over pairs of positions, each correlated at its level."""
    n, s, size = over.counts[Role.SAMPLE], over.counts[Role.SITE], over.size

    def pair(*names: str) -> Tensor:
        a = sum((getattr(g, name) for name in names), g.mean.square())
        b = sum((getattr(y, name) for name in names), y.mean.square())
        return _average(a * b - g.mean.square() * y.mean.square(), over.dims)

    own = pair("constant", "sample", "site", "residual")
    near = pair("constant", "sample") * (s - 1) + pair("constant", "site") * (n - 1)
    return (own + near + pair("constant") * (n - 1) * (s - 1)) / size


def _inverse(y: State, over: Pool) -> Tensor:
    """E[1 / v] E[v] for the variance v of finitely many values, with the kurtosis of a Gaussian mixture."""
    n, s, size = over.counts[Role.SAMPLE], over.counts[Role.SITE], over.size
    total = _average(y.second_moment, over.dims).clamp(min=1e-300)

    def pair(*names: str) -> Tensor:
        shared = sum((getattr(y, name) for name in names), torch.zeros((), dtype=DTYPE))
        return _average(2 * shared.square() + 4 * shared * y.mean.square(), over.dims) / (2 * total.square())

    if n > 1 and over.counts[Role.CHANNEL] == 1:
        return _from_freedom(_shares(y, over, total))
    own = pair("constant", "sample", "site", "residual")
    near = pair("constant", "sample") * (s - 1) + pair("constant", "site") * (n - 1)
    return _from_freedom((own + near + pair("constant") * (n - 1) * (s - 1)) / size)


def _shares(y: State, over: Pool, total: Tensor) -> Tensor:
    """Half the relative variance of a channel's variance over a batch: what all samples share at a site is the same in
    each batch, and does not fluctuate but adds to what the rest fluctuates about.
    """
    s = over.counts[Role.SITE]
    fixed = _average(y.mean.square() + y.site.clamp(min=0) * (1 - 1 / s), over.dims)
    shared = _average(y.sample.clamp(min=0), over.dims)
    moving = (total - fixed).clamp(min=0)
    own = moving.square() + 2 * moving * fixed
    if y.lags is not None and len(y.shape) == 4:
        residual = (moving - shared).clamp(min=0)
        own = own + residual.square() * (mean_factor(y.lags.square(), y.shape[2:]).reshape(1, -1, 1, 1) - 1)
    return (own + shared.square() * (s - 1)) / (over.size * total.square())


def _from_freedom(share: Tensor) -> Tensor:
    """E[1 / v] E[v] of a variance v with relative variance 2 * share, as that of a chi-squared law."""
    share = share.clamp(max=0.5)
    freedom = (1 / share.clamp(min=1e-12) - 1).clamp(min=2.5)
    return torch.where(freedom > 1e6, torch.ones_like(freedom), freedom / (freedom - 2).clamp(min=0.5))


# -- the operations ------------------------------------------------------------------------------


@rule("batch_norm")
def batch_norm(call: Call) -> State:
    """Batch statistics over samples and sites in training; running statistics, an affine map, otherwise."""
    x = call.input
    if not _trains(call):
        return _affine(call, _running(call, x), (3, "weight"), (4, "bias"))
    dims = [d for d in range(len(x.axes.dims)) if d != 1]
    over = pool(x.axes, dims, float(call.argument(7, "eps", 1e-5)))
    return _normalised(call, x, over, (3, "weight"), (4, "bias"))


@batch_norm.gradient
def _(call: Call, upstream: State) -> Gradients:
    if _trains(call):
        return _gradients(call, upstream, (3, "weight"), (4, "bias"))
    variance = call.state(2, "running_var")
    number = call.id(0, "input")
    assert variance is not None and number is not None
    inner, found = _affine_gradients(call, upstream, _running(call, call.input), (3, "weight"), (4, "bias"))
    scale = 1 / (_column(variance, call).mean + float(call.argument(7, "eps", 1e-5))).sqrt()
    return {number: inner.scaled(scale), **found}


def _trains(call: Call) -> bool:
    return bool(call.argument(5, "training", False)) or call.state(1, "running_mean") is None


def _running(call: Call, x: State) -> State:
    mean, variance = call.state(1, "running_mean"), call.state(2, "running_var")
    assert mean is not None and variance is not None
    scale = 1 / (_column(variance, call).mean + float(call.argument(7, "eps", 1e-5))).sqrt()
    return replace(x, mean=x.mean - _column(mean, call).mean, latent=None, nodes=None).scaled(scale)


@rule("layer_norm", "rms_norm")
def layer_norm(call: Call) -> State:
    """Statistics over the last dimensions of each sample and site."""
    x = call.input
    count = len(call.argument(1, "normalized_shape"))
    rank = len(x.axes.dims)
    centred = call.entry.op == "layer_norm"
    eps = call.argument(4 if centred else 3, "eps", 1e-5 if centred else None)
    small = torch.finfo(call.tape.values[call.entry.outputs[0]].dtype).eps
    over = pool(x.axes, range(rank - count, rank), small if eps is None else float(eps), centred=centred)
    return _normalised(call, x, over, (2, "weight"), (3, "bias"))


@layer_norm.gradient
def _(call: Call, upstream: State) -> Gradients:
    return _gradients(call, upstream, (2, "weight"), (3, "bias"))


@rule("instance_norm")
def instance_norm(call: Call) -> State:
    """Statistics over the sites of each sample and channel."""
    x = call.input
    if call.argument(5, "use_input_stats", True) is False:
        raise NotImplementedError("instance_norm with running statistics")
    over = pool(x.axes, range(2, len(x.axes.dims)), float(call.argument(7, "eps", 1e-5)))
    return _normalised(call, x, over, (3, "weight"), (4, "bias"))


@instance_norm.gradient
def _(call: Call, upstream: State) -> Gradients:
    return _gradients(call, upstream, (3, "weight"), (4, "bias"))


@rule("group_norm")
def group_norm(call: Call) -> State:
    """Statistics over a group of channels and the sites of each sample."""
    x, groups = call.input, int(call.argument(1, "num_groups"))
    split = _split(x, groups)
    over = pool(split.axes, range(2, len(split.axes.dims)), float(call.argument(4, "eps", 1e-5)))
    made, variance = normalise(split, over)
    call.saved.update(pool=over, variance=variance, out=made)
    return _affine(call, _merge(made, call.axes[0]), (2, "weight"), (3, "bias"))


@group_norm.gradient
def _(call: Call, upstream: State) -> Gradients:
    number, groups = call.id(0, "input"), int(call.argument(1, "num_groups"))
    assert number is not None
    out = call.saved["out"]
    inner, found = _affine_gradients(call, upstream, _merge(out, call.axes[0]), (2, "weight"), (3, "bias"))
    made = back(_split(inner, groups), out, call.saved["variance"], call.saved["pool"])
    return {number: _merge(made, call.input.axes), **found}


def _split(x: State, groups: int) -> State:
    """Channels as (group, channel of the group)."""
    size = x.axes.shape[1] // groups
    lead, rest = x.axes.dims[:1], x.axes.dims[2:]
    between = (Axis(Role.CHANNEL, groups),) if groups > 1 else ()
    within = (Axis(Role.CHANNEL, size),) if size > 1 else ()
    axes = Axes((*lead, between, within, *rest))

    def move(field: Tensor) -> Tensor:
        if field.shape[1] == 1:
            return field.unsqueeze(1)
        return field.reshape(field.shape[0], groups, size, *field.shape[2:])

    return x.map(move, axes)


def _merge(x: State, axes: Axes) -> State:
    def move(field: Tensor) -> Tensor:
        if field.shape[1] == 1 and field.shape[2] == 1:
            return field.squeeze(1)
        full = field.expand(field.shape[0], x.shape[1], x.shape[2], *field.shape[3:])
        return full.reshape(field.shape[0], -1, *field.shape[3:])

    return x.map(move, axes)


# -- gain and bias -------------------------------------------------------------------------------

Place = tuple[int, str]


def _normalised(call: Call, x: State, over: Pool, gain: Place, bias: Place) -> State:
    if over.size == 1 and over.centred:
        raise NotImplementedError("a normaliser of one value")
    made, variance = normalise(x, over)
    call.saved.update(pool=over, variance=variance, out=made)
    return _affine(call, replace(made, axes=call.axes[0]), gain, bias)


def _gradients(call: Call, upstream: State, gain: Place, bias: Place) -> Gradients:
    number = call.id(0, "input")
    assert number is not None
    inner, found = _affine_gradients(call, upstream, call.saved["out"], gain, bias)
    made = back(inner, call.saved["out"], call.saved["variance"], call.saved["pool"])
    return {number: replace(made, axes=call.input.axes), **found}


def _column(parameter: State, call: Call) -> State:
    """A parameter with one value a channel, or with the shape of the last dimensions, beside the result."""
    rank = len(call.axes[0].dims)
    if call.entry.op in ("layer_norm", "rms_norm"):
        return parameter
    axes = Axes((parameter.axes.dims[0], *[()] * (rank - 2)))
    return parameter.map(lambda f: f.reshape(-1, *[1] * (rank - 2)), axes)


def _affine(call: Call, made: State, gain: Place, bias: Place) -> State:
    weight, shift = call.state(*gain), call.state(*bias)
    if weight is not None:
        made = replace(product(made, _column(weight, call)), axes=call.axes[0])
    if shift is not None:
        column = _column(shift, call)
        made = made.plus(column) if not column.exact else replace(made, mean=made.mean + column.mean)
    return made


def _affine_gradients(call: Call, upstream: State, out: State, gain: Place, bias: Place) -> tuple[State, Gradients]:
    """The gradient before gain and bias, and those of gain and bias."""
    upstream = replace(upstream, latent=None, nodes=None)
    found: Gradients = {}
    weight, shift = call.state(*gain), call.state(*bias)
    for place, state, factor in ((gain, weight, out), (bias, shift, None)):
        number = call.id(*place)
        if state is None or number is None:
            continue
        made = upstream if factor is None else product(upstream, factor)
        column = _column(state, call)
        total = reduced(replace(made, axes=call.axes[0]), column, call.axes[0])
        found[number] = total.map(lambda f, like=state: f.expand(f.shape).reshape(_shaped(f, like)), state.axes)
    inner = upstream if weight is None else product(upstream, _column(weight, call))
    return replace(inner, axes=call.axes[0]), found


def _shaped(field: Tensor, like: State) -> Any:
    return like.shape if field.numel() == math.prod(like.shape) else (1,) * len(like.shape)
