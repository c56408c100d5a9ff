"""Softmax over a dimension of random scores: rows of weights that sum to 1."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from tightrope.rules.expectation import legendre
from tightrope.rules.registry import Call, Gradients, rule
from tightrope.rules.state import DTYPE, State
from tightrope.tape.tape import softmax_dim

BUDGET = 1 << 22
"""Numbers drawn for one softmax: draws times scores."""
MOST, LEAST = 256, 4
"""Draws of a row; the law of the whole needs few where there are many rows."""


@dataclass(frozen=True)
class Rows:
    """Moments of the weights in rows of softmax(x), x_j ~ N(mean_j, variance_j) independent within a row.

    Attributes:
        mean: E[A_ij].
        second: E[A_ij^2].
        slope: E[A_ij^2 (1 - 2 A_ij + sum_k A_ik^2)], the energy of the weight's derivative with respect to
            independent things weighed: A_ij (v_j - sum_k A_ik v_k).
    """

    mean: Tensor
    second: Tensor
    slope: Tensor

    @property
    def variance(self) -> Tensor:
        """Var(A_ij)."""
        return (self.second - self.mean.square()).clamp(min=0)


def rows(mean: Tensor, variance: Tensor) -> Rows:
    """Moments of softmax weights over the last dimension, by antithetic draws that are always the same.

    Args:
        mean: of the scores, -inf where masked.
        variance: of the scores within their row (what a whole row shares cancels).
    """
    mean, variance = torch.broadcast_tensors(mean, variance)
    if not bool((variance > 0).any()):
        plain = torch.nan_to_num(torch.softmax(mean, -1))
        return Rows(plain, plain.square(), _slope(plain))
    draws = max(LEAST, min(MOST, BUDGET // max(mean.numel(), 1))) // 2
    generator = torch.Generator().manual_seed(20260103)
    std = variance.clamp(min=0).sqrt()
    total, square, slope = torch.zeros_like(mean), torch.zeros_like(mean), torch.zeros_like(mean)
    for _ in range(draws):
        noise = std * torch.randn(mean.shape, generator=generator, dtype=DTYPE)
        for sign in (1.0, -1.0):
            weight = torch.nan_to_num(torch.softmax(mean + sign * noise, -1))
            total += weight
            square += weight.square()
            slope += _slope(weight)
    return Rows(total / (2 * draws), square / (2 * draws), slope / (2 * draws))


def _slope(weight: Tensor) -> Tensor:
    square = weight.square()
    return square * (1 - 2 * weight + square.sum(-1, keepdim=True))


@lru_cache(maxsize=512)
def participation(length: int, variance: float) -> float:
    """E[sum_j A_j^2] for a row of independent scores of one law: 1/length when flat, 1 when hard.

    From 1/Z^2 = integral of t exp(-t Z): length * integral of t E[e^2s exp(-t e^s)] E[exp(-t e^s)]^(length - 1) dt,
    on a grid of ln t.
    """
    if length <= 1:
        return 1.0
    std = max(variance, 0.0) ** 0.5
    if std < 1e-6:
        return 1.0 / length
    x, w = (points.unsqueeze(0) for points in legendre(96 if std < 3 else 768))
    s = 8.5 * std * x
    weight = w * torch.exp(-(8.5 * x).square() / 2)
    weight = weight / weight.sum()
    low, high = -math.log(length) - 8.5 * std - 12.0, 8.5 * std + 5.0
    grid = torch.linspace(low, high, 2048, dtype=DTYPE).unsqueeze(1)
    inner = torch.exp(grid) * torch.exp(s)
    alone = (weight * torch.exp(-inner)).sum(1).clamp(min=1e-300)
    pair = (weight * torch.exp(2 * s - inner)).sum(1)
    integrand = length * torch.exp(2 * grid.squeeze(1)) * pair * alone ** (length - 1)
    return float(min(max(float(torch.trapezoid(integrand, grid.squeeze(1))), 1.0 / length), 1.0))


@rule("softmax")
def softmax(call: Call) -> State:
    """Weights along a dimension; what all scores of a row share has no effect."""
    x, dim = call.input, _dim(call)
    length = x.axes.shape[dim]
    if x.shape[dim] != length:
        raise NotImplementedError("softmax over samples")
    if all(f.shape[dim] == 1 for f in x.fields):
        share = participation(length, float((x.residual + x.site).mean()))
        return State.of(call.axes[0], 1.0 / length, residual=max(share / length - 1.0 / length**2, 0.0), width=x.width)
    moved = x.map(lambda f: f.movedim(dim, -1))
    found = rows(moved.mean, moved.residual + moved.site)
    back = [f.movedim(-1, dim) for f in (found.mean, found.variance)]
    call.saved["second"] = found.second.movedim(-1, dim)
    return State.of(call.axes[0], back[0], residual=back[1], width=x.width)


@softmax.gradient
def _(call: Call, upstream: State) -> Gradients:
    """dx_j = A_j (g_j - sum_k A_k g_k): what the row's gradients share cancels."""
    number, dim, length = call.id(0, "input"), _dim(call), call.input.axes.shape[_dim(call)]
    assert number is not None
    second = call.saved.get("second", call.output.second_moment)
    weight = call.output.mean
    if weight.shape[dim] == 1:
        inner = upstream.mean * 0
        spread = upstream.residual + upstream.site
    else:
        inner = (weight * upstream.mean).sum(dim, keepdim=True)
        if upstream.mean.shape[dim] == 1:
            inner = upstream.mean
        spread = upstream.residual + upstream.site
    own = 1 - 2 * weight + second.sum(dim, keepdim=True) if weight.shape[dim] > 1 else 1 - 2 / length + second * length
    centred = upstream.mean - inner
    made = State.of(
        call.input.axes, weight * centred,
        residual=second * spread * own.clamp(min=0) + (second - weight.square()).clamp(min=0) * centred.square(),
        width=upstream.width,
    )  # fmt: skip
    return {number: replace(made, axes=call.input.axes)}


def _dim(call: Call) -> int:
    return softmax_dim(call.argument(1, "dim", -1), len(call.input.axes.dims))


__all__ = ["Rows", "participation", "rows", "softmax"]
