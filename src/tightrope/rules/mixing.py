"""Known linear maps along dimensions: averages over windows, interpolation, padding, cumulative sums."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tightrope.roles import Axes, Role
from tightrope.rules.lags import averaged
from tightrope.rules.sites import settled
from tightrope.rules.state import DTYPE, State

MAP_LIMIT = 40_000
"""Largest number of elements for which a law is resolved over sites."""


def window_average(inputs: int, windows: Sequence[range], edge: int | None = None, padding: int = 0) -> Tensor:
    """The matrix (result, input) that averages over windows.

    Args:
        inputs: length of the input.
        windows: what each result reads; positions outside hold zeros.
        edge: where the padded input ends, if padding counts in the average; None if it does not.
        padding: how far the padded input reaches in front.
    """
    matrix = torch.zeros(len(windows), inputs, dtype=DTYPE)
    for row, window in enumerate(windows):
        inside = [i for i in window if 0 <= i < inputs]
        count = len(inside) if edge is None else len([i for i in window if -padding <= i < edge])
        matrix[row, inside] = 1.0 / max(count, 1)
    return matrix


def mixed(x: State, matrices: Mapping[int, Tensor], axes: Axes) -> State:
    """The law of a separable linear map along dimensions.

    What varies independently along a dimension goes through the squares of the matrix, what is shared along it
    through the squares of its row sums.

    Args:
        x: law of the input.
        matrices: (result, input) by dimension.
        axes: axes of the result.
    """
    independent = {
        "mean": frozenset[int](),
        "constant": _dims(x, matrices, Role.CHANNEL),
        "sample": _dims(x, matrices, Role.CHANNEL),
        "site": _dims(x, matrices, Role.CHANNEL, Role.SITE),
        "residual": _dims(x, matrices, Role.CHANNEL, Role.SITE),
    }
    fields: dict[str, Any] = dict(zip(("mean", "constant", "sample", "site", "residual"), x.fields, strict=True))
    size = math.prod(axes.shape) // max(axes.count(Role.SAMPLE), 1)
    for dim, matrix in matrices.items():
        resolved = size <= MAP_LIMIT or any(f.shape[dim] > 1 for f in fields.values())
        even = _even(matrix)
        for name, field in fields.items():
            fields[name] = _along(field, dim, matrix, name, dim in independent[name], resolved and not even)
    lags = None
    flat = x.residual.ndim == 4 and x.residual.shape[2:] == (1, 1) and fields["residual"].shape[2:] == (1, 1)
    if x.lags is not None and flat:
        lags, factor = averaged(x.lags, matrices, (2, 3))
        fields["residual"] = x.residual * factor.reshape(1, -1, 1, 1)
    return settled(State(axes, **fields, width=x.width, lags=lags))


def _dims(x: State, matrices: Mapping[int, Tensor], *roles: Role) -> frozenset[int]:
    return frozenset(d for d in matrices if x.axes.role(d) in roles)


def _even(matrix: Tensor) -> bool:
    """Whether all results have the same row sum and the same sum of squares."""
    sums, squares = matrix.sum(1), matrix.square().sum(1)
    return bool((sums - sums[0]).abs().max() < 1e-12 and (squares - squares[0]).abs().max() < 1e-12)


def _along(field: Tensor, dim: int, matrix: Tensor, name: str, independent: bool, resolve: bool) -> Tensor:
    """One field through one dimension's matrix."""
    if field.shape[dim] > 1:
        moved = torch.movedim(field, dim, -1)
        if name == "mean":
            made = moved @ matrix.T
        elif independent:
            made = moved @ matrix.square().T
        else:
            made = (moved.abs().sqrt() @ matrix.T).square() * moved.sum(-1, keepdim=True).sign()
        return torch.movedim(made, -1, dim)
    sums = matrix.sum(1)
    if name != "mean":
        sums = matrix.square().sum(1) if independent else sums.square()
    if not resolve:
        sums = sums.mean(0, keepdim=True)
    return field * sums.reshape([-1 if d == dim else 1 for d in range(field.ndim)])
