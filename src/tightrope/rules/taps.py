"""Which taps of a sliding window fall inside its input: borders, strides and phases, one dimension at a time.

A convolution pads with zeros, so a result near the border sums fewer taps; a transposed one with a stride sums a
number of taps that depends on the phase. The results of one dimension fall into a few classes with equal taps, and
what holds for all classes is enough to carry a law: no map has to be filled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from tightrope.rules.state import DTYPE


@dataclass(frozen=True)
class Classes:
    """Results along one dimension, grouped by the taps that reach their input.

    Attributes:
        taps: 1 where a tap falls inside, (class, tap).
        share: fraction of the results in each class, (class,).
        index: class of each result, (result,).
    """

    taps: Tensor
    share: Tensor
    index: Tensor

    @property
    def fraction(self) -> Tensor:
        """Fraction of the results for which each tap falls inside, (tap,)."""
        return self.share @ self.taps


@lru_cache(maxsize=4096)
def sliding(inputs: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int) -> Classes:
    """Result j reads input j * stride - padding + t * dilation through tap t, or nothing outside."""
    reads = torch.arange(outputs)[:, None] * stride - padding + torch.arange(kernel)[None] * dilation
    return classes(((reads >= 0) & (reads < inputs)).to(DTYPE))


@lru_cache(maxsize=4096)
def spreading(inputs: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int) -> Classes:
    """The transpose: result j hears input i through tap t where j = i * stride - padding + t * dilation."""
    source = torch.arange(outputs)[:, None] + padding - torch.arange(kernel)[None] * dilation
    heard = (source % stride == 0) & (source >= 0) & (source < inputs * stride)
    return classes(heard.to(DTYPE))


@lru_cache(maxsize=1024)
def links(inputs: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int) -> Tensor:
    """Number of taps through which result j of a sliding window reads input i, (result, input)."""
    reads = torch.arange(outputs)[:, None] * stride - padding + torch.arange(kernel)[None] * dilation
    return (reads[:, :, None] == torch.arange(inputs)).sum(1).to(DTYPE)


def classes(taps: Tensor) -> Classes:
    """Group equal rows of a (result, tap) table."""
    rows, index, counts = torch.unique(taps, dim=0, return_inverse=True, return_counts=True)
    return Classes(rows, counts.to(DTYPE) / taps.shape[0], index)


def per_class(coefficients: Tensor, table: Sequence[Classes]) -> Tensor:
    """Sum coefficients over the taps of each class: (..., taps per dimension) to (..., class per dimension)."""
    first = coefficients.ndim - len(table)
    for place, dim in enumerate(table):
        coefficients = torch.movedim(torch.movedim(coefficients, first + place, -1) @ dim.taps.T, -1, first + place)
    return coefficients


def joint(table: Sequence[Classes]) -> tuple[Tensor, Tensor]:
    """Classes of all dimensions together: (tap, class) and (class,), both flattened."""
    taps, share = torch.ones(1, 1, dtype=DTYPE), torch.ones(1, dtype=DTYPE)
    for dim in table:
        taps, share = torch.kron(taps, dim.taps.T.contiguous()), torch.kron(share, dim.share)
    return taps, share


def average(values: Tensor, table: Sequence[Classes]) -> Tensor:
    """Mean over the results: (..., class per dimension) to (...)."""
    for dim in reversed(table):
        values = values @ dim.share
    return values


def resolve(values: Tensor, table: Sequence[Classes]) -> Tensor:
    """One value a result: (..., class per dimension) to (..., result per dimension); one class stays one."""
    first = values.ndim - len(table)
    for place, dim in enumerate(table):
        if values.shape[first + place] == 1:
            continue
        values = values.index_select(first + place, dim.index)
    return values
