"""Certified upper bounds of spectral norms: of matrices, of convolutions on the size they run on, of selections.

A convolution with zero padding on a grid of h points a dimension is a part of the circulant one on h + k - 1 points,
whose norm is the largest of those of its symbol at the discrete frequencies. So no frequency is missed, and the norm
of the reshaped kernel, which is no bound at all, is nowhere used. A stride of s is taken by splitting the grid into its
s phases, each an input channel of its own.

References:
    Sedghi, Gupta, Long (2019), The singular values of convolutional layers, ICLR, for the circulant case; Araujo,
    Negrevergne, Chevaleyre, Atif (2021), On Lipschitz regularization of convolutional layers using Toeplitz matrix
    theory, AAAI, for zero padding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

ROUNDING = 1e-10
"""Relative error that double precision may leave in a norm: sums of up to a million terms."""
FULL = 4096
"""Rows or columns up to which the norm of a matrix is computed from its Gram matrix."""
SYMBOLS = 2**22
"""Complex numbers of a part of the frequencies that are looked at together."""

Map = Callable[[Tensor], Tensor]


def matrix_norm(matrix: Tensor) -> float:
    """Upper bound of the spectral norm of a matrix in double precision, exact up to rounding if it is no huge one."""
    if matrix.numel() == 0:
        return 0.0
    if min(matrix.shape) > FULL:
        absolute = matrix.abs()
        schur = math.sqrt(float(absolute.sum(0).max() * absolute.sum(1).max()))
        return min(schur, float(matrix.norm())) * (1 + ROUNDING)
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    return math.sqrt(max(float(torch.linalg.eigvalsh(gram)[-1]), 0.0)) * (1 + ROUNDING)


def batch_norm_of(matrix: Tensor) -> Tensor:
    """The same for a stack of matrices; shape (samples,)."""
    gram = matrix @ matrix.mT if matrix.shape[1] <= matrix.shape[2] else matrix.mT @ matrix
    top: Tensor = torch.linalg.eigvalsh(gram)[:, -1].clamp(min=0).sqrt()
    return top * (1 + ROUNDING)


def conv_norm(
    kernel: Tensor, sizes: Sequence[int], stride: Sequence[int], dilation: Sequence[int], groups: int
) -> float:
    """Upper bound of the norm of a convolution with zero padding.

    Args:
        kernel: shape (outputs, inputs / groups, *window), in double precision.
        sizes: of the padded input; what is padded is zero, so a bound on all inputs of that size holds.
        stride, dilation, groups: of the convolution.
    """
    spread = _spread(kernel, dilation)
    phases = _phases(spread, stride)
    grid = [math.ceil(size / s) + k - 1 for size, s, k in zip(sizes, stride, phases.shape[2:], strict=True)]
    outputs = len(kernel) // groups
    largest = max(_symbol_norm(phases[g * outputs : (g + 1) * outputs], grid) for g in range(groups))
    return largest * (1 + ROUNDING)


def _symbol_norm(kernel: Tensor, grid: Sequence[int]) -> float:
    """Largest norm of a kernel's symbol over the frequencies of a grid."""
    halved = [*grid[:-1], grid[-1] // 2 + 1]  # the other half is conjugate
    angles = torch.cartesian_prod(*(2 * math.pi / n * torch.arange(h) for n, h in zip(grid, halved, strict=True)))
    places = torch.cartesian_prod(*(torch.arange(k) for k in kernel.shape[2:]))
    angles, places = (t.reshape(len(t), -1).to(kernel) for t in (angles, places))
    flat = kernel.flatten(2).to(torch.complex128)
    largest = 0.0
    for part in angles.split(max(SYMBOLS // (kernel.shape[0] * kernel.shape[1]), 1)):
        phase = places @ part.T
        blocks = (flat @ torch.complex(phase.cos(), -phase.sin())).permute(2, 0, 1)
        ceiling = blocks.abs().square().sum((1, 2)).sqrt()  # the Frobenius norm, so that few need their eigenvalues
        blocks = blocks[ceiling > largest]
        if len(blocks):
            gram = blocks @ blocks.mH if blocks.shape[1] <= blocks.shape[2] else blocks.mH @ blocks
            top = gram.real.max() if gram.shape[-1] == 1 else torch.linalg.eigvalsh(gram)[:, -1].max()
            largest = max(largest, math.sqrt(max(float(top), 0.0)))
    return largest


def _spread(kernel: Tensor, dilation: Sequence[int]) -> Tensor:
    window = [(k - 1) * d + 1 for k, d in zip(kernel.shape[2:], dilation, strict=True)]
    made = kernel.new_zeros((*kernel.shape[:2], *window))
    where: tuple[Any, ...] = (..., *(slice(None, None, d) for d in dilation))
    made[where] = kernel
    return made


def _phases(kernel: Tensor, stride: Sequence[int]) -> Tensor:
    """The kernel on the phases of the grid: stride 1, and as many times the channels as there are phases."""
    if all(s == 1 for s in stride):
        return kernel
    window = [math.ceil(k / s) for k, s in zip(kernel.shape[2:], stride, strict=True)]
    padded = kernel.new_zeros((*kernel.shape[:2], *(w * s for w, s in zip(window, stride, strict=True))))
    where: tuple[Any, ...] = (..., *(slice(0, k) for k in kernel.shape[2:]))
    padded[where] = kernel
    starts = itertools.product(*(range(s) for s in stride))
    parts = []
    for at in starts:
        phase: tuple[Any, ...] = (..., *(slice(a, None, s) for a, s in zip(at, stride, strict=True)))
        parts.append(padded[phase])
    return torch.cat(parts, 1)


def schur_norm(apply: Map, like: Tensor) -> float:
    """sqrt(largest row sum times largest column sum) of a map with no negative entry; exact for selections and means.

    Args:
        apply: the linear map.
        like: an input of it.
    """
    with torch.enable_grad():
        ones = torch.ones_like(like).requires_grad_()
        rows = apply(ones)
        (columns,) = torch.autograd.grad(rows.sum(), ones, materialize_grads=True)
    return math.sqrt(max(float(rows.max() * columns.max()), 0.0)) * (1 + ROUNDING)


def dense(apply: Map, like: Tensor, limit: int, numbers: int) -> Tensor | None:
    """The matrix of a linear map that acts on each row of a batch alike; None where it is too large.

    Args:
        apply: the map on a batch of the shape of `like`.
        like: its input; shape (batch, ...).
        limit: largest number of rows or columns, whichever is smaller, that is gone through.
        numbers: largest size of the matrix.

    Returns:
        shape (outputs, inputs), double precision.
    """
    batch, inputs = len(like), like[0].numel()
    with torch.no_grad():
        outputs = apply(torch.zeros_like(like)).numel() // batch
    if min(inputs, outputs) > limit or inputs * outputs > numbers:
        return None
    parts = []
    if inputs <= outputs:
        eye = torch.eye(inputs, dtype=like.dtype, device=like.device)
        for rows in eye.split(batch):
            fed = torch.zeros_like(like).flatten(1)
            fed[: len(rows)] = rows
            with torch.no_grad():
                parts.append(apply(fed.reshape(like.shape)).reshape(batch, -1)[: len(rows)])
        return torch.cat(parts).T.contiguous()
    with torch.enable_grad():
        zero = torch.zeros_like(like).requires_grad_()
        made = apply(zero).reshape(batch, -1)
        if not made.requires_grad:
            return made.new_zeros((outputs, inputs))
        for rows in torch.eye(outputs, dtype=like.dtype, device=like.device).split(batch):
            asked = torch.zeros_like(made)
            asked[: len(rows)] = rows
            (found,) = torch.autograd.grad(made, zero, asked, retain_graph=True, materialize_grads=True)
            parts.append(found.flatten(1)[: len(rows)])
    return torch.cat(parts)


__all__ = ["FULL", "ROUNDING", "batch_norm_of", "conv_norm", "dense", "matrix_norm", "schur_norm"]
