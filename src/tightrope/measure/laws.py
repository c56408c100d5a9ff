"""Estimate the law of a real tensor, with its standard error."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tightrope.law import Law
from tightrope.roles import Axes, Role

TINY, HUGE = 1e-30, 1e30
"""Variances between which single precision is enough."""


def arrange(x: Tensor, axes: Axes) -> Tensor:
    """The tensor as (sample, site, channel)."""
    layout = [axis for dim in axes.dims for axis in dim]
    x = x.reshape([axis.size for axis in layout])
    order: list[int] = []
    shape: list[int] = []
    for role in (Role.SAMPLE, Role.SITE, Role.CHANNEL):
        places = [i for i, axis in enumerate(layout) if axis.role is role]
        order += places
        shape.append(math.prod(layout[i].size for i in places))
    return x.permute(order).reshape(shape)


def estimate(x: Tensor, axes: Axes) -> Law:
    """Mean and variance components of a tensor.

    The components are the unbiased estimates of a two-way layout (sample by site, within channel), scaled
    so that they add up to the variance over all elements. `error` is the standard error of ln(std), from
    the spread of the samples' second moments.

    Args:
        x: real floating-point tensor of `axes.shape`.
        axes: roles of its dimensions.
    """
    if x.numel() == 0:
        return Law(0.0)
    x = arrange(x.float() if x.dtype in (torch.float16, torch.bfloat16) else x, axes)
    law = _components(x)
    if x.dtype is torch.float32 and not TINY < law.variance < HUGE:
        law = _components(x.double())  # squares leave the range of single precision long before the numbers do
    return law


def _components(x: Tensor) -> Law:
    """The law of a (sample, site, channel) tensor, in its own precision."""
    n, s, k = x.shape
    of_samples = x.mean(1) if s > 1 else x[:, 0]
    channel = of_samples.mean(0)
    mean = channel.mean()
    within = torch.linalg.vector_norm(x - channel, dim=(1, 2)).double().square() / (s * k)
    inner = float(within.mean())
    constant = _mean_square(channel - mean)
    total = constant + inner
    if not math.isfinite(total):
        return Law(float(mean), residual=total)
    error = _error(within, n, s * k, inner, total)
    if n == 1:
        return Law(float(mean), constant, 0.0, inner if s > 1 else 0.0, 0.0 if s > 1 else inner, error)
    if s == 1:
        return Law(float(mean), constant, inner, 0.0, 0.0, error)
    # Reduced in the order of the memory, which is many times faster for images (channel first).
    of_sites = x.mean(0) if x.stride(1) >= x.stride(2) else x.transpose(1, 2).mean(0).T
    between_samples, between_sites = _mean_square(of_samples - channel), _mean_square(of_sites - channel)
    rest = max(inner - between_samples - between_sites, 0.0)
    residual = rest * n * s / ((n - 1) * (s - 1))
    sample = max(between_samples * n / (n - 1) - residual / s, 0.0)
    site = max(between_sites * s / (s - 1) - residual / n, 0.0)
    scale = inner / (residual + sample + site) if residual + sample + site > 0 else 0.0
    return Law(float(mean), constant, sample * scale, site * scale, residual * scale, error)


def _mean_square(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x)) ** 2 / x.numel()


def _error(within: Tensor, n: int, elements: int, inner: float, total: float) -> float:
    """Standard error of ln(std): samples are the independent units."""
    if total <= 0 or inner <= 0:
        return 0.0
    if n == 1:
        return 0.5 * math.sqrt(2.0 / max(elements, 1))
    deviation = float(within.std()) / math.sqrt(n)
    return 0.5 * max(deviation / total, math.sqrt(2.0 / (n * elements)) * inner / total)
