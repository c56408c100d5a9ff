"""Pooling: averages and maxima over windows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tightrope.rules.elementwise import Adjoint
from tightrope.rules.expectation import Latent, latent, levels
from tightrope.rules.lags import REACH, SIDE, white
from tightrope.rules.mixing import mixed, window_average
from tightrope.rules.registry import Call, Gradients, rule
from tightrope.rules.sites import collapsed, settled
from tightrope.rules.state import State

_AVERAGE = ("avg_pool1d", "avg_pool2d", "avg_pool3d")
_ADAPTIVE = ("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
_MAXIMUM = ("max_pool1d", "max_pool2d", "max_pool3d")
_ADAPTIVE_MAXIMUM = ("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
SHARED_NODES = 7
"""Gauss-Hermite nodes for what the elements of a window share."""


def _dims(call: Call) -> list[int]:
    """Dimensions that windows slide along."""
    rank, total = int(call.entry.op[-2]), len(call.input.axes.dims)
    return list(range(total - rank, total))


def _many(value: Any, rank: int) -> list[int]:
    found = [int(v) for v in value] if isinstance(value, Sequence) else [int(value)]
    return found * (rank if len(found) == 1 else 1)


# -- averages ------------------------------------------------------------------------------------


@rule(*_AVERAGE, *_ADAPTIVE)
def average_pool(call: Call) -> State:
    """A window's average: what its sites share stays, what they do not is divided by their number."""
    return mixed(call.input, _averages(call), call.axes[0])


@average_pool.gradient
def _(call: Call, upstream: State) -> Gradients:
    number = call.id(0, "input")
    assert number is not None
    turned = {dim: matrix.T for dim, matrix in _averages(call).items()}
    return {number: mixed(upstream, turned, call.input.axes)}


def _averages(call: Call) -> dict[int, Tensor]:
    """The averaging matrix (result, input) of each dimension."""
    dims = _dims(call)
    before, after = call.input.axes.shape, call.axes[0].shape
    if call.entry.op in _ADAPTIVE:
        return {d: window_average(before[d], _adaptive(before[d], after[d])) for d in dims}
    kernel = _many(call.argument(1, "kernel_size"), len(dims))
    stride = call.argument(2, "stride")
    strides = _many(stride, len(dims)) if stride not in (None, [], ()) else kernel
    padding = _many(call.argument(3, "padding", 0), len(dims))
    counted = bool(call.argument(5, "count_include_pad", True))
    found = {}
    for d, k, s, p in zip(dims, kernel, strides, padding, strict=True):
        windows = [range(j * s - p, j * s - p + k) for j in range(after[d])]
        found[d] = window_average(before[d], windows, before[d] + p if counted else None, p)
    divisor = call.argument(6, "divisor_override")
    if divisor:
        found[dims[0]] = found[dims[0]] * (math.prod(kernel) / float(divisor))
    return found


def _adaptive(inputs: int, outputs: int) -> list[range]:
    return [range(j * inputs // outputs, -(-(j + 1) * inputs // outputs)) for j in range(outputs)]


# -- maxima --------------------------------------------------------------------------------------


@rule(*_MAXIMUM, *_ADAPTIVE_MAXIMUM, *(f"{op}_with_indices" for op in (*_MAXIMUM, *_ADAPTIVE_MAXIMUM)))
def max_pool(call: Call) -> State:
    """The largest of a window's elements: order statistics of the law at hand, whatever function made it.

    What the elements share (`constant`, `sample`) moves them together; given that, they are independent and the
    largest of n has the distribution function F^n.
    """
    x = _even(call)
    variable = x.latent if isinstance(x.latent, Latent) else latent(x)
    values = x.nodes if isinstance(x.latent, Latent) and x.nodes is not None else variable.z
    base = variable.base
    shared = _share(base)
    order = values.argsort(-1)
    mean = sample = second = torch.zeros_like(variable.z[..., 0])
    won = torch.zeros_like(variable.weights * values)
    for size, share in _sizes(call).items():
        for node, chance in _hermite(bool((shared > 1e-6).any())):
            weights = _given(variable, shared, node)
            below = _rising(variable, values, shared, node)
            top = _largest(weights.expand_as(values), below, order, size)
            inner = (top * values).sum(-1)
            mean = mean + share * chance * inner
            sample = sample + share * chance * inner.square()
            second = second + share * chance * (top * values.square()).sum(-1)
            won = won + share * chance * top
    sample = (sample - mean.square()).clamp(min=0)
    residual = (second - mean.square() - sample).clamp(min=0)
    call.saved.update(variable=variable, won=won, x=x)
    made = settled(State.of(call.axes[0], mean, sample=sample, residual=residual, width=x.width))
    if len(_site_dims(call)) != 2 or made.residual[0, 0].numel() > 1 or call.entry.op.startswith("adaptive"):
        return made
    return replace(made, lags=_overlapping(call, variable.weights.expand_as(values), values, order))


def _overlapping(call: Call, weights: Tensor, values: Tensor, order: Tensor) -> Tensor | None:
    """Autocorrelation of maxima whose windows overlap: with U the maximum of what two windows share and V, W those
    of the rest, E[max(U, V) max(U, W)] is the mean over U of E[max(U, V) | U]^2.
    """
    kernel = _many(call.argument(1, "kernel_size"), 2)
    stride = call.argument(2, "stride")
    strides = _many(stride, 2) if stride not in (None, [], ()) else kernel
    if all(s >= k for s, k in zip(strides, kernel, strict=True)):
        return None
    size = math.prod(kernel)
    value = values.gather(-1, order)
    top = _largest(weights, None, order, size).gather(-1, order)
    mean = (top * value).sum(-1)
    variance = (top * value.square()).sum(-1) - mean.square()
    lags = white(values).expand(mean.numel(), SIDE, SIDE).clone()
    for a, b in itertools.product(range(REACH + 1), repeat=2):
        both = max(kernel[0] - strides[0] * a, 0) * max(kernel[1] - strides[1] * b, 0)
        if not 0 < both < size:
            continue
        shared, rest = (_largest(weights, None, order, n).gather(-1, order) for n in (both, size - both))
        below = rest.cumsum(-1) - rest / 2
        part = rest * value
        above = part.sum(-1, keepdim=True) - part.cumsum(-1) + part / 2
        given = value * below + above
        covariance = (shared * given.square()).sum(-1) - (shared * given).sum(-1).square()
        found = (covariance / variance.clamp(min=1e-300)).clamp(0, 1).reshape(-1)
        for i, j in itertools.product({-a, a}, {-b, b}):
            lags[:, REACH + i, REACH + j] = found
    return lags


@max_pool.gradient
def _(call: Call, upstream: State | list[State]) -> Gradients:
    """A result's gradient goes to the window's largest element, and is zero elsewhere."""
    gradient = upstream if isinstance(upstream, State) else upstream[0]
    x, number = call.input, call.id(0, "input")
    assert number is not None and gradient is not None
    dims = _site_dims(call)
    rate = math.prod(call.axes[0].shape[d] for d in dims) / math.prod(x.axes.shape[d] for d in dims)
    flat = collapsed(replace(gradient, latent=None, nodes=None), dims)
    flat = replace(flat, axes=x.axes)
    variable, won = call.saved["variable"], call.saved["won"]
    # E[(number of windows won)^2 | value]: a winner's gradient is counted as often as it wins.
    density = (won / variable.weights.clamp(min=1e-300)).clamp(max=1e6)
    nodes = (rate * density).sqrt()
    if isinstance(x.latent, Latent):
        made = Adjoint(variable, flat).state(nodes)
        return {number: replace(made, axes=x.axes)}
    chance = rate
    kept = flat.second_moment * rate - (flat.mean.square() + flat.sample) * chance**2
    thin = replace(flat, mean=flat.mean * chance, sample=flat.sample * chance**2, constant=flat.constant * chance**2)
    return {number: replace(thin, site=flat.site * 0, residual=(kept - thin.constant).clamp(min=0))}


def _site_dims(call: Call) -> list[int]:
    rank = int(call.entry.op.split("pool")[1][0])
    total = len(call.input.axes.dims)
    return list(range(total - rank, total))


def _even(call: Call) -> State:
    """The input, the same at all sites: windows mix them."""
    x = call.input
    dims = _site_dims(call)
    if isinstance(x.latent, Latent) and all(f.shape[d] == 1 for f in x.latent.base.fields for d in dims):
        return x
    flat = collapsed(replace(x, latent=None, nodes=None), dims)
    return flat


def _share(base: State) -> Tensor:
    """Fraction of the variance that the elements of a window share."""
    together = levels(base)[2]
    share = together / base.variance.clamp(min=1e-300)
    return torch.where(base.variance > 0, share, torch.zeros_like(share)).clamp(0, 0.9)


def _hermite(needed: bool) -> list[tuple[float, float]]:
    if not needed:
        return [(0.0, 1.0)]
    nodes, weights = np.polynomial.hermite_e.hermegauss(SHARED_NODES)
    return [(float(x), float(w / weights.sum())) for x, w in zip(nodes, weights, strict=True)]


def _given(variable: Latent, shared: Tensor, node: float) -> Tensor:
    """Weights of the variable's nodes given the shared part's value."""
    rho = shared.unsqueeze(-1)
    if not bool((shared > 1e-6).any()):
        return variable.weights
    xi = variable.xi
    log = xi.square() / 2 - (xi - rho.sqrt() * node).square() / (2 * (1 - rho)) - 0.5 * torch.log1p(-rho)
    weights = variable.weights * log.clamp(max=700).exp()
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-300)


def _largest(weights: Tensor, below: Tensor | None, order: Tensor, size: int) -> Tensor:
    """Probabilities of the nodes for the largest of `size` independent draws.

    Args:
        weights: of the nodes, given what the window shares.
        below: probability of a smaller draw, where the values rise with the variable; None to count it by rank.
        order: the nodes by value.
        size: number of draws.
    """
    if below is not None:
        top = weights * below ** (size - 1)
        return top / top.sum(-1, keepdim=True).clamp(min=1e-300)
    ranked = weights.gather(-1, order)
    top = ranked * (ranked.cumsum(-1) - ranked / 2) ** (size - 1)
    top = top / top.sum(-1, keepdim=True).clamp(min=1e-300)
    return torch.zeros_like(weights).scatter(-1, order, top)


def _rising(variable: Latent, values: Tensor, shared: Tensor, node: float) -> Tensor | None:
    """Probability that another draw of the variable is smaller, if the values rise with it."""
    if bool((values.diff(dim=-1) < -1e-12).any()):
        return None
    rho = shared.unsqueeze(-1)
    below: Tensor = torch.special.ndtr((variable.xi - rho.sqrt() * node) / (1 - rho).sqrt())
    return below


def _sizes(call: Call) -> dict[int, float]:
    """How many elements windows have inside the input, and how often."""
    dims = _site_dims(call)
    before, after = call.input.axes.shape, call.axes[0].shape
    rank = len(dims)
    counts: list[Tensor] = []
    if call.entry.op.startswith("adaptive"):
        counts = [torch.tensor([len(r) for r in _adaptive(before[d], after[d])]) for d in dims]
    else:
        kernel = _many(call.argument(1, "kernel_size"), rank)
        stride = call.argument(2, "stride")
        strides = _many(stride, rank) if stride not in (None, [], ()) else kernel
        padding, dilation = _many(call.argument(3, "padding", 0), rank), _many(call.argument(4, "dilation", 1), rank)
        for d, k, s, p, step in zip(dims, kernel, strides, padding, dilation, strict=True):
            reads = torch.arange(after[d])[:, None] * s - p + torch.arange(k)[None] * step
            counts.append(((reads >= 0) & (reads < before[d])).sum(1))
    sizes = counts[0]
    for more in counts[1:]:
        sizes = (sizes[..., None] * more).reshape(-1)
    found, times = sizes.unique(return_counts=True)
    return {int(n): float(t) / sizes.numel() for n, t in zip(found, times, strict=True)}
