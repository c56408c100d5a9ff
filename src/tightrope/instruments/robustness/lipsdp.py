"""LipSDP: the least Lipschitz bound that slope restrictions of single neurons prove.

For z_k = W_k x_(k-1), x_k = f(z_k) with slopes of f within [a, b], each neuron's move obeys
(dx - a dz)(b dz - dx) >= 0. With a weight of at least zero on each, ||dy||^2 <= r ||dx_0||^2 follows where
M(weights) - r on the input's part is negative semidefinite. The weights come from Newton steps on the logarithmic
barrier; a neuron's part of M has rank two, so that a step costs no more than a few products of matrices of M's size.
What is reported comes from the weights alone: the rest of M is tested to be negative definite and r is its Schur
complement's largest eigenvalue, so no tolerance of the search enters the bound.

References:
    Fazlyab, Robey, Hassani, Morari, Pappas (2019), Efficient and accurate estimation of Lipschitz constants for deep
    neural networks, NeurIPS; Boyd, Vandenberghe (2004), Convex optimization, chapter 11, for the barrier.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tightrope.instruments.robustness.graph import Graph

MOST = 300
"""Neurons and inputs together up to which the problem is posed: seconds."""
ROUNDING = 1e-9
GAP = 1e-6
"""Distance of r from its least value, relative, that the barrier leaves."""
GROWTH = 8.0
"""Of the barrier's weight from one point of the path to the next: a handful of Newton steps each."""
CENTRING = 200
"""Newton steps for one point of the path at most."""
Numbers = NDArray[np.float64]
Slopes = list[tuple[float, float]]


def chain(graph: Graph) -> tuple[list[Tensor], Slopes] | str:
    """Matrices and slopes of a chain of linear segments and activations, or why the model is none."""
    matrices, slopes, base = [], [], graph.source
    for joint in graph.joints:
        if len(joint.parts) != 1 or joint.shape is None:
            return f"{joint.entry.op} is no activation of single numbers"
        if joint.parts[0].base != base:
            return "the model has branches"
        matrix = joint.parts[0].matrix
        if matrix is None:
            return "a linear part is too large"
        matrices.append(matrix)
        slopes.append((joint.shape.low, joint.shape.high))
        base = joint.output
    if graph.last.base != base or graph.last.matrix is None:
        return "the output does not end in a linear layer of moderate size"
    matrices.append(graph.last.matrix)
    neurons = sum(len(m) for m in matrices[:-1]) + min(matrices[0].shape)
    if neurons > MOST:
        return f"{neurons} neurons are more than {MOST}"
    return matrices, slopes


def lipsdp(matrices: list[Tensor], slopes: Slopes) -> float | None:
    """The bound; None where the weights that were found do not pass verification.

    Args:
        matrices: W_1 .. W_L, double precision, each of shape (outputs, inputs).
        slopes: least and largest slope of the activation behind each but the last.
    """
    weights = [m.cpu().numpy() for m in matrices]
    if not slopes:
        return float(np.linalg.norm(weights[0], 2)) * (1 + ROUNDING)
    if weights[0].shape[1] > weights[0].shape[0]:  # only what the first layer sees of the input matters
        weights[0] = np.linalg.qr(weights[0].T).R.T
    scale = [float(np.linalg.norm(w, 2)) or 1.0 for w in weights]
    unit = [w / s for w, s in zip(weights, scale, strict=True)]  # every matrix of norm 1
    problem = _Problem(unit, slopes)
    found = _verified(problem, _solved(problem))
    return None if found is None else math.sqrt(found) * math.prod(scale) * (1 + ROUNDING)


class _Problem:
    """M as a sum over neurons: with b the neuron's weights on what it reads and e its own place, its part is
    -2 a b bb' - 2 ee' + (a + b)(be' + eb').

    Attributes:
        reads, own: the vectors b and e as columns; shape (size, neurons).
        kinds: -2 a b and a + b of each neuron.
        constant: what the output adds.
        inputs: size of the input's part.
    """

    def __init__(self, weights: list[Numbers], slopes: Slopes) -> None:
        sizes = [weights[0].shape[1], *(len(w) for w in weights[:-1])]
        starts = np.cumsum([0, *sizes])
        self.size, self.inputs = int(starts[-1]), sizes[0]
        self.reads = np.zeros((self.size, self.size - self.inputs))
        self.own = np.eye(self.size)[:, self.inputs :]
        for k, w in enumerate(weights[:-1]):
            left = starts[k + 1] - self.inputs
            self.reads[starts[k] : starts[k + 1], left : left + len(w)] = w.T
        low = np.repeat([a for a, _ in slopes], sizes[1:])
        high = np.repeat([b for _, b in slopes], sizes[1:])
        self.kinds = (-2 * low * high, low + high)
        self.layers = np.repeat(np.arange(len(slopes)), sizes[1:])
        self.constant = np.zeros((self.size, self.size))
        self.constant[starts[-2] :, starts[-2] :] = weights[-1].T @ weights[-1]

    def summed(self, multipliers: Numbers) -> Numbers:
        """M without the input's -r."""
        square, cross = (multipliers * kind for kind in self.kinds)
        mixed = (self.reads * cross) @ self.own.T
        made = (self.reads * square) @ self.reads.T - 2 * (self.own * multipliers) @ self.own.T + mixed + mixed.T
        total: Numbers = made + self.constant
        return total

    def slack(self, root: float, multipliers: Numbers) -> Numbers:
        """r - M, which is to be positive semidefinite."""
        made = -self.summed(multipliers)
        made[range(self.inputs), range(self.inputs)] += root
        return made

    def start(self) -> tuple[float, Numbers]:
        """A point inside: weights that fall fast enough from layer to layer."""
        for power in range(1, 40):
            ratio = 2.0**power
            multipliers = ratio ** (self.layers[-1] - self.layers + 1.0)
            whole = self.summed(multipliers)
            if float(np.linalg.eigvalsh(whole[self.inputs :, self.inputs :])[-1]) < -0.1:
                return 2 * _schur(whole, self.inputs, 0.0) + 1.0, multipliers
        raise ArithmeticError("no starting point")

    def step(self, root: float, multipliers: Numbers, weight: float) -> tuple[Numbers, float]:
        """Newton's step for (r, weights) on weight r - log det(r - M) - sum log weights, and its decrement."""
        inverse = np.linalg.inv(self.slack(root, multipliers))
        inverse = (inverse + inverse.T) / 2
        square, cross = self.kinds
        seen, mine = inverse @ self.reads, inverse @ self.own
        bb, be, ee = self.reads.T @ seen, self.reads.T @ mine, self.own.T @ mine
        count = len(multipliers)
        slope = np.empty(count + 1)
        slope[0] = weight - float(np.trace(inverse[: self.inputs, : self.inputs]))
        slope[1:] = square * bb.diagonal() - 2 * ee.diagonal() + 2 * cross * be.diagonal() - 1 / multipliers
        # tr(Z P_i Z P_j) of P = [b e] K [b e]' is the sum over K K of products of the inner products b'Zb, b'Ze, e'Ze
        inner = {("b", "b"): bb, ("b", "e"): be, ("e", "b"): be.T, ("e", "e"): ee}
        part = {("b", "b"): square, ("b", "e"): cross, ("e", "b"): cross, ("e", "e"): np.full(count, -2.0)}
        bend = np.empty((count + 1, count + 1))
        bend[1:, 1:] = sum(
            (left[:, None] * right[None]) * inner[q, u] * inner[p, v]
            for (p, q), left in part.items()
            for (u, v), right in part.items()
        )
        top, own = seen[: self.inputs], mine[: self.inputs]
        both = square * (top * top).sum(0) + 2 * cross * (top * own).sum(0) - 2 * (own * own).sum(0)
        bend[0, 1:] = bend[1:, 0] = -both
        bend[0, 0] = float((inverse[: self.inputs, : self.inputs] ** 2).sum())
        bend[range(1, count + 1), range(1, count + 1)] += 1 / multipliers**2
        scale = 1 / np.sqrt(bend.diagonal())
        move = -scale * np.linalg.solve(bend * np.outer(scale, scale), scale * slope)
        return move, float(-(move @ slope))

    def height(self, root: float, multipliers: Numbers, weight: float) -> float:
        """What the barrier's minimum is looked for of; infinite outside."""
        if float(multipliers.min()) <= 0:
            return math.inf
        try:
            factor = np.linalg.cholesky(self.slack(root, multipliers))
        except np.linalg.LinAlgError:
            return math.inf
        return weight * root - 2 * float(np.log(factor.diagonal()).sum()) - float(np.log(multipliers).sum())


def _solved(problem: _Problem) -> Numbers:
    """Follows the barrier's central path until its gap, (size + neurons) / weight, is GAP of r."""
    root, multipliers = problem.start()
    terms = problem.size + len(multipliers)
    weight = terms / root
    while True:
        for _ in range(CENTRING):
            move, decrement = problem.step(root, multipliers, weight)
            if not decrement >= 0:  # rounding hides what is left to gain
                return multipliers

            length = _length(partial(_along, problem, root, multipliers, weight, move), decrement)
            if length == 0.0:
                return multipliers
            root, multipliers = root + length * move[0], multipliers + length * move[1:]
            if decrement < 1e-2:
                break
        if terms / weight <= GAP * root:
            return multipliers
        weight *= GROWTH


def _along(problem: _Problem, root: float, multipliers: Numbers, weight: float, move: Numbers, length: float) -> float:
    return problem.height(root + length * move[0], multipliers + length * move[1:], weight)


def _length(height: Callable[[float], float], decrement: float) -> float:
    """How far to go: the damped step that lowers a self-concordant function for certain, or twice that as often as
    it lowers it further; 0 where rounding leaves no step inside.
    """
    length = 1.0 if decrement < 0.25 else 1 / (1 + math.sqrt(decrement))
    there = height(length)
    while math.isinf(there):
        length /= 2
        if length < 1e-6:
            return 0.0
        there = height(length)
    while decrement >= 0.25:
        further = height(2 * length)
        if further >= there:
            break
        length, there = 2 * length, further
    return length


def _schur(whole: Numbers, inputs: int, slack: float) -> float:
    """The least r for which what is left of M - r is negative semidefinite; its other part is so."""
    rest, cross, first = whole[inputs:, inputs:], whole[:inputs, inputs:], whole[:inputs, :inputs]
    values, vectors = np.linalg.eigh((rest + rest.T) / 2)
    turned = cross @ vectors
    schur = first + (turned / -(values + slack)) @ turned.T
    return float(np.linalg.eigvalsh((schur + schur.T) / 2)[-1]) + slack


def _verified(problem: _Problem, multipliers: Numbers) -> float | None:
    """The least r that these weights prove; None without one."""
    if float(multipliers.min()) < 0:
        return None
    whole = problem.summed(multipliers)
    rest = whole[problem.inputs :, problem.inputs :]
    slack = 8 * problem.size**2 * np.finfo(float).eps * float(np.abs(whole).max())
    if float(np.linalg.eigvalsh((rest + rest.T) / 2)[-1]) >= -2 * slack:
        return None
    return max(_schur(whole, problem.inputs, slack), 0.0)


__all__ = ["chain", "lipsdp"]
