"""Draws of weights: orthogonal where that is defined, and blind to the mean of what they read."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tightrope.checks.layers import Layer

ROUNDING = 1e-12
"""Squared mean of an activation below which it has none."""


def orthogonal(drawn: Tensor) -> Tensor:
    """The orthogonal factor of a normal matrix (rows, columns): orthonormal along the shorter side, Haar."""
    tall = drawn.shape[0] >= drawn.shape[1]
    q, r = torch.linalg.qr(drawn if tall else drawn.T)
    made: Tensor = q * torch.sign(r.diagonal())
    return made if tall else made.T


def draw(layer: Layer, shape: torch.Size, mean: Tensor | None, isometric: bool, generator: torch.Generator) -> Tensor:
    """Weights with E[w^2] = 1 / fan-in, in double precision.

    Args:
        layer: the use of the weight.
        shape: of the weight.
        mean: of each input channel; the weights are drawn orthogonal to it, so that nothing of it passes, also where
            padding cuts off a part. None: no such care.
        isometric: an odd convolution that keeps its resolution holds its orthogonal matrix in the centre of the
            kernel (delta-orthogonal: Xiao et al., Dynamical isometry and a mean field theory of CNNs, 2018).
        generator: source of the draws.
    """
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    op = layer.entry.op
    if op == "linear" and drawn.ndim == 2:
        drawn = _blind(drawn, mean)
        drawn = orthogonal(drawn)
    elif op.startswith("conv") and not op.startswith("conv_transpose"):
        centre: tuple[slice | int, ...] = (slice(None), slice(None), *(n // 2 for n in shape[2:]))
        drawn = _blind_taps(drawn, mean)
        if isometric:
            matrix = orthogonal(_blind(drawn[centre], mean))
            drawn = torch.zeros_like(drawn)
            drawn[centre] = matrix
    return drawn / drawn.square().mean().sqrt() / math.sqrt(layer.fan_in)


def _leans(mean: Tensor) -> bool:
    """Whether a mean is more than the rounding of a sum that vanishes."""
    return float(mean.square().mean()) > ROUNDING


def _blind(drawn: Tensor, mean: Tensor | None) -> Tensor:
    """Without the part along the mean; (out, in)."""
    if mean is None or mean.numel() != drawn.shape[1] or drawn.shape[1] < 2 or not _leans(mean):
        return drawn
    unit = mean / mean.norm()
    return drawn - torch.outer(drawn @ unit, unit)


def _blind_taps(drawn: Tensor, mean: Tensor | None) -> Tensor:
    """The same at each tap of a kernel; (out, in, *taps)."""
    if mean is None or mean.numel() != drawn.shape[1] or drawn.shape[1] < 2 or not _leans(mean):
        return drawn
    unit = mean / mean.norm()
    along = torch.einsum("oi...,i->o...", drawn, unit)
    made: Tensor = drawn - along.unsqueeze(1) * unit.reshape(1, -1, *(1,) * (drawn.ndim - 2))
    return made


__all__ = ["draw", "orthogonal"]
