"""How alike neighbouring sites of a feature map are: the autocorrelation of a law's residual over small lags.

Windows of a maximum that overlap make neighbours alike, and an average over a window or over all sites then has
another variance than independent sites would give it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

REACH = 2
"""Largest lag that is carried along each of the two site dimensions; beyond it sites count as independent."""
SIDE = 2 * REACH + 1


def white(like: Tensor) -> Tensor:
    """The autocorrelation of independent sites."""
    made = like.new_zeros((1, SIDE, SIDE))
    made[0, REACH, REACH] = 1.0
    return made


def blended(parts: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor | None:
    """The autocorrelation of a sum of independent maps.

    Args:
        parts: residual variance, broadcasting over (channel,), and autocorrelation of each addend.
    """
    channels = max((len(lags) for _, lags in parts if lags is not None), default=0)
    if channels == 0 or any(v.numel() not in (1, channels) and channels > 1 for v, _ in parts):
        return None
    weights = [v.reshape(-1, 1, 1) if v.numel() > 1 else v.reshape(1, 1, 1) for v, _ in parts]
    total = sum(weights[1:], weights[0])
    held = [w * (white(w) if lags is None else lags) for w, (_, lags) in zip(weights, parts, strict=True)]
    return torch.where(total > 0, sum(held[1:], held[0]) / total.clamp(min=1e-300), white(total))


def thinned(variance: Tensor, lags: Tensor, weight: Tensor, stride: Sequence[int], spreading: bool) -> Tensor:
    """Autocorrelation after a convolution: that of its inputs, at every stride-th lag.

    What two taps contribute to neighbouring results has the sign of the product of their weights and averages out.

    Args:
        variance: residual variance of each input channel, (group, in).
        lags: (group * in or 1, SIDE, SIDE).
        weight: (group, out, in, height, width).
        stride: of the window.
        spreading: whether strides spread the input: what lies between has no counterpart.
    """
    groups, outputs, inputs = weight.shape[:3]
    rows, columns = (_links(step, spreading).to(weight) for step in stride)
    share = weight.square().flatten(3).sum(-1) * variance[:, None]
    share = share / share.sum(-1, keepdim=True).clamp(min=1e-300)
    held = lags.expand(groups * inputs, SIDE, SIDE).reshape(groups, inputs, SIDE * SIDE)
    made = (share @ held).reshape(groups * outputs, SIDE, SIDE)
    return torch.einsum("ar,bs,ors->oab", rows, columns, made)


def _links(stride: int, spreading: bool) -> Tensor:
    """1 where a lag of the result and one of the input belong together."""
    result, source = (torch.arange(-REACH, REACH + 1) for _ in range(2))
    if spreading:
        return (result[:, None] == source[None] * stride).double()
    return (result[:, None] * stride == source[None]).double()


def averaged(lags: Tensor, matrices: Mapping[int, Tensor], dims: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Autocorrelation after a separable linear map of the two site dimensions, and the variance's factor.

    Args:
        lags: (channel or 1, SIDE, SIDE).
        matrices: (result, input) by dimension.
        dims: the two site dimensions.
    """
    tables = [_pairs(matrices[d]) if d in matrices else torch.eye(SIDE, dtype=lags.dtype) for d in dims]
    covariance = torch.einsum("crs,ar,bs->cab", lags, *tables)
    centre = covariance[:, REACH, REACH].clamp(min=0)
    return (covariance / centre.clamp(min=1e-300)[:, None, None]).clamp(-1, 1), centre


def _pairs(matrix: Tensor) -> Tensor:
    """Mean over results j of the sum of m[j, i] m[j + a, i + r], by result lag a and input lag r."""
    n, m = matrix.shape
    table = matrix.new_zeros(SIDE, SIDE)
    for a in range(-REACH, REACH + 1):
        if abs(a) >= n:
            continue
        first, second = matrix[max(-a, 0) : n - max(a, 0)], matrix[max(a, 0) : n - max(-a, 0)]
        for r in range(-REACH, REACH + 1):
            if abs(r) < m:
                left, right = first[:, max(-r, 0) : m - max(r, 0)], second[:, max(r, 0) : m - max(-r, 0)]
                table[a + REACH, r + REACH] = (left * right).sum(1).mean()
    return table


def mean_factor(lags: Tensor, sizes: Sequence[int]) -> Tensor:
    """Factor on the variance of a mean over all sites of a map of two dimensions, (channel,)."""
    shares = []
    for size in sizes:
        lag = torch.arange(-REACH, REACH + 1, dtype=lags.dtype).abs()
        shares.append((1 - lag / size).clamp(min=0))
    return torch.einsum("crs,r,s->c", lags, *shares).clamp(min=0)
