"""Linear systems with a symmetric matrix that is known by its products, with the residual of each solution.

Lanczos from the right side itself gives the solution in its Krylov space, as conjugate gradients do, and beside it what
those do not: the Ritz values, which show negative curvature, and the solution for every damping at no further
product, since a shift leaves the space as it is.

References:
    Paige, Saunders (1975), Solution of sparse indefinite systems of linear equations, SIAM J. Numer. Anal. 12; Parlett
    (1998), The symmetric eigenvalue problem, SIAM, chapter 13.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tightrope.instruments.lanczos import ROUNDING, Numbers, Product, Run

WHOLE = 256
"""Size up to which the matrix is made, once for all right sides."""
MEMORY = 2**31
"""Bytes that the bases of all runs may take."""
STRIDE = 8
"""Steps between two looks at the residual."""
CYCLES = 8
"""Times that a solution is refined: each solves for the residual of the last."""
LIFT = 2.0
"""Damping in units of the most negative curvature: the damped matrix then has no eigenvalue below its mirror image."""


@dataclass(frozen=True, eq=False)
class Solution:
    """x with (A + damping) x = b, as far as it was found.

    Attributes:
        vector: x.
        more: x for twice the damping; the same tensor where there is none.
        rest: b - (A + damping) x, from a product of its own.
        residual: its norm over that of b.
        converged: whether that is within the tolerance.
    """

    vector: Tensor = field(repr=False)
    more: Tensor = field(repr=False)
    rest: Tensor = field(repr=False)
    residual: float
    converged: bool


@dataclass(frozen=True, eq=False)
class System:
    """Solutions of several right sides with one matrix.

    Attributes:
        solutions: one for each right side.
        lowest: the smallest curvature that was met, an upper bound of the smallest eigenvalue.
        damping: what was added to the diagonal: as asked for, or more where negative curvature was met.
    """

    solutions: tuple[Solution, ...]
    lowest: float
    damping: float

    @property
    def negative(self) -> bool:
        """Whether negative curvature was met, and damped."""
        return self.lowest < 0 and self.damping > 0


Way = Callable[[Tensor, float], Tensor]
"""From a right side and a damping to an approximate solution."""


def solve(product: Product, sides: Sequence[Tensor], *, tolerance: float, products: int, damping: float) -> System:
    """Solve (A + damping) x = b for several b.

    Args:
        product: of A with a vector.
        sides: the right sides b.
        tolerance: relative residual to reach.
        products: budget for each right side.
        damping: added to the diagonal; raised to twice the most negative curvature where there is one.
    """
    if sides[0].numel() <= WHOLE:
        values, vectors = _whole(product, sides[0])
        noise = ROUNDING * torch.finfo(sides[0].dtype).eps * float(np.abs(values).max(initial=0.0))
        added = _damping(float(values[0]), noise, damping)
        way = _spectral(values, vectors, noise)
        return System(tuple(_refined(product, b, way, added, tolerance) for b in sides), float(values[0]), added)
    room = max(MEMORY // (sides[0].numel() * sides[0].element_size() * len(sides)), 2)
    runs = [_grown(product, b, tolerance, products, room, damping) for b in sides]
    lowest = min((float(run.values[0]) for run in runs if run is not None), default=0.0)
    noise = max((ROUNDING * run.precision * float(np.abs(run.values).max()) for run in runs if run), default=0.0)
    added = _damping(lowest, noise, damping)
    made = []
    for b, run in zip(sides, runs, strict=True):
        left = products - (run.steps if run else 0)
        made.append(_refined(product, b, _krylov(product, b, run, tolerance, left, room), added, tolerance))
    return System(tuple(made), lowest, added)


def _damping(lowest: float, noise: float, asked: float) -> float:
    return max(asked, LIFT * -lowest) if lowest < -noise else asked


def _refined(product: Product, b: Tensor, way: Way, damping: float, tolerance: float) -> Solution:
    """A solution, improved by solving for its residual until that is small or falls no further."""
    size = float(b.norm())
    x = way(b, damping)
    rest = b - product(x) - damping * x
    for _ in range(CYCLES):
        if float(rest.norm()) <= tolerance * size:
            break
        better = x + way(rest, damping)
        left = b - product(better) - damping * better
        if float(left.norm()) > 0.5 * float(rest.norm()):
            break
        x, rest = better, left
    residual = float(rest.norm()) / size if size > 0 else 0.0
    return Solution(x, way(b, 2 * damping) if damping > 0 else x, rest, residual, residual <= tolerance)


def _whole(product: Product, like: Tensor) -> tuple[Numbers, Numbers]:
    eye = torch.eye(like.numel(), dtype=like.dtype, device=like.device)
    columns = torch.stack([product(row) for row in eye]).double().cpu().numpy()
    values, vectors = np.linalg.eigh((columns + columns.T) / 2)
    return values, vectors


def _spectral(values: Numbers, vectors: Numbers, noise: float) -> Way:
    """The least solution: what rounding cannot tell from zero is left out."""

    def way(b: Tensor, damping: float) -> Tensor:
        along = vectors.T @ b.double().cpu().numpy()
        found = vectors @ _divided(along, values + damping, noise)
        return torch.as_tensor(found, dtype=b.dtype, device=b.device)

    return way


def _divided(top: Numbers, bottom: Numbers, noise: float) -> Numbers:
    told = np.abs(bottom) > noise
    return np.where(told, top / np.where(told, bottom, 1.0), 0.0)


def _grown(product: Product, b: Tensor, tolerance: float, products: int, room: int, damping: float) -> Run | None:
    """A run from b whose space holds the solution to the tolerance, as far as the budget goes; None for b = 0."""
    if not float(b.norm()) > 0:
        return None
    run = Run(product, b, b.new_empty((0, b.numel())), room)
    while True:
        run.grow(max(min(STRIDE + run.steps // STRIDE, products - run.steps), 1))
        last = _coordinates(run, _damping(float(run.values[0]), 0.0, damping))[-1]
        if run.full or run.steps >= products or abs(run.betas[-1] * last) <= tolerance / 2:
            return run


def _coordinates(run: Run, damping: float) -> Numbers:
    """The solution in the run's basis, for a right side of norm 1."""
    noise = ROUNDING * run.precision * float(np.abs(run.values).max())
    found: Numbers = run.mix @ _divided(run.mix[0], run.values + damping, noise)
    return found


def _krylov(product: Product, b: Tensor, run: Run | None, tolerance: float, left: int, room: int) -> Way:
    budget = [left]

    def way(side: Tensor, damping: float) -> Tensor:
        used = run
        if side is not b:
            if budget[0] <= 0:
                return torch.zeros_like(side)
            used = _grown(product, side, tolerance, budget[0], room, damping)
            budget[0] -= used.steps if used else 0
        if used is None:
            return torch.zeros_like(side)
        found = _coordinates(used, damping)
        weights = torch.as_tensor(found, dtype=side.dtype, device=side.device)
        return float(side.norm()) * (weights @ used.basis)

    return way


__all__ = ["Solution", "System", "solve"]
