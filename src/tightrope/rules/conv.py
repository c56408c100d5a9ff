"""Convolutions: every result is a weighted sum of the taps of its window, and of the channels of its group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tightrope.roles import Axes, Role
from tightrope.rules.lags import thinned
from tightrope.rules.linear import bias_state, kurtosis
from tightrope.rules.registry import Call, Gradients, rule
from tightrope.rules.sites import collapsed, divided_out
from tightrope.rules.state import DTYPE, State, state_shape
from tightrope.rules.taps import Classes, average, joint, links, per_class, resolve, sliding, spreading

MAP_LIMIT = 40_000
"""Largest number of elements for which a law is resolved over the sites of a feature map."""
NEGLIGIBLE = 1e-6
"""Share of E[x^2] below which a component is dropped: less than the error of any rule."""

_SLIDING = ("conv1d", "conv2d", "conv3d")
_SPREADING = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")


@dataclass(frozen=True)
class Window:
    """A linear map over windows, with weights (group, out, in, *taps).

    Attributes:
        weight: mean and variance of each weight, all with the layout above.
        forward: classes of the results, one per site dimension.
        links: number of taps from each input to each result, (result, input), one per site dimension.
        sites: number of results along each site dimension.
        run: the map itself with given weights, on an input that is resolved over its sites.
        stride: of the window.
        spreading: whether strides spread the input instead of thinning the output.
    """

    mean: Tensor
    variance: Tensor | None
    forward: tuple[Classes, ...]
    links: tuple[Tensor, ...]
    sites: tuple[int, ...]
    run: Any
    stride: tuple[int, ...]
    spreading: bool

    @property
    def known(self) -> bool:
        """Whether the weights are numbers, not laws."""
        return self.variance is None


@rule(*_SLIDING, *_SPREADING)
def conv(call: Call) -> State:
    """z = w * x + b over each window; taps in the zero padding contribute nothing.

    With known weights the mean goes through the weights, what is independent between taps through their squares, and
    what a sample's sites share through the square of their sum over taps. With random weights every second moment is
    multiplied by (taps inside) * (channels of the group) * Var(w). Ignoring the border costs a factor 1.7 in E[x^2]
    at the end of a VGG-16.
    """
    x, weight = call.input, call.state(1, "weight")
    assert weight is not None
    out = windowed(x, forward_window(call, weight), call.axes[0], resolved=not divided_out(call))
    bias = call.state(2, "bias")
    if bias is None:
        return out
    column = bias.map(lambda f: f.reshape(-1, *[1] * len(out_sites(call))))
    return out.plus(bias_state(column, out))


@conv.gradient
def _(call: Call, upstream: State) -> Gradients:
    x, weight, number = call.input, call.state(1, "weight"), call.id(0, "input")
    assert weight is not None and number is not None
    keep = any(f.shape[d] > 1 for f in x.fields[1:] for d in range(x.mean.ndim - len(out_sites(call)), x.mean.ndim))
    found: Gradients = {number: windowed(upstream, backward_window(call, weight), x.axes, resolved=keep)}
    parameter, bias = call.id(1, "weight"), call.id(2, "bias")
    if parameter is not None:
        found[parameter] = weight_gradient(call, x, upstream, weight)
    if bias is not None and bias in call.states:
        found[bias] = bias_gradient(call, upstream, call.states[bias])
    return found


# -- geometry ------------------------------------------------------------------------------------


def out_sites(call: Call) -> tuple[int, ...]:
    """Numbers of results along the site dimensions."""
    weight = call.state(1, "weight")
    assert weight is not None
    return call.axes[0].shape[2 - len(weight.shape) :]


def _many(value: Any, rank: int) -> tuple[int, ...]:
    found = tuple(int(v) for v in value) if isinstance(value, Sequence) else (int(value),)
    return found * (rank if len(found) == 1 else 1)


@dataclass(frozen=True)
class _Geometry:
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    kernel: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def _geometry(call: Call) -> _Geometry:
    weight = call.state(1, "weight")
    assert weight is not None
    rank = len(weight.shape) - 2
    turned = call.entry.op in _SPREADING
    kernel = weight.shape[2:]
    dilation = _many(call.argument(7 if turned else 5, "dilation", 1), rank)
    padding = call.argument(4, "padding", 0)
    if padding == "valid":
        padding = 0
    if padding == "same":
        padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    return _Geometry(
        _many(call.argument(3, "stride", 1), rank), _many(padding, rank), dilation, int(call.argument(6, "groups", 1)),
        kernel, call.input.axes.shape[-rank:], call.axes[0].shape[-rank:],
    )  # fmt: skip


def _tables(g: _Geometry, transpose: bool, inputs: Sequence[int], outputs: Sequence[int]) -> tuple[Classes, ...]:
    make = spreading if transpose else sliding
    return tuple(
        make(n, m, k, s, p, d)
        for n, m, k, s, p, d in zip(inputs, outputs, g.kernel, g.stride, g.padding, g.dilation, strict=True)
    )


def _links(g: _Geometry, transpose: bool, inputs: Sequence[int], outputs: Sequence[int]) -> tuple[Tensor, ...]:
    return tuple(
        links(m, n, k, s, p, d).T if transpose else links(n, m, k, s, p, d)
        for n, m, k, s, p, d in zip(inputs, outputs, g.kernel, g.stride, g.padding, g.dilation, strict=True)
    )


def _grouped(weight: Tensor, groups: int, inputs_first: bool) -> Tensor:
    """(group, out, in, *taps) from torch's layout, in which the first dimension holds the groups."""
    split = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    return split.transpose(1, 2) if inputs_first else split


def _weights(weight: State, groups: int, inputs_first: bool) -> tuple[Tensor, Tensor | None]:
    full = weight.mean.expand(weight.shape)
    if weight.exact:
        return _grouped(full, groups, inputs_first), None
    spread = weight.variance.expand(weight.shape)
    return _grouped(full, groups, inputs_first), _grouped(spread, groups, inputs_first)


def forward_window(call: Call, weight: State) -> Window:
    """The call's own map."""
    g, turned = _geometry(call), call.entry.op in _SPREADING
    mean, variance = _weights(weight, g.groups, turned)

    def run(x: Tensor, w: Tensor) -> Tensor:
        return _apply(call, x, _restored(w, turned))

    table, links = _tables(g, turned, g.inputs, g.outputs), _links(g, turned, g.inputs, g.outputs)
    return Window(mean, variance, table, links, g.outputs, run, g.stride, turned)


def backward_window(call: Call, weight: State) -> Window:
    """Its transpose, from the gradient of the result to that of the input."""
    g, turned = _geometry(call), call.entry.op in _SPREADING
    mean, variance = _weights(weight, g.groups, not turned)

    def run(gradient: Tensor, w: Tensor) -> Tensor:
        shape = (gradient.shape[0], w.shape[0] * w.shape[1], *g.inputs)
        with torch.enable_grad():
            x = torch.zeros(shape, dtype=gradient.dtype, requires_grad=True)
            return torch.autograd.grad(_apply(call, x, _restored(w, not turned)), x, gradient)[0]

    table, links = _tables(g, not turned, g.outputs, g.inputs), _links(g, not turned, g.outputs, g.inputs)
    return Window(mean, variance, table, links, g.inputs, run, g.stride, not turned)


def _restored(w: Tensor, inputs_first: bool) -> Tensor:
    w = w.transpose(1, 2) if inputs_first else w
    return w.reshape(w.shape[0] * w.shape[1], *w.shape[2:])


def _apply(call: Call, x: Tensor, w: Tensor) -> Tensor:
    function = getattr(F, call.entry.op)
    rest = list(call.entry.args[3:])
    kwargs = {k: v for k, v in call.entry.kwargs.items() if k not in ("input", "weight", "bias")}
    result = function(x, w, None, *rest, **kwargs)
    assert isinstance(result, Tensor)
    return result


# -- laws ----------------------------------------------------------------------------------------


def windowed(x: State, window: Window, axes: Axes, *, resolved: bool) -> State:
    """The law of a linear map over windows.

    Args:
        x: law of its input, channels in the dimension before the sites.
        window: the map.
        axes: axes of the result.
        resolved: whether a map over sites is wanted where one is affordable.
    """
    rank = len(window.sites)
    channels = window.mean.shape[0] * window.mean.shape[1] if window.known else 1
    size = channels * math.prod(window.sites)
    fits = resolved and size <= MAP_LIMIT
    sites = list(range(x.mean.ndim - rank, x.mean.ndim))
    full = any(f.shape[d] > 1 for f in x.fields for d in sites)
    if not window.known:
        x = _over_channels(x, rank)
    if full and not (fits and x.mean.expand(x.shape).numel() <= MAP_LIMIT):
        x, full = collapsed(x, sites), False
    source = _Fields(x, rank, window)
    made = _known(source, window, full, fits) if window.known else _random(source, window, full, fits)
    shape = state_shape(axes)
    out = State.from_fields(axes, (f.reshape(_fit(f, shape)) for f in made), width=x.width + source.spread())
    if x.lags is None or rank != 2 or not window.known or x.residual.shape[0] != 1 or out.residual[0, 0].numel() > 1:
        return out
    variance = x.residual.reshape(-1).expand(source.groups * source.inputs).reshape(source.groups, source.inputs)
    return replace(out, lags=thinned(variance, x.lags, window.mean, window.stride, window.spreading))


def _fit(field: Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Drop the lead dimension again where the tensor has none."""
    return tuple(field.shape[-len(shape) :]) if len(shape) < field.ndim else tuple(field.shape)


def _over_channels(x: State, rank: int) -> State:
    """With random weights only averages over channels count; the means' spread is `constant`."""
    channel = x.mean.ndim - rank - 1
    mean = x.mean.mean(channel, keepdim=True)
    spread = (x.mean - mean).square().mean(channel, keepdim=True)
    flat = x.map(lambda f: f.mean(channel, keepdim=True))
    return replace(flat, constant=flat.constant + spread)


class _Fields:
    """The input's fields as (lead, group, channel, *sites)."""

    def __init__(self, x: State, rank: int, window: Window) -> None:
        self.groups, self.inputs = window.mean.shape[0], window.mean.shape[2]
        self.rank, self.x = rank, x
        least = NEGLIGIBLE * float(x.second_moment.mean())
        fields = [x.mean, *(f if float(f.max()) > least else torch.zeros_like(f[:1]) for f in x.fields[1:])]
        self.mean, self.constant, self.sample, self.site, self.residual = (self._split(f, window.known) for f in fields)

    def _split(self, field: Tensor, channels: bool) -> Tensor:
        lead, sites = field.shape[: -self.rank - 1], field.shape[-self.rank :]
        count = self.groups * self.inputs if channels else 1
        field = field.expand(*field.shape[: -self.rank - 1], count, *sites)
        return field.reshape(math.prod(lead), self.groups if channels else 1, self.inputs if channels else 1, *sites)

    def spread(self) -> float:
        """Relative variance of the result's second moment over draws of the weights."""
        return max(float(kurtosis(self.x)) - 1, 0.0) / (self.inputs * 1.0)


def _known(x: _Fields, window: Window, full: bool, fits: bool) -> list[Tensor]:
    """Mean, constant, sample, site, residual for weights that are numbers."""
    square = window.mean.square()
    mean = _map(x.mean, window.mean, window) if full else _reduce(x.mean, window.mean, window)
    site = _map(x.site, square, window) if full else _reduce(x.site, square, window)
    residual = _map(x.residual, square, window) if full else _reduce(x.residual, square, window)
    constant, at_sites = _shared(x.constant, window, full or fits)
    sample, varied = _shared(x.sample, window, full or fits)
    shared = [constant, sample, at_sites, varied]
    own = [mean, site, residual]
    if full or fits:
        shared = [resolve(part, window.forward) for part in shared]
    if fits and not full:
        own = [resolve(part, window.forward) for part in own]
    parts = [own[0], shared[0], shared[1], own[1] + shared[2], own[2] + shared[3]]
    return [_flat(part) for part in parts] if full or fits else _averaged(parts, window)


def _flat(part: Tensor) -> Tensor:
    """(lead, group, out, *sites) to (lead, channel, *sites)."""
    return part.reshape(part.shape[0], -1, *part.shape[3:])


def _averaged(parts: list[Tensor], window: Window) -> list[Tensor]:
    """Without a map the mean's spread over classes counts as `site`."""
    flat = [average(part.expand(*part.shape[:3], *_classes(window)), window.forward) for part in parts]
    spread = average((parts[0] - flat[0].reshape(*flat[0].shape, *[1] * len(window.sites))).square(), window.forward)
    flat[3] = flat[3] + spread
    return [f.reshape(f.shape[0], -1, *[1] * len(window.sites)) for f in flat]


def _classes(window: Window) -> tuple[int, ...]:
    return tuple(len(dim.share) for dim in window.forward)


def _reduce(field: Tensor, weight: Tensor, window: Window) -> Tensor:
    """Sum over channels and taps of an input that is the same at all sites: one value a class."""
    if not bool((field != 0).any()):
        return field.new_zeros(()).expand(1, *weight.shape[:2], *_classes(window))
    flat = field.reshape(field.shape[:3])
    taps = torch.einsum("lgi,goit->lgot", flat, weight.flatten(3))
    return per_class(taps.reshape(*taps.shape[:3], *weight.shape[3:]), window.forward)


def _map(field: Tensor, weight: Tensor, window: Window) -> Tensor:
    """The same for an input that is resolved over its sites: the operation itself."""
    zero = field.new_zeros((1, *weight.shape[:2], *[1] * len(window.sites)))
    if not bool((field != 0).any()):
        return zero
    sites = tuple(s for s in field.shape[3:])
    if all(s == 1 for s in sites):
        return resolve(_reduce(field, weight, window), window.forward)
    image = field.reshape(field.shape[0], -1, *sites).float()
    made: Tensor = window.run(image, weight.float()).to(DTYPE)
    return made.reshape(made.shape[0], *weight.shape[:2], *made.shape[2:])


def _shared(field: Tensor, window: Window, resolved: bool) -> tuple[Tensor, Tensor]:
    """What all sites share adds up over taps before it is squared: (still shared, varying from site to site)."""
    ones = [1] * len(window.sites)
    zero = field.new_zeros((1, *window.mean.shape[:2], *ones))
    if not bool((field > 0).any()):
        return zero, zero
    flat = field.flatten(3).mean(-1).clamp(min=0)
    taps, share = joint(window.forward)
    sums = window.mean.flatten(3) @ taps
    common = torch.einsum("lgi,goi->lgo", flat, (sums @ share).square())
    total = torch.einsum("lgi,goi->lgo", flat, sums.square() @ share)
    if not resolved or len(share) == 1:
        common, total = (f.reshape(*f.shape, *ones) for f in (common, total))
        return common, (total - common).clamp(min=0)
    # Each class has its own amplitude; the share that is common to all sites is taken as the same everywhere.
    kept = torch.where(total > 0, common / total.clamp(min=1e-300), torch.zeros_like(total)).clamp(max=1)
    everywhere = torch.einsum("lgi,goit->lgot", flat, sums.square())
    everywhere = everywhere.reshape(*common.shape, *(len(dim.share) for dim in window.forward))
    kept = kept.reshape(*kept.shape, *ones)
    return everywhere * kept, everywhere * (1 - kept)


def _random(x: _Fields, window: Window, full: bool, fits: bool) -> list[Tensor]:
    """Mean and components for weights that are known by their law: E[z z'] = (taps inside) E[w^2] E[x x']."""
    assert window.variance is not None
    mean_w = float(window.mean.mean())
    variance_w = float(window.variance.mean()) + float(window.mean.var(unbiased=False))
    inputs = window.mean.shape[2]
    ones = torch.ones((1, 1, 1, *window.mean.shape[3:]), dtype=DTYPE)

    def taps(field: Tensor) -> Tensor:
        if full:
            return resolve(_reduce(field, ones, window), window.forward) if field.numel() == 1 else _box(field, window)
        return _reduce(field, ones, window)

    moment = x.mean.square() + x.constant
    gain = inputs * (variance_w + mean_w**2)
    mean = inputs * mean_w * taps(x.mean)
    constant = inputs * variance_w * taps(moment) + inputs * mean_w**2 * taps(x.constant)
    parts = [mean, constant, gain * taps(x.sample), gain * taps(x.site), gain * taps(x.residual)]
    if full or fits:
        return [_flat(part if full else resolve(part, window.forward)) for part in parts]
    return _averaged(parts, window)


def _box(field: Tensor, window: Window) -> Tensor:
    """Number of taps from each input to each result, one dimension at a time."""
    for place, link in enumerate(window.links, start=3):
        wide = field.expand(*field.shape[:place], link.shape[1], *field.shape[place + 1 :])
        field = torch.movedim(torch.movedim(wide, place, -1) @ link.T, -1, place)
    return field


# -- parameters ----------------------------------------------------------------------------------


def weight_gradient(call: Call, x: State, gradient: State, weight: State) -> State:
    """dw sums gradient times input over samples and results whose tap falls inside.

    As for a matrix, pairs of results that share a sample or a site are as correlated as their components say.
    """
    g, turned = _geometry(call), call.entry.op in _SPREADING
    table = _tables(g, turned, g.inputs, g.outputs)
    results = math.prod(g.outputs) * math.prod(float(dim.fraction.mean()) for dim in table)
    samples = float(call.axes[0].count(Role.SAMPLE))
    rank = len(g.kernel)
    left, right = (_per_channel(state, rank, g.groups) for state in (gradient, x))
    if turned:
        left, right = right, left

    more, many = max(results - 1, 0.0), max(samples - 1, 0.0)
    levels = (((1, 2, 3, 4), 1.0), ((1, 2), more), ((1, 3), many), ((1,), more * many))
    pairs = [(_moment(left, parts), count * _moment(right, parts)) for parts, count in levels]
    pairs.append((left[0].square(), -sum(count for _, count in levels) * right[0].square()))
    a, b = (torch.stack(side, -1) for side in zip(*pairs, strict=True))
    variance = samples * results * (a @ b.transpose(-1, -2))
    mean = samples * results * torch.einsum("go,gi->goi", left[0], right[0])
    shape = (*weight.shape[:2], *[1] * rank)
    return State.of(
        weight.axes, mean.reshape(shape), residual=variance.clamp(min=0).reshape(shape), width=x.width + gradient.width
    )


def _moment(fields: list[Tensor], parts: Sequence[int]) -> Tensor:
    """E of the product of two values that share these components."""
    return torch.as_tensor(sum((fields[i] for i in parts), fields[0].square()))


def _per_channel(state: State, rank: int, groups: int) -> list[Tensor]:
    """Fields as (group, channel), averaged over what leads and over sites; the mean's spread counts as `site`."""
    flat = collapsed(state, range(state.mean.ndim - rank, state.mean.ndim))
    channels = state.shape[-rank - 1]
    fields = (f.expand(*f.shape[: -rank - 1], channels, *f.shape[-rank:]) for f in flat.fields)
    return [f.reshape(-1, groups, channels // groups).mean(0) for f in fields]


def bias_gradient(call: Call, gradient: State, bias: State) -> State:
    """The sum of the gradient over samples and sites; what a map of means spreads over sites sums to nothing."""
    rank = len(out_sites(call))
    over = list(range(gradient.mean.ndim - rank, gradient.mean.ndim))
    mean, constant, sample, site, residual = (
        f.mean(over, keepdim=True).expand(*f.shape[: -rank - 1], bias.shape[0], *[1] * rank).reshape(-1, bias.shape[0])
        for f in gradient.fields
    )
    sites, samples = math.prod(call.axes[0].shape[-rank:]), float(call.axes[0].count(Role.SAMPLE))
    variance = sites * samples * (samples * sites * constant + sites * sample + samples * site + residual)
    return State.of(bias.axes, samples * sites * mean.mean(0), residual=variance.mean(0), width=gradient.width)
