"""The separator of largest margin, exactly, with a certificate.

    min |w|^2 / 2  with  Z w >= 1                     (rows of Z: samples, turned to their own side)

is a least-distance problem, and that is non-negative least squares: with u >= 0 the nearest point of [Z 1]' u to
(0, 1), the residual r gives w = r[:-1] / -r[-1]; where the residual is zero, no w exists.

References:
    Lawson, Hanson (1974), Solving least squares problems, Prentice-Hall, chapter 23; Cortes, Vapnik (1995),
    Support-vector networks, Machine Learning 20.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

ROUNDING = 1e-11
"""Slope below which a constraint is no longer worth adding, relative to its row."""
MISSED = 1e-7
"""Relative residual below which the origin lies in the hull of the rows: nothing separates."""


@dataclass(frozen=True, eq=False)
class Separator:
    """The largest margin.

    Attributes:
        weight: w with Z w >= 1 and the least norm; empty where nothing separates.
        margin: min Z w / |w|, a margin that is reached; 0 where nothing separates.
        bound: no margin is larger.
        gap: of primal and dual value, relative to the primal one.
        support: indices of the rows that hold it.
    """

    weight: Numbers = field(repr=False)
    margin: float
    bound: float
    gap: float
    support: tuple[int, ...]

    @property
    def separable(self) -> bool:
        """Whether every row can be on its side."""
        return len(self.weight) > 0

    @property
    def angle(self) -> float:
        """Largest angle, in radians, between `weight` and the true solution.

        |w|^2 / 2 is strongly convex: at a feasible w with a gap e, |w - w*|^2 <= 2 e, and e is at most gap |w|^2 / 2.
        """
        return math.asin(min(math.sqrt(self.gap), 1.0))


def separator(rows: Numbers) -> Separator:
    """The largest margin of rows that should all have a positive product with one vector; shape (n, d)."""
    scale = float(np.linalg.norm(rows, axis=1).mean()) or 1.0
    matrix = np.concatenate([rows.T / scale, np.ones((1, len(rows)))])
    target = np.zeros(len(matrix))
    target[-1] = 1.0
    u = _nonnegative(matrix, target)
    rest = matrix @ u - target
    if -rest[-1] <= MISSED or not (rows @ -(rest[:-1] / rest[-1])).min() > 0:
        return Separator(np.empty(0), 0.0, _hull(rows, u), 0.0, tuple(np.flatnonzero(u).tolist()))
    weight = -(rest[:-1] / rest[-1]) / scale
    weight = weight / float((rows @ weight).min())
    margin, bound = 1 / float(np.linalg.norm(weight)), _hull(rows, u)
    return Separator(
        weight, margin, max(bound, margin), max(1 - (margin / bound) ** 2, 0.0), tuple(np.flatnonzero(u).tolist())
    )


def _hull(rows: Numbers, u: Numbers) -> float:
    """The norm of a point of the rows' hull: no margin is larger than that, whatever u is."""
    return float(np.linalg.norm(u @ rows) / u.sum()) if u.sum() > 0 else math.inf


def _nonnegative(matrix: Numbers, target: Numbers) -> Numbers:
    """argmin |matrix u - target| over u >= 0, by Lawson's and Hanson's active sets."""
    count = matrix.shape[1]
    u, active = np.zeros(count), np.zeros(count, dtype=bool)
    norms = np.linalg.norm(matrix, axis=0)
    for _ in range(3 * count + 30):
        slope = matrix.T @ (target - matrix @ u)
        slope[active] = -np.inf
        new = int(np.argmax(slope / norms))
        if slope[new] <= ROUNDING * norms[new]:
            break
        active[new] = True
        while True:
            trial = np.zeros(count)
            trial[active] = np.linalg.lstsq(matrix[:, active], target, rcond=None)[0]
            below = active & (trial <= 0)
            if not below.any():
                break
            with np.errstate(divide="ignore", invalid="ignore"):
                steps = np.where(below, u / (u - trial), np.inf)
            u = u + float(steps.min()) * (trial - u)
            active &= u > 1e-15 * max(float(u.max()), 1e-300)
            u[~active] = 0.0
        if np.array_equal(trial, u):
            break
        u = trial
    return u


__all__ = ["Separator", "separator"]
