"""Eigenvalues of a symmetric matrix that is known by its products, with bounds of what was found and what was missed.

A Lanczos run from one random vector finds one eigenvector of each eigenvalue, and never says that it has found them
all: copies of a multiple eigenvalue and neighbours in a cluster stay hidden. So what has converged is locked away and
runs from new random vectors are made on the rest, until the last one certifies that the rest holds nothing larger.

The certificate: let p_0 .. p_m be the orthonormal polynomials of a run, and u an eigenvector with an eigenvalue t
above all Ritz values. The start vector's weight on u is at most 1 / sum p_j(t)^2 (Christoffel's function), a number
that the run itself provides; that a random direction in d dimensions has a weight below s^2 on a given u has
probability below s sqrt(2 d / pi). So eigenvalues above t are excluded up to that probability.

References:
    Parlett (1998), The symmetric eigenvalue problem, SIAM, chapters 11 and 13; van Dorsselaer, Hochstenbach, van der
    Vorst (2000), Computing probabilistic bounds for extreme eigenvalues of symmetric matrices with the Lanczos method,
    SIAM J. Matrix Anal. Appl. 22; Li, Li (2005), A note on eigenvalues of perturbed Hermitian matrices, Linear Algebra
    Appl. 395, for the bound that is quadratic in the residual.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Product = Callable[[Tensor], Tensor]
Numbers = NDArray[np.float64]

RISK = 1e-6
"""Probability that a run's start vector hides an eigenvalue above the certified bound."""
STRIDE = 4
"""Steps between two looks at the Ritz values."""
ROUNDING = 16.0
"""Units in the last place of the spectral norm that a product may be off: sums of thousands of terms round to a few."""
SHARE = 0.25
"""Part of the tolerance that residuals, ties and the certificate may each use up."""


class Run:
    """Lanczos from one vector with full reorthogonalisation, in the complement of what is locked.

    Attributes:
        basis: orthonormal vectors, shape (steps, n).
        values, weights, residuals: Ritz values, rising; weight of the start vector on each; ||A x - value x|| in the
            complement.
        mix: the Ritz vectors in the basis, one a column.
        complete: the space of the start vector is exhausted, and the Ritz values are eigenvalues.
    """

    def __init__(self, product: Product, start: Tensor, locked: Tensor, capacity: int) -> None:
        self._product, self._locked = product, locked
        self.dimension = start.numel() - len(locked)
        self._store = start.new_empty((min(capacity, self.dimension), start.numel()))
        self._next = _cleared(_cleared(start / start.norm(), locked), locked)
        self._next /= self._next.norm()
        self.alphas: list[float] = []
        self.betas: list[float] = []
        self.complete = False
        self.precision = torch.finfo(start.dtype).eps

    @property
    def steps(self) -> int:
        return len(self.alphas)

    @property
    def full(self) -> bool:
        """Whether no further step can be made."""
        return self.complete or self.steps == len(self._store)

    @property
    def basis(self) -> Tensor:
        return self._store[: self.steps]

    def grow(self, steps: int) -> None:
        """Make more steps, as far as there is room."""
        for _ in range(steps):
            if self.full:
                break
            self._step()
        diagonal, off = np.array(self.alphas), np.array(self.betas[:-1])
        values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))
        self.values, self.mix = values, vectors
        self.weights = vectors[0] ** 2
        self.residuals = np.abs(self.betas[-1] * vectors[-1])

    def _step(self) -> None:
        here = self._next
        self._store[self.steps] = here
        made = self._product(here)
        alpha = float(here.double() @ made.double())
        made = made - alpha * here
        if self.betas:
            made -= self.betas[-1] * self._store[self.steps - 1]
        self.alphas.append(alpha)
        before = float(made.norm())
        made = _cleared(_cleared(made, self._locked), self.basis)
        if float(made.norm()) < before / math.sqrt(2):  # what is left is mostly rounding: once more is enough
            made = _cleared(_cleared(made, self._locked), self.basis)
        beta = float(made.norm())
        scale = max(map(abs, (*self.alphas, *self.betas, beta)))
        if self.steps == self.dimension or beta <= ROUNDING * self.precision * scale:
            beta, self.complete = 0.0, True
        else:
            self._next = made / beta
        self.betas.append(beta)

    def vectors(self, which: list[int]) -> Tensor:
        """Ritz vectors, shape (count, n)."""
        mix = torch.as_tensor(self.mix[:, which].T.copy(), dtype=self._store.dtype, device=self._store.device)
        return mix @ self.basis

    def ceiling(self, risk: float = RISK) -> float:
        """No eigenvalue of the complement lies above it, up to a probability `risk`."""
        top = float(self.values[-1])
        if self.complete:
            return top
        asked = self._asked(risk)
        width = max(float(self.values[-1] - self.values[0]), self.betas[-1])
        low, high = 0.0, width
        while self._log_kernel(top + high) < asked:
            low, high = high, 2 * high
        for _ in range(60):  # halvings to the last bit of a double
            middle = (low + high) / 2
            low, high = (low, middle) if self._log_kernel(top + middle) >= asked else (middle, high)
        return top + high

    def floor(self, risk: float = RISK) -> float:
        """No eigenvalue of the complement lies below it, up to a probability `risk`."""
        return -self._mirrored().ceiling(risk)

    def _mirrored(self) -> Run:
        other = object.__new__(Run)
        other.__dict__.update(self.__dict__, alphas=[-a for a in self.alphas], values=-self.values[::-1])
        return other

    def excludes(self, level: float, risk: float = RISK) -> bool:
        """Whether no eigenvalue of the complement lies above a level, up to a probability `risk`."""
        if self.complete or level <= self.values[-1]:
            return bool(level >= self.values[-1])
        return self._log_kernel(level) >= self._asked(risk)

    def _asked(self, risk: float) -> float:
        return 2 * math.log(1 / risk) + math.log(2 * self.dimension / math.pi)

    def _log_kernel(self, t: float) -> float:
        """Logarithm of sum p_j(t)^2 for t above all Ritz values, where all p_j are positive."""
        log = total = 0.0
        ratio, last = math.inf, 0.0
        for alpha, beta in zip(self.alphas, self.betas, strict=True):
            ratio = (t - alpha - last / ratio) / beta
            if ratio <= 0:  # t is a Ritz value to rounding
                return 0.0
            last = beta
            log += 2 * math.log(ratio)
            total = max(total, log) + math.log1p(math.exp(-abs(total - log)))
        return total


def _cleared(vector: Tensor, basis: Tensor) -> Tensor:
    """The part of a vector that is orthogonal to orthonormal rows."""
    return vector - (basis @ vector) @ basis if len(basis) else vector


@dataclass(frozen=True)
class Extremes:
    """The largest eigenvalues, and how far each may be off.

    Attributes:
        values: largest first.
        residuals: ||A x - value x|| of each, from a product of its own.
        errors: bound of |value - eigenvalue|, for the eigenvalue of the same rank: what residuals, what the certificate
            leaves open and rounding allow together.
        smallest, smallest_error: an upper bound of the smallest eigenvalue, and how far below it that may be.
        rounding: what rounding may do to an eigenvalue.
        coupling: norm of what the matrix does between `locked` and its complement.
        locked: orthonormal vectors, shape (count, n).
        atoms: the values that belong to them, largest first; `values` and perhaps some more.
        run: the one that certifies, on the complement of all that is locked; None without one.
        every: all eigenvalues, rising, where the whole matrix was made.
    """

    values: Numbers
    residuals: Numbers
    errors: Numbers
    smallest: float
    smallest_error: float
    rounding: float
    coupling: float
    locked: Tensor = field(repr=False)
    atoms: Numbers = field(repr=False)
    run: Run | None = field(default=None, repr=False)
    every: Numbers | None = field(default=None, repr=False)


def whole(product: Product, like: Tensor, top: int) -> Extremes:
    """All eigenvalues of a small matrix from its columns, with Weyl's bound of what asymmetry shows of rounding."""
    eye = torch.eye(like.numel(), dtype=like.dtype, device=like.device)
    columns = torch.stack([product(row) for row in eye]).double().cpu().numpy()
    values, vectors = np.linalg.eigh((columns + columns.T) / 2)
    norm = float(np.abs(values).max())
    rounding = _rounding(norm, float(np.linalg.norm(columns - columns.T) / 2), like.dtype)
    ahead = values[::-1][:top].copy()
    chosen = vectors[:, ::-1][:, :top]
    residuals = np.linalg.norm(columns.T @ chosen - chosen * ahead, axis=0)
    locked = torch.as_tensor(chosen.T.copy(), dtype=like.dtype, device=like.device)
    return Extremes(
        ahead, residuals, np.full(len(ahead), rounding), float(values[0]), rounding, rounding, 0.0, locked, ahead,
        every=values,
    )  # fmt: skip


def extremes(
    product: Product, like: Tensor, top: int, *, tolerance: float, steps: int, products: int, capacity: int,
    chance: torch.Generator,
) -> Extremes:  # fmt: skip
    """The largest eigenvalues of a symmetric matrix, none missed up to `RISK`.

    Args:
        product: of the matrix with a vector.
        like: a vector of the right length, type and device.
        top: how many.
        tolerance: relative error to reach.
        steps: of the last run at least, which bounds the smallest eigenvalue too.
        products: budget of products; where it ends, `errors` say how far it came.
        capacity: vectors that there is memory for.
        chance: draws the start vectors.
    """
    locked, held = like.new_empty((0, like.numel())), np.empty(0)
    budget, lowest = max(products - top, 1), math.inf
    while True:
        run = Run(product, drawn(like, chance), locked, capacity)
        while True:
            stride = min(max(STRIDE, run.steps // STRIDE), budget)
            run.grow(stride)
            budget -= stride
            new, ready = _found(run, held, top, tolerance)
            if (ready and (len(new) or run.steps >= steps)) or run.full or budget <= 0:
                break
        lowest = min(lowest, float(run.values[0]))
        if not len(new):
            return _certified(product, run, locked, top, lowest)
        held = np.concatenate([held, run.values[new]])
        locked = torch.cat([locked, run.vectors(new)])
        if len(locked) == like.numel() or budget <= 0:
            return _certified(product, None, locked, top, lowest)


def drawn(like: Tensor, chance: torch.Generator) -> Tensor:
    """A vector of random direction, the same on every device."""
    return torch.randn(like.shape, dtype=like.dtype, generator=chance).to(like.device)


def _found(run: Run, held: Numbers, top: int, tolerance: float) -> tuple[list[int], bool]:
    """Ritz values that are among the largest and not locked, and whether the run has done its work.

    With new values that is that they are exact enough to be locked, without that nothing larger is left.
    """
    order = [int(i) for i in np.argsort(run.values)[::-1]]
    noise = ROUNDING * run.precision * max(float(np.abs(run.values).max()), float(np.abs(held).max(initial=0.0)))
    if len(held) >= top:
        last = float(np.sort(held)[::-1][top - 1])
        level = last + max(SHARE * tolerance * abs(last), noise)
        new = [i for i in order if run.values[i] > level]
        if not new:
            return new, run.excludes(level)
    else:
        both = np.sort(np.concatenate([held, run.values]))[::-1]
        new = [i for i in order if run.values[i] >= both[min(top, len(both)) - 1]][:top]
        if len(both) < top:
            return new, run.complete
    residual = float(np.linalg.norm(run.residuals[new]))
    return new, run.complete or residual <= max(SHARE * tolerance * float(np.abs(run.values[new]).min()), noise)


def _bound(gap: Numbers, residual: float) -> Numbers:
    """Largest x with x (x + gap) <= residual^2: by how much coupling to the rest can lift an eigenvalue."""
    root = np.sqrt(gap**2 + 4 * residual**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        far = np.where(residual > 0, 2 * residual**2 / (gap + root), 0.0)
    return np.where(gap > 0, far, (root - gap) / 2)


def _rounding(norm: float, asymmetry: float, dtype: torch.dtype) -> float:
    return float(ROUNDING * torch.finfo(dtype).eps * norm + 2 * asymmetry)


def _certified(product: Product, run: Run | None, locked: Tensor, top: int, lowest: float) -> Extremes:
    """Residuals of what is locked from products of their own, and the bounds that follow."""
    basis = torch.linalg.qr(locked.double().T).Q.T
    made = torch.stack([product(row.to(locked.dtype)) for row in basis]).double()
    inner = (made @ basis.T).cpu().numpy()
    values, mix = np.linalg.eigh((inner + inner.T) / 2)
    values, turned = values[::-1].copy(), torch.as_tensor(mix[:, ::-1].T.copy(), device=basis.device)
    vectors = turned @ basis
    rest = turned @ made - torch.as_tensor(values, device=basis.device)[:, None] * vectors
    residuals = rest.norm(dim=1).cpu().numpy()
    coupling = float(torch.linalg.matrix_norm(rest, 2))
    norm = max(float(np.abs(values).max()), abs(lowest))
    rounding = _rounding(norm, float(np.linalg.norm(inner - inner.T) / 2), locked.dtype)
    if run is None and len(locked) < locked.shape[1]:  # nothing was certified
        errors, below = np.full(len(values), math.inf), math.inf
    elif run is None:
        errors, below = np.full(len(values), coupling + rounding), 0.0
    else:
        errors = _bound(values - run.ceiling(), coupling) + rounding
        bottom = run.floor()
        below = float(_bound(np.abs(np.array([values[-1] - bottom])), coupling)[0])
        below += max(min(lowest, values[-1]) - min(bottom, values[-1]), 0.0)
    return Extremes(
        values[:top], residuals[:top], errors[:top], float(min(lowest, values[-1])), below + rounding, rounding,
        coupling, vectors.to(locked.dtype), values, run,
    )  # fmt: skip


__all__ = ["RISK", "Extremes", "Numbers", "Product", "Run", "drawn", "extremes", "whole"]
