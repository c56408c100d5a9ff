"""Pooling: averages and maxima over windows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tightrope.rules.adjoint import Adjoint
from tightrope.rules.expectation import SPAN, Latent, centre, latent, levels
from tightrope.rules.lags import by_channel, reach, resized, trimmed, white, window_pairs
from tightrope.rules.mixing import mixed, window_average
from tightrope.rules.registry import Call, Gradients, rule
from tightrope.rules.sites import collapsed, settled
from tightrope.rules.state import DTYPE, State

_AVERAGE = ("avg_pool1d", "avg_pool2d", "avg_pool3d")
_ADAPTIVE = ("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
_MAXIMUM = ("max_pool1d", "max_pool2d", "max_pool3d")
_ADAPTIVE_MAXIMUM = ("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
SHARED_NODES = 7
"""Gauss-Hermite nodes for what the elements of a window share."""
MOST_ELEMENTS, POINTS = 25, 4096
"""Largest window whose correlations are integrated over, and points of that integral: 0.5 % of the maximum."""
KNOWN = 1 << 16
"""Values of a function from which others are interpolated."""
MOST_SHARED = 0.97
"""Largest share: the rest still spans a few quadrature nodes."""


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
    shared, together = _shares(base, call)
    order = values.argsort(-1)
    mean = sample = second = torch.zeros_like(variable.z[..., 0])
    won = torch.zeros_like(variable.weights * values)
    local = bool((together - shared > 1e-6).any())
    alike = _alike(call, base) if base.lags is not None and local else 1.0
    for count, share in _sizes(call).items():
        size = 1 + (count - 1) * alike
        for outer, chance in _hermite(bool((shared > 1e-6).any())):
            inner = torch.zeros_like(mean)
            for near, odds in _hermite(local):
                centre = shared.sqrt() * outer + (together - shared).sqrt() * near
                weights = _given(variable, together, centre)
                below = _rising(variable, values, together, centre)
                top = _largest(weights.expand_as(values), below, order, size)
                inner = inner + odds * (top * values).sum(-1)
                second = second + share * chance * odds * (top * values.square()).sum(-1)
                won = won + share * chance * odds * top
            mean = mean + share * chance * inner
            sample = sample + share * chance * inner.square()
    sample = (sample - mean.square()).clamp(min=0)
    rest = (second - mean.square() - sample).clamp(min=0)
    own = _own(call.input, base)  # what the means of a window's elements add to the spread is the same for all samples
    residual, site = rest * own, rest * (1 - own)
    call.saved.update(variable=variable, won=won, x=x)
    made = settled(State.of(call.axes[0], mean, sample=sample, site=site, residual=residual, width=x.width))
    if len(_site_dims(call)) != 2 or made.residual[0, 0].numel() > 1 or call.entry.op.startswith("adaptive"):
        return made
    if base.lags is not None:
        return replace(made, lags=_between_windows(call, base.lags))
    return replace(made, lags=_overlapping(call, variable.weights.expand_as(values), values, order))


def _overlapping(call: Call, weights: Tensor, values: Tensor, order: Tensor) -> Tensor | None:
    """Autocorrelation of maxima whose windows overlap: with U the maximum of what two windows share and V, W those
    of the rest, E[max(U, V) max(U, W)] is the mean over U of E[max(U, V) | U]^2.
    """
    kernel, strides, _ = _windows(call)
    if all(s >= k for s, k in zip(strides, kernel, strict=True)):
        return None
    size = math.prod(kernel)
    value = values.gather(-1, order)
    top = _largest(weights, None, order, size).gather(-1, order)
    mean = (top * value).sum(-1)
    variance = (top * value.square()).sum(-1) - mean.square()
    edges = [(k - 1) // s for k, s in zip(kernel, strides, strict=True)]
    lags = resized(white(values).expand(mean.numel(), 1, 1), *edges).clone()
    for a, b in itertools.product(*(range(edge + 1) for edge in edges)):
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
            lags[:, edges[0] + i, edges[1] + j] = found
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
    if isinstance(x.latent, Latent):
        if variable is not x.latent:
            density = _winning(call, x.latent, variable)
        made = Adjoint(x.latent, flat).state((rate * density).sqrt())
        return {number: replace(made, axes=x.axes)}
    chance = rate
    kept = flat.second_moment * rate - (flat.mean.square() + flat.sample) * chance**2
    thin = replace(flat, mean=flat.mean * chance, sample=flat.sample * chance**2, constant=flat.constant * chance**2)
    return {number: replace(thin, site=flat.site * 0, residual=(kept - thin.constant).clamp(min=0))}


def _winning(call: Call, element: Latent, window: Latent) -> Tensor:
    """How much more often than on average an element wins at each of its values: the others follow its window's law."""
    turned = {d: m.T / m.sum(0).clamp(min=1e-12)[:, None] for d, m in _memberships(call).items()}
    mean, std = (_applied(field, turned).unsqueeze(-1) for field in centre(window.base))
    size = sum(count * share for count, share in _sizes(call).items())
    below: Tensor = torch.special.ndtr((element.z - mean) / std.clamp(min=1e-300))
    return size * below ** (size - 1)


def _site_dims(call: Call) -> list[int]:
    rank = int(call.entry.op.split("pool")[1][0])
    total = len(call.input.axes.dims)
    return list(range(total - rank, total))


def _even(call: Call) -> State:
    """The input with one law for each window, or one for all: windows mix sites."""
    x = call.input
    dims = _site_dims(call)
    variable = x.latent
    if not isinstance(variable, Latent) or x.nodes is None:
        return collapsed(replace(x, latent=None, nodes=None), dims)
    if all(f.shape[d] == 1 for f in variable.base.fields for d in dims):
        return x
    # One law stands for a window's elements; by what their means differ they vary independently.
    matrices, base = _memberships(call), variable.base
    mean = _applied(base.mean, matrices)
    spread = (_applied(base.mean.square(), matrices) - mean.square()).clamp(min=0)
    near = base.map(lambda f: _applied(f, matrices))
    window = latent(replace(near, residual=near.residual + spread, lags=base.lags))
    return replace(x.map(lambda f: _applied(f, matrices)), latent=window, nodes=_looked_up(variable, x.nodes, window.z))


def _looked_up(variable: Latent, values: Tensor, z: Tensor) -> Tensor:
    """A function of a variable at other values of it, between those at the variable's own nodes."""
    known, held = (t.reshape(-1, t.shape[-1]) for t in torch.broadcast_tensors(variable.z, values))
    step = max(known.numel() // KNOWN, 1)
    known, order = known[::step].reshape(-1).sort()
    held = held[::step].reshape(-1)[order]
    right = torch.searchsorted(known, z.contiguous()).clamp(1, len(known) - 1)
    low, high = known[right - 1], known[right]
    part = ((z - low) / (high - low).clamp(min=1e-300)).clamp(0, 1)
    made: Tensor = held[right - 1] + part * (held[right] - held[right - 1])
    return made


def _own(x: State, window: State) -> float:
    """Share of a window's variance that its elements have themselves."""
    if not isinstance(x.latent, Latent):
        return 1.0
    total = float(window.variance.mean())
    return min(float(x.latent.base.variance.mean()) / total, 1.0) if total > 0 else 1.0


def _memberships(call: Call) -> dict[int, Tensor]:
    """The matrix (window, element) that averages over each window's elements, for each dimension."""
    dims, before, after = _site_dims(call), call.input.axes.shape, call.axes[0].shape
    if call.entry.op.startswith("adaptive"):
        return {d: window_average(before[d], _adaptive(before[d], after[d])) for d in dims}
    kernel, strides, dilation = _windows(call)
    padding = _many(call.argument(3, "padding", 0), len(dims))
    return {
        d: window_average(before[d], [range(j * s - p, j * s - p + (k - 1) * step + 1, step) for j in range(after[d])])
        for d, k, s, p, step in zip(dims, kernel, strides, padding, dilation, strict=True)
    }


def _applied(field: Tensor, matrices: Mapping[int, Tensor]) -> Tensor:
    """Matrices along the dimensions in which a field varies."""
    for d, matrix in matrices.items():
        if field.shape[d] > 1:
            field = torch.movedim(torch.movedim(field, d, -1) @ matrix.T, -1, d)
    return field


def _between_windows(call: Call, lags: Tensor) -> Tensor | None:
    """Autocorrelation of the maxima of correlated elements: that of the windows' averages."""
    kernel, strides, dilation = _windows(call)
    own = window_pairs(lags, kernel, dilation, (0, 0)).clamp(min=1e-12)
    after = [edge // step for edge, step in zip(reach(lags), strides, strict=True)]
    made = lags.new_zeros(len(lags), *(2 * edge + 1 for edge in after))
    for a, b in itertools.product(*(range(-edge, edge + 1) for edge in after)):
        pairs = window_pairs(lags, kernel, dilation, (a * strides[0], b * strides[1]))
        made[:, a + after[0], b + after[1]] = (pairs / own).clamp(-1, 1)
    return trimmed(made)


def _windows(call: Call) -> tuple[list[int], list[int], list[int]]:
    """Kernel, stride and dilation along the site dimensions."""
    rank = len(_site_dims(call))
    kernel, stride = _many(call.argument(1, "kernel_size"), rank), call.argument(2, "stride")
    strides = _many(stride, rank) if stride not in (None, [], ()) else kernel
    return kernel, strides, _many(call.argument(4, "dilation", 1), rank)


def _shares(base: State, call: Call) -> tuple[Tensor, Tensor]:
    """Fractions of the variance that all elements of a sample share, and that those of a window share: with the former,
    what neighbours have in common, and what the border does to the map, in windows that do not touch it.
    """
    safe = base.variance.clamp(min=1e-300)

    def part(field: Tensor) -> Tensor:
        return torch.where(base.variance > 0, field / safe, torch.zeros_like(safe)).clamp(0, MOST_SHARED)

    inner = math.prod(max(1 - 2 / call.axes[0].shape[d], 0.0) for d in _site_dims(call))
    share, window = part(levels(base)[2]), part(levels(base)[2] + inner * base.site)
    if base.lags is None or len(_site_dims(call)) != 2 or call.entry.op.startswith("adaptive"):
        return share, window
    kernel, _, dilation = _windows(call)
    size = math.prod(kernel)
    if size == 1:
        return share, window
    pairs = (window_pairs(base.lags, kernel, dilation, (0, 0)) * size - 1) / (size - 1)
    return share, torch.maximum(window + part(base.residual) * pairs.reshape(1, -1, 1, 1), share).clamp(max=MOST_SHARED)


def _alike(call: Call, base: State) -> float:
    """How many further elements of a window count, as a fraction: with equal correlation of all pairs, that number of
    elements has the expected maximum that the window has with its own correlations. Neighbours are more alike than the
    average pair, so that a window of a smooth map has fewer than it holds.
    """
    kernel, _, dilation = _windows(call)
    size = math.prod(kernel)
    assert base.lags is not None
    edges = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    shared, residual, variance = (by_channel(f) for f in (levels(base)[2], base.residual, base.variance))
    table = ((shared + residual * resized(base.lags, *edges)) / variance.clamp(min=1e-300)).mean(0)
    rows, columns = edges
    sites = [(i * dilation[0], j * dilation[1]) for i in range(kernel[0]) for j in range(kernel[1])]
    matrix = torch.stack([torch.stack([table[rows + c - a, columns + d - b] for c, d in sites]) for a, b in sites])
    mean = float((matrix.sum() - size) / (size * (size - 1)))
    if not 0 < mean < MOST_SHARED or size > MOST_ELEMENTS:
        return 1.0
    values, vectors = torch.linalg.eigh(matrix)
    points = torch.quasirandom.SobolEngine(size, scramble=True, seed=0).draw(POINTS, dtype=DTYPE)
    normal = torch.special.ndtri(points.clamp(1e-12, 1 - 1e-12))
    expected = float((normal @ (vectors * values.clamp(min=0).sqrt()).T).amax(1).mean()) / math.sqrt(1 - mean)
    z = torch.linspace(-SPAN, SPAN, 801, dtype=DTYPE)
    counts = torch.linspace(1.0, float(size), 65, dtype=DTYPE)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    maxima = counts * (torch.special.ndtr(z)[:, None] ** (counts - 1) * (z * density)[:, None]).sum(0)
    return (float(np.interp(expected, maxima, counts)) - 1) / (size - 1)


def _hermite(needed: bool) -> list[tuple[float, float]]:
    if not needed:
        return [(0.0, 1.0)]
    nodes, weights = np.polynomial.hermite_e.hermegauss(SHARED_NODES)
    return [(float(x), float(w / weights.sum())) for x, w in zip(nodes, weights, strict=True)]


def _given(variable: Latent, shared: Tensor, centre: Tensor) -> Tensor:
    """Weights of the variable's nodes given the value of what a window shares, in standard deviations."""
    rho = shared.unsqueeze(-1)
    if not bool((shared > 1e-6).any()):
        return variable.weights
    xi = variable.xi
    log = xi.square() / 2 - (xi - centre.unsqueeze(-1)).square() / (2 * (1 - rho)) - 0.5 * torch.log1p(-rho)
    weights = variable.weights * log.clamp(max=700).exp()
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-300)


def _largest(weights: Tensor, below: Tensor | None, order: Tensor, size: float) -> Tensor:
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


def _rising(variable: Latent, values: Tensor, shared: Tensor, centre: Tensor) -> Tensor | None:
    """Probability that another draw of the variable is smaller, if the values rise with it."""
    if bool((values.diff(dim=-1) < -1e-12).any()):
        return None
    rho = shared.unsqueeze(-1)
    below: Tensor = torch.special.ndtr((variable.xi - centre.unsqueeze(-1)) / (1 - rho).sqrt())
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
