"""Kernels of attention: weights of the Nadaraya-Watson estimator, from queries and keys."""

from __future__ import annotations

import math

import torch
from torch import Tensor

EXPONENTIAL = ("exponential", "gaussian")
"""Kernels whose logarithm is linear in the inner product."""
COMPACT = {"epanechnikov": 1.0, "biweight": 2.0, "triweight": 3.0}
"""Kernels (1 - u^2)^p that are zero beyond one bandwidth, with their power."""
KERNELS = (*EXPONENTIAL, "cauchy", *COMPACT)
REACH = 2.0
"""Bandwidth of a compact kernel over sqrt(d): two standard normal vectors lie sqrt(2 d) apart, 0.71 of it."""


def natural_bandwidth(kernel: str, width: int) -> float:
    """The bandwidth that suits standard normal queries and keys: d^(1/4), which is torch's scale, and 2 sqrt(d) for
    a kernel of compact support.
    """
    return REACH * math.sqrt(width) if kernel in COMPACT else math.sqrt(math.sqrt(width))


def weights(query: Tensor, key: Tensor, kernel: str, bandwidth: Tensor | float, mask: Tensor | None = None) -> Tensor:
    """Normalised kernel weights K(q, k) / sum K(q, k'); shape (..., L, S). Rows without a key are zero.

    Args:
        query: (..., L, d).
        key: (..., S, d).
        kernel: one of `KERNELS`.
        bandwidth: h, broadcast against (..., L, S).
        mask: boolean, True where a key takes part, or a float that is added to the kernel's logarithm.
    """
    taken, added = mask, None
    if mask is not None and mask.dtype is not torch.bool:
        taken = mask != -math.inf
        added = mask.masked_fill(~taken, 0.0)
    found, within = _logarithm(query, key, kernel, bandwidth)
    found = found if added is None else found + added
    if taken is not None:  # the lowest number hides a key as -inf does, without making a row that hides every key NaN
        found = found.masked_fill(~taken, torch.finfo(found.dtype).min)
    if within is not None:
        taken = within if taken is None else taken & within
    rows = torch.softmax(found, -1)
    return rows if taken is None else rows.masked_fill(~taken, 0.0)


def _logarithm(query: Tensor, key: Tensor, kernel: str, bandwidth: Tensor | float) -> tuple[Tensor, Tensor | None]:
    """ln K, up to a term that is the same for all keys of a query, and where K is not zero."""
    inner = torch.matmul(query, key.transpose(-2, -1))
    square = bandwidth * bandwidth
    if kernel == "exponential":
        return inner / square, None
    other = key.square().sum(-1).unsqueeze(-2)
    if kernel == "gaussian":  # |q|^2 is the same for all keys
        return (inner - 0.5 * other) / square, None
    u = (query.square().sum(-1, keepdim=True) + other - 2 * inner).clamp(min=0) / square
    if kernel == "cauchy":
        return -torch.log1p(u), None
    return COMPACT[kernel] * (1 - u).clamp(min=torch.finfo(u.dtype).tiny).log(), u < 1


__all__ = ["KERNELS", "natural_bandwidth", "weights"]
