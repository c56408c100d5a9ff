"""Convolutions: every result is a weighted sum of the taps of its window, and of the channels of its group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tightrope.roles import Role
from tightrope.rules.lags import aligned, mean_factor, reach, resized, white
from tightrope.rules.linear import bias_state
from tightrope.rules.registry import Call, Gradients, rule
from tightrope.rules.sites import collapsed, divided_out
from tightrope.rules.state import State
from tightrope.rules.taps import Classes, links, sliding, spreading
from tightrope.rules.windows import Window, windowed

_SLIDING = ("conv1d", "conv2d", "conv3d")
_SPREADING = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")


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
    return Window(mean, variance, table, links, g.outputs, run, g.stride, g.dilation, turned)


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
    return Window(mean, variance, table, links, g.inputs, run, g.stride, g.dilation, not turned)


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
    variance = a @ b.transpose(-1, -2)
    if rank == 2 and (x.lags is not None or gradient.lags is not None):
        tables = [gradient.lags, x.lags]
        variance = variance + alike_pairs(
            left, right, tables[::-1] if turned else tables, g.inputs if turned else g.outputs, g.stride
        )
    variance = samples * results * variance
    mean = samples * results * torch.einsum("go,gi->goi", left[0], right[0])
    shape = (*weight.shape[:2], *[1] * rank)
    return State.of(
        weight.axes, mean.reshape(shape), residual=variance.clamp(min=0).reshape(shape), width=x.width + gradient.width
    )


def alike_pairs(
    left: list[Tensor],
    right: list[Tensor],
    tables: Sequence[Tensor | None],
    sites: Sequence[int],
    stride: Sequence[int],
) -> Tensor:
    """What neighbouring sites of one sample add to the variance of a sum of products, (group, out, in).

    Args:
        left, right: fields of both factors by (group, channel).
        tables: their autocorrelations.
        sites: numbers of products along the site dimensions.
        stride: lags of the right factor between neighbouring products.
    """
    near = white(left[0]) if tables[0] is None else tables[0].to(left[0])
    wide = white(left[0]) if tables[1] is None else tables[1].to(left[0])
    kept = [edge // step for edge, step in zip(reach(wide), stride, strict=True)]
    wide = resized(wide, *(k * s for k, s in zip(kept, stride, strict=True)))[:, :: stride[0], :: stride[1]]
    first, second = aligned([near, wide])
    pairs = torch.ones_like(first[:1])
    for dim, (size, edge) in enumerate(zip(sites, reach(first), strict=True), start=1):
        share = (1 - torch.arange(-edge, edge + 1).abs() / size).clamp(min=0).to(pairs)
        pairs = pairs * share.reshape([-1 if d == dim else 1 for d in range(3)])
    rows, columns = reach(pairs)
    pairs[0, rows, columns] = 0

    def grouped(table: Tensor, fields: list[Tensor]) -> Tensor:
        return table.expand(left[0].shape[0] * fields[0].shape[1], -1, -1).reshape(*fields[0].shape, -1)

    a, b, flat = grouped(first, left), grouped(second, right), pairs.flatten()
    alone = torch.einsum("go,gi->goi", left[4] * (a @ flat), _moment(right, (1, 2)))
    alone = alone + torch.einsum("go,gi->goi", _moment(left, (1, 2)), right[4] * (b @ flat))
    return alone + torch.einsum("go,gi,goi->goi", left[4], right[4], (a * flat) @ b.transpose(-1, -2))


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
    if gradient.lags is not None and rank == 2:
        residual = residual * mean_factor(gradient.lags, call.axes[0].shape[-rank:])
    variance = sites * samples * (samples * sites * constant + sites * sample + samples * site + residual)
    return State.of(
        bias.axes, samples * sites * mean.mean(0), residual=variance.mean(0).clamp(min=0), width=gradient.width
    )
