"""Density of a Hessian's eigenvalues: stochastic Lanczos quadrature beside the eigenvalues that are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tightrope.instruments.lanczos import Numbers, Run

WIDTH = 0.01
"""Of the bell that each quadrature node is drawn as, relative to the range of the spectrum: what the eye resolves."""


@dataclass(frozen=True)
class Density:
    """A smoothed density on a grid.

    Attributes:
        values: grid of eigenvalues.
        density: per unit of eigenvalue; integrates to 1.
        error: standard error over probes.
        width: standard deviation of the bells.
    """

    values: Numbers = field(repr=False)
    density: Numbers = field(repr=False)
    error: Numbers = field(repr=False)
    width: float


@dataclass(frozen=True)
class Spectrum:
    """All eigenvalues as a measure: exact atoms, and quadrature rules that estimate the rest.

    A run from a random unit vector makes a Gauss rule whose expectation is the mean of f over the eigenvalues of its
    complement, exact for polynomials f up to degree 2 steps - 1 (Golub, Meurant 2010; Ubaru, Chen, Saad 2017).

    Attributes:
        size: number of eigenvalues.
        atoms: eigenvalues that are known.
        nodes, weights: of one rule for each probe; weights add up to 1.
    """

    size: int
    atoms: Numbers = field(repr=False)
    nodes: tuple[Numbers, ...] = field(default=(), repr=False)
    weights: tuple[Numbers, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, size: int, atoms: Numbers, runs: Sequence[Run]) -> Spectrum:
        """From known eigenvalues and the runs on their complement."""
        return cls(size, atoms, tuple(run.values for run in runs), tuple(run.weights for run in runs))

    def sum(self, values: Sequence[Numbers], atoms: Numbers) -> tuple[Numbers, Numbers]:
        """Sum of f over the eigenvalues and its standard error over probes, from f at nodes and atoms."""
        known, left = atoms.sum(-1), self.size - len(self.atoms)
        if not self.nodes:
            return known, np.full_like(known, 0.0 if left == 0 else math.inf)
        means = np.stack([(f * weights).sum(-1) for f, weights in zip(values, self.weights, strict=True)])
        count = len(means)
        error = means.std(0, ddof=1) / math.sqrt(count) if count > 1 else np.full_like(known, math.inf)
        return known + left * means.mean(0), left * error

    def below(self, level: float) -> tuple[float, float]:
        """Share of the eigenvalues below a level, and its standard error."""
        inside = [np.asarray(nodes < level, dtype=np.float64)[None] for nodes in (self.atoms, *self.nodes)]
        value, error = self.sum(inside[1:], inside[0])
        return float(value[0]) / self.size, float(error[0]) / self.size

    def density(self, points: int = 400, width: float | None = None) -> Density:
        """The density, each node drawn as a bell.

        Args:
            points: of the grid.
            width: standard deviation of a bell; None: a hundredth of the range.
        """
        every = np.concatenate([self.atoms, *self.nodes])
        low, high = float(every.min()), float(every.max())
        width = width or WIDTH * (high - low) or WIDTH * max(abs(high), 1.0)
        grid = np.linspace(low - 4 * width, high + 4 * width, points)

        def bells(nodes: Numbers) -> Numbers:
            bell: Numbers = np.exp(-(((grid[:, None] - nodes) / width) ** 2) / 2) / (width * math.sqrt(2 * math.pi))
            return bell

        value, error = self.sum([bells(nodes) for nodes in self.nodes], bells(self.atoms))
        return Density(grid, value / self.size, error / self.size, width)


__all__ = ["Density", "Spectrum"]
