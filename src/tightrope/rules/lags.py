"""How alike neighbouring sites of a feature map are: the autocorrelation of a law's residual over two site dimensions.

Neighbouring pixels of a picture are alike, and windows of a maximum that overlap make neighbours alike. An average or a
maximum over a window then has another law than independent sites would give it.

A table of lags has the shape (channel or 1, 2 r + 1, 2 c + 1) and holds 1 at its centre; sites that are further apart
than its reaches r and c count as independent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MOST = 16
"""Largest reach of a table."""
CROSS_CHANNELS = 4
"""Most channels of an input between which correlations are carried: colours."""
FAINT = 0.01
"""Correlation at the rim of a table below which the rim is dropped."""


@dataclass(frozen=True)
class Cross:
    """Covariances between the few channels of an input.

    Attributes:
        shared: of what all sites of a sample share, (channel, channel).
        residual: of the rest, by lag, (channel, channel, lag, lag).
    """

    shared: Tensor
    residual: Tensor


def white(like: Tensor) -> Tensor:
    """The autocorrelation of independent sites."""
    return like.new_ones((1, 1, 1))


def reach(lags: Tensor) -> tuple[int, int]:
    """Largest lag along each of the two dimensions."""
    return lags.shape[-2] // 2, lags.shape[-1] // 2


def resized(lags: Tensor, rows: int, columns: int) -> Tensor:
    """The same table with other reaches: cut off, or filled with zeros."""
    r, c = reach(lags)
    made: Tensor = F.pad(lags, (columns - c, columns - c, rows - r, rows - r))
    return made


def aligned(tables: Sequence[Tensor]) -> list[Tensor]:
    """Tables of the same, the largest, reaches."""
    rows, columns = (max(edges) for edges in zip(*(reach(table) for table in tables), strict=True))
    return [resized(table, rows, columns) for table in tables]


def trimmed(lags: Tensor) -> Tensor | None:
    """The table without a faint rim, and no larger than it may be; None where nothing is left."""
    rows, columns = (min(edge, MOST) for edge in reach(lags))
    lags = resized(lags, rows, columns)
    strength = lags.abs().amax(0)
    while rows > 0 and float(torch.maximum(strength[0].amax(), strength[-1].amax())) < FAINT:
        rows, strength = rows - 1, strength[1:-1]
    while columns > 0 and float(torch.maximum(strength[:, 0].amax(), strength[:, -1].amax())) < FAINT:
        columns, strength = columns - 1, strength[:, 1:-1]
    return resized(lags, rows, columns) if rows or columns else None


def autocovariance(x: Tensor) -> Tensor:
    """Mean products of the elements of maps, by channels and lags.

    Args:
        x: (sample, channel, height, width), centred.

    Returns:
        (channel, channel, lag, lag), averaged over all pairs of sites at each lag, up to half of the map.
    """
    height, width = x.shape[-2:]
    rows, columns = min(height // 2, MOST), min(width // 2, MOST)
    size = (height + rows, width + columns)
    spectrum = torch.fft.rfft2(x, s=size)
    power = torch.einsum("nihw,njhw->ijhw", spectrum.conj(), spectrum)
    sums = torch.roll(torch.fft.irfft2(power, s=size), (rows, columns), (-2, -1))
    sums = sums[..., : 2 * rows + 1, : 2 * columns + 1]
    pairs = [length - torch.arange(-edge, edge + 1).abs() for length, edge in ((height, rows), (width, columns))]
    return sums / (len(x) * pairs[0][:, None] * pairs[1])


def blended(parts: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor | None:
    """The autocorrelation of a sum of independent maps.

    Args:
        parts: residual variance, (1, channel or 1, site, site), and autocorrelation of each addend.
    """
    if all(lags is None for _, lags in parts):
        return None
    held = aligned([white(variance) if lags is None else lags for variance, lags in parts])
    weights = [by_channel(variance) for variance, _ in parts]
    if len({len(x) for x in (*held, *weights)} - {1}) > 1:
        return None
    total = sum(weights[1:], weights[0])
    made = sum((w * lags for w, lags in zip(weights[1:], held[1:], strict=True)), weights[0] * held[0])
    made = made / total.clamp(min=1e-300)
    rows, columns = reach(made)
    made[:, rows, columns] = 1.0
    return made


def by_channel(field: Tensor) -> Tensor:
    """A state's field averaged over its sites: (..., 1, channel or 1, site, site) to (..., channel or 1, 1, 1)."""
    field = field.reshape((1,) * (4 - field.ndim) + tuple(field.shape))
    return field.mean((-2, -1), keepdim=True)[..., 0, :, :, :]


def thinned(variance: Tensor, lags: Tensor, weight: Tensor, stride: Sequence[int], spreading: bool) -> Tensor | None:
    """Autocorrelation after a convolution: that of its inputs, at every stride-th lag.

    What two taps contribute to neighbouring results has the sign of the product of their weights and averages out.

    Args:
        variance: residual variance of each input channel, (group, in).
        lags: (group * in or 1, lag, lag).
        weight: (group, out, in, height, width).
        stride: of the window.
        spreading: whether strides spread the input: what lies between has no counterpart.
    """
    groups, outputs, inputs = weight.shape[:3]
    rows, columns = (_links(edge, step, spreading).to(weight) for edge, step in zip(reach(lags), stride, strict=True))
    if len(lags) == 1:
        made = lags.to(weight)
    else:
        share = weight.square().flatten(3).sum(-1) * variance[:, None]
        share = share / share.sum(-1, keepdim=True).clamp(min=1e-300)
        made = (share @ lags.reshape(groups, inputs, -1)).reshape(groups * outputs, *lags.shape[1:])
    return trimmed(torch.einsum("ar,bs,ors->oab", rows, columns, made))


def _links(edge: int, stride: int, spreading: bool) -> Tensor:
    """1 where a lag of the result and one of the input belong together."""
    after = edge * stride if spreading else edge // stride
    result, source = torch.arange(-after, after + 1), torch.arange(-edge, edge + 1)
    if spreading:
        return (result[:, None] == source[None] * stride).double()
    return (result[:, None] * stride == source[None]).double()


def filtered(cross: Cross, weight: Tensor, stride: Sequence[int], dilation: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Exact covariances after a convolution of an input of few channels, away from its border.

    Args:
        cross: covariances of the input.
        weight: (out, in, height, width).
        stride, dilation: of the window.

    Returns:
        Variance of what all sites of a sample share, (out,); covariance of the rest by lag, (out, lag, lag).
    """
    outputs, inputs = weight.shape[:2]
    sums = weight.flatten(2).sum(-1)
    shared = torch.einsum("oi,oj,ij->o", sums, sums, cross.shared)
    edges = [(k - 1) * d for k, d in zip(weight.shape[2:], dilation, strict=True)]
    spread = weight.new_zeros(outputs, inputs, *(edge + 1 for edge in edges))
    spread[:, :, :: dilation[0], :: dilation[1]] = weight
    # Products of the weights of two channels, by the distance between their taps.
    taps = F.pad(spread, (edges[1], edges[1], edges[0], edges[0])).reshape(1, outputs * inputs, *(
        length + 2 * edge for length, edge in zip(spread.shape[2:], edges, strict=True)
    ))  # fmt: skip
    pairs = torch.cat(
        [
            F.conv2d(taps, spread[:, j].repeat_interleave(inputs, 0)[:, None], groups=outputs * inputs).reshape(
                outputs, inputs, *(2 * edge + 1 for edge in edges)
            )
            for j in range(inputs)
        ],
        1,
    )  # fmt: skip  (out, in_j * in_i, lag, lag): sum over taps of w_j[t] w_i[t + lag]
    after = [edge // step for edge, step in zip(reach(cross.residual), stride, strict=True)]
    wide = resized(cross.residual, *(a * s + e for a, s, e in zip(after, stride, edges, strict=True)))
    image = wide.reshape(1, inputs * inputs, *wide.shape[2:])  # (in_j * in_i): E x_j[s] x_i[s + lag]
    return shared, F.conv2d(image, pairs, stride=tuple(stride))[0]


def filtered_alone(lags: Tensor, weight: Tensor, stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """Exact covariances after a convolution in which each result reads one channel, away from its border.

    Args:
        lags: autocorrelation of the input, (channel or 1, lag, lag).
        weight: (channel, height, width).
        stride, dilation: of the window.

    Returns:
        Covariance by lag, in units of the input's variance, (channel, lag, lag).
    """
    channels = len(weight)
    edges = [(k - 1) * d for k, d in zip(weight.shape[1:], dilation, strict=True)]
    spread = weight.new_zeros(channels, 1, *(edge + 1 for edge in edges))
    spread[:, 0, :: dilation[0], :: dilation[1]] = weight
    image = F.pad(spread.transpose(0, 1), (edges[1], edges[1], edges[0], edges[0]))
    pairs = F.conv2d(image, spread, groups=channels)
    # A result at lag l hears products of inputs that are up to a window further apart.
    after = [(r + e) // s for r, e, s in zip(reach(lags), edges, stride, strict=True)]
    wide = resized(lags.to(weight), *(a * s + e for a, s, e in zip(after, stride, edges, strict=True)))
    table: Tensor = F.conv2d(
        wide.expand(channels, -1, -1)[None], pairs.transpose(0, 1), stride=tuple(stride), groups=channels
    )
    return table[0]


def averaged(lags: Tensor, matrices: Mapping[int, Tensor], dims: Sequence[int]) -> tuple[Tensor | None, Tensor]:
    """Autocorrelation after a separable linear map of the two site dimensions, and the variance's factor.

    Args:
        lags: (channel or 1, lag, lag).
        matrices: (result, input) by dimension.
        dims: the two site dimensions.
    """
    edges = reach(lags)
    tables = [
        _pairs(matrices[d], edge) if d in matrices else torch.eye(2 * edge + 1, dtype=lags.dtype)
        for d, edge in zip(dims, edges, strict=True)
    ]
    covariance = torch.einsum("crs,ar,bs->cab", lags, *tables)
    rows, columns = reach(covariance)
    centre = covariance[:, rows, columns].clamp(min=0)
    return trimmed((covariance / centre.clamp(min=1e-300)[:, None, None]).clamp(-1, 1)), centre


def _pairs(matrix: Tensor, edge: int) -> Tensor:
    """Mean over results j of the sum of m[j, i] m[j + a, i + r], by result lag a and input lag r."""
    n, m = matrix.shape
    after = min(edge, n - 1)
    table = matrix.new_zeros(2 * after + 1, 2 * edge + 1)
    for a in range(-after, after + 1):
        first, second = matrix[max(-a, 0) : n - max(a, 0)], matrix[max(a, 0) : n - max(-a, 0)]
        for r in range(-min(edge, m - 1), min(edge, m - 1) + 1):
            left, right = first[:, max(-r, 0) : m - max(r, 0)], second[:, max(r, 0) : m - max(-r, 0)]
            table[a + after, r + edge] = (left * right).sum(1).mean()
    return table


def window_pairs(lags: Tensor, kernel: Sequence[int], dilation: Sequence[int], shift: Sequence[int]) -> Tensor:
    """Mean correlation between an element of one window and one of another, (channel or 1,).

    Args:
        lags: (channel or 1, lag, lag).
        kernel, dilation: of the window.
        shift: from one window to the other, in elements; zero for the window itself, each element with itself included.
    """
    shares = []
    for edge, k, d, s in zip(reach(lags), kernel, dilation, shift, strict=True):
        share = lags.new_zeros(2 * edge + 1)
        for step in range(-k + 1, k):
            lag = s + step * d
            if abs(lag) <= edge:
                share[lag + edge] += (k - abs(step)) / k**2
        shares.append(share)
    return torch.einsum("crs,r,s->c", lags, *shares)


def mean_factor(lags: Tensor, sizes: Sequence[int]) -> Tensor:
    """Factor on the variance of a mean over all sites of a map of two dimensions, (channel,)."""
    shares = []
    for size, edge in zip(sizes, reach(lags), strict=True):
        lag = torch.arange(-edge, edge + 1, dtype=lags.dtype).abs()
        shares.append((1 - lag / size).clamp(min=0))
    return torch.einsum("crs,r,s->c", lags, *shares).clamp(min=0)
