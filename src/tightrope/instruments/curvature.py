"""Curvature of the loss: the largest eigenvalues of its Hessian, its spectrum, and the steps that it allows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tightrope.errors import InputError
from tightrope.instruments.hessian import ASKED, Matrix, Operator, hessian, modes
from tightrope.instruments.lanczos import RISK, Extremes, Numbers, Product, Run, drawn, extremes, whole
from tightrope.instruments.spectrum import Density, Spectrum
from tightrope.instruments.stable_step import MOMENTUM, Rule, StableStep, gradient_descent, rule_of

WHOLE = 256
"""Parameters up to which the whole matrix is made: no more products than a run with its certificate often takes."""
TRACES = 32
"""Random vectors for the trace beside the probes: one product each."""
MEMORY = 2**31
"""Bytes that the basis of a run may take."""


@dataclass(frozen=True, eq=False)
class Curvature:
    """Eigenvalues of the Hessian of a loss, each with the bound of its error.

    Attributes:
        eigenvalues: the largest, largest first.
        converged: whether each of them is surely within `tolerance` of itself; `resolved` says it one by one. An
            eigenvalue that is zero up to rounding has no relative error, and counts as not converged.
        residuals: ||H v - lambda v|| of each, from a product of its own: some eigenvalue lies that near.
        errors: bound of the distance to the eigenvalue of the same rank. It holds what residuals, rounding, and an
            eigenvalue that was missed may do; the last up to a probability of 1e-6.
        tolerance: relative error that was asked for.
        smallest, smallest_error: the smallest eigenvalue lies at most `smallest_error` below `smallest`.
        trace, trace_error: sum of all eigenvalues and its standard error over probes.
        condition, condition_bound: largest over smallest positive eigenvalue: at least the first, at most the second
            (infinite where nothing rules out an eigenvalue nearer to zero).
        spectrum: all eigenvalues as a measure; `density()` draws it.
        steps: largest stable learning rate of gradient descent, plain and with momentum 0.9.
        step: the same of the optimizer that was passed; None without one, or before an adaptive one's first step.
        matrix: "hessian" or "gauss-newton".
        loss, gradient: value of the loss, and norm of its gradient.
        parameters, products: how many there are, and how many products with the matrix were made.
        modes: what depends on the model's mode, and as what it was taken.
    """

    eigenvalues: tuple[float, ...]
    converged: bool
    residuals: tuple[float, ...]
    errors: tuple[float, ...]
    tolerance: float
    smallest: float
    smallest_error: float
    trace: float
    trace_error: float
    condition: float
    condition_bound: float
    spectrum: Spectrum = field(repr=False)
    steps: dict[str, float]
    step: StableStep | None
    matrix: str
    loss: float
    gradient: float
    parameters: int
    products: int
    modes: tuple[str, ...] = ()

    @property
    def lambda_max(self) -> float:
        """The largest eigenvalue."""
        return self.eigenvalues[0]

    @property
    def resolved(self) -> tuple[bool, ...]:
        """Whether each eigenvalue is within the tolerance of itself."""
        return tuple(_within(v, e, self.tolerance) for v, e in zip(self.eigenvalues, self.errors, strict=True))

    def density(self, points: int = 400, width: float | None = None) -> Density:
        """Smoothed density of the eigenvalues with its standard error; see `Spectrum.density`."""
        return self.spectrum.density(points, width)

    def against(self, before: Curvature) -> CurvatureChange:
        """This curvature beside that of the same task before a change."""
        return CurvatureChange(before, self)

    @property
    def verdict(self) -> str:
        """What it means for training, in a sentence."""
        if self.lambda_max + self.errors[0] <= 0:
            return "No direction curves upwards: no step is too long, and this is no minimum."
        told = [] if self.converged else ["Not all eigenvalues have converged; the bounds beside them hold."]
        if self.step is not None and self.step.ratio > 1:
            told.append(
                f"The rate {self.step.rate:.3g} is {self.step.ratio:.3g} times the largest stable one: the sharpest "
                "direction grows until the curvature falls."
            )
        if self.condition > 1:
            told.append(
                f"Gradient descent at its best rate takes {self.condition / 2:.2g} steps or more to bring the flattest "
                "upward direction down e-fold."
            )
        return " ".join(told)

    def __str__(self) -> str:
        name = "Hessian" if self.matrix == "hessian" else "Gauss-Newton matrix"
        lines = [f"{name} of {self.parameters} parameters, loss {self.loss:.4g}, {self.products} products"]
        for i, (value, error, good) in enumerate(zip(self.eigenvalues, self.errors, self.resolved, strict=True)):
            note = "" if good else "  zero to within its error" if abs(value) <= error else "  not converged"
            lines.append(f"  {f'eigenvalue {i + 1}':<13} {value:.6g} ± {error:.1g}{note}")
        lines.append(f"  {'smallest':<13} {self.smallest:.4g}, at most {self.smallest_error:.1g} below it")
        lines.append(f"  {'trace':<13} {self.trace:.4g} ± {self.trace_error:.1g}")
        lines.append(f"  {'condition':<13} {self.condition:.3g} to {self.condition_bound:.3g}")
        lines += [f"  {'stable rate':<13} {rate:.4g} for {name}" for name, rate in self.steps.items()]
        lines += [f"  {self.step}"] if self.step is not None else []
        lines += [f"  {mode}" for mode in self.modes]
        return "\n".join([*lines, f"  {self.verdict}"])


@dataclass(frozen=True, eq=False)
class CurvatureChange:
    """Two curvatures of one task, before and after a change such as a normaliser or standardised data."""

    before: Curvature
    after: Curvature

    @property
    def sharpness(self) -> tuple[float, float]:
        """Largest eigenvalue after over before, at least and at most; NaN where it was not surely positive."""
        (b, be), (a, ae) = ((c.lambda_max, c.errors[0]) for c in (self.before, self.after))
        return ((a - ae) / (b + be), (a + ae) / (b - be)) if b > be else (math.nan, math.nan)

    @property
    def step(self) -> float:
        """Largest stable step of gradient descent after over before; 1 where neither has a limit."""
        old, new = (c.steps["gradient descent"] for c in (self.before, self.after))
        return 1.0 if old == new else new / old

    def __str__(self) -> str:
        rows = [
            ("largest", *(f"{c.lambda_max:.4g} ± {c.errors[0]:.1g}" for c in (self.before, self.after))),
            ("smallest", *(f"{c.smallest:.4g} - {c.smallest_error:.1g}" for c in (self.before, self.after))),
            ("condition", *(f"{c.condition:.3g} to {c.condition_bound:.3g}" for c in (self.before, self.after))),
            ("trace", *(f"{c.trace:.4g} ± {c.trace_error:.1g}" for c in (self.before, self.after))),
            ("stable rate", *(f"{c.steps['gradient descent']:.4g}" for c in (self.before, self.after))),
        ]
        lines = [f"{'':<12} {'before':<22} after", *(f"{name:<12} {old:<22} {new}" for name, old, new in rows)]
        return "\n".join([*lines, f"gradient descent may take steps {self.step:.3g} times as long"])


def curvature(
    model: nn.Module,
    batch: Any,
    *,
    loss: Callable[..., Tensor] | None = None,
    top: int = 5,
    optimizer: torch.optim.Optimizer | None = None,
    matrix: Matrix = "hessian",
    probes: int = 4,
    steps: int = 40,
    products: int = 1000,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> Curvature:
    """The largest eigenvalues of the loss's Hessian with a certificate, its spectrum, and the largest stable steps.

    The matrix is never made, save for a net of up to 256 parameters: a product with it is one backward pass through the
    graph of the gradient. Eigenvalues are those of this batch, over all parameters that require a gradient.

    Args:
        model: any module, in the mode that is meant; nothing is changed. Dropout keeps one mask.
        batch: `(inputs, target)` for `loss(output, target)`, inputs for `loss(output)`; or a loader, of which the first
            batch is taken.
        loss: None for a model that returns its loss.
        top: how many eigenvalues.
        optimizer: whose largest stable rate is asked for, with its state.
        matrix: "gauss-newton" leaves out the curvature of the network itself; it has no negative eigenvalue for a
            convex loss.
        probes: random vectors for spectrum and trace.
        steps: of each probe's quadrature.
        products: budget; where it ends before the eigenvalues are certain, `converged` is False.
        tolerance: relative error of the eigenvalues to reach.
        seed: of the random vectors.

    Raises:
        InputError: model, batch, loss or option is no such thing, or something is not finite.
        RecordError: the model raised, its loss has no gradient, or an operation has no second derivative.

    References:
        Cohen et al. (2021), Gradient descent on neural networks typically occurs at the edge of stability, ICLR;
        Ghorbani, Krishnan, Xiao (2019), An investigation into neural net optimization via Hessian eigenvalue density,
        ICML; for the certificate see `tightrope.instruments.lanczos`.
    """
    _refuse(top=top, probes=probes, steps=steps, products=products, tolerance=tolerance, matrix=matrix)
    with hessian(model, batch, loss, matrix) as operator:
        top = min(top, operator.size)
        search = _Search(operator, tolerance, steps, products, seed)
        found = search.largest(operator, top)
        runs = search.probes(operator, found, probes)
        rule = None if optimizer is None else rule_of(optimizer, operator.parameters, operator.gradient)
        step = None if rule is None else _step(rule, operator, found, search)
        trace, trace_error = search.trace(operator, found, runs)
    spectrum = Spectrum.of(operator.size, found.every if found.every is not None else found.atoms, runs)
    values, errors = found.values.tolist(), found.errors.tolist()
    safe = values[0] + errors[0]
    return Curvature(
        tuple(values), all(_within(v, e, tolerance) for v, e in zip(values, errors, strict=True)),
        tuple(found.residuals.tolist()), tuple(errors), tolerance, found.smallest, found.smallest_error,
        trace, trace_error, *_condition(found, runs), spectrum,
        {"gradient descent": gradient_descent(safe), f"momentum {MOMENTUM:g}": gradient_descent(safe, MOMENTUM)},
        step, matrix, operator.loss, float(operator.gradient.norm()), operator.size, operator.products, modes(model),
    )  # fmt: skip


def _refuse(*, matrix: str, tolerance: float, **counts: int) -> None:
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(ASKED, f"{name} is {count!r}", "Pass a positive whole number")
    if not 0 < tolerance < 1:
        raise InputError(ASKED, f"tolerance is {tolerance!r}", "Pass a relative error between 0 and 1")
    if matrix not in ("hessian", "gauss-newton"):
        raise InputError(ASKED, f"matrix is {matrix!r}", 'Pass "hessian" or "gauss-newton"')


def _within(value: float, error: float, tolerance: float) -> bool:
    return error <= tolerance * abs(value)


class _Search:
    """How a matrix is searched: the options, the room for vectors, and the random numbers."""

    def __init__(self, operator: Operator, tolerance: float, steps: int, products: int, seed: int) -> None:
        self.like, self.tolerance, self.steps, self.products = operator.gradient, tolerance, steps, products
        self.capacity = max(MEMORY // (operator.size * self.like.element_size()), 2)
        self.chance = torch.Generator().manual_seed(seed)

    def largest(self, product: Product, top: int) -> Extremes:
        if self.like.numel() <= WHOLE:
            return whole(product, self.like, top)
        return extremes(
            product, self.like, top, tolerance=self.tolerance, steps=self.steps, products=self.products,
            capacity=self.capacity, chance=self.chance,
        )  # fmt: skip

    def probes(self, product: Product, found: Extremes, count: int) -> list[Run]:
        """Runs on the complement of what is known; the one that certified is the first."""
        if found.every is not None or len(found.locked) == self.like.numel():
            return []
        runs = [] if found.run is None else [found.run]
        while len(runs) < count:
            run = Run(product, drawn(self.like, self.chance), found.locked, self.capacity)
            run.grow(self.steps)
            runs.append(run)
        return runs

    def trace(self, product: Product, found: Extremes, runs: list[Run]) -> tuple[float, float]:
        """Hutchinson's estimate on the complement of what is known; the first step of each run is a sample."""
        if not runs:
            return float((found.atoms if found.every is None else found.every).sum()), len(found.atoms) * found.rounding
        samples = [run.alphas[0] for run in runs]
        for _ in range(TRACES):
            run = Run(product, drawn(self.like, self.chance), found.locked, 1)
            run.grow(1)
            samples.append(run.alphas[0])
        left = self.like.numel() - len(found.locked)
        error = left * float(np.std(samples, ddof=1)) / math.sqrt(len(samples))
        return float(found.atoms.sum()) + left * float(np.mean(samples)), error


def _condition(found: Extremes, runs: list[Run]) -> tuple[float, float]:
    """Bounds of largest over smallest positive eigenvalue; NaN without a positive one."""
    high, error = float(found.values[0]), float(found.errors[0])
    if not high > error:
        return math.nan, math.nan
    if found.every is not None:
        least = float(found.every[found.every > found.rounding].min())
        lower = (high - error) / (least + found.rounding)
    else:  # within its residual of a Ritz value is an eigenvalue, so one that far from zero is a positive one
        ends: Numbers = np.concatenate([
            *(_positive(run.values, run.residuals + found.coupling, found.rounding) for run in runs),
            _positive(found.values, found.residuals, found.rounding),
        ])  # fmt: skip
        lower = (high - found.rounding) / float(ends.min()) if len(ends) else 1.0
    floor = found.smallest - found.smallest_error
    return max(lower, 1.0), (high + error) / floor if floor > 0 else math.inf


def _positive(values: Numbers, residuals: Numbers, rounding: float) -> Numbers:
    """Upper ends of the intervals that hold a positive eigenvalue."""
    kept = values > residuals + 2 * rounding
    return values[kept] + residuals[kept] + rounding


def _step(rule: Rule, operator: Operator, found: Extremes, search: _Search) -> StableStep:
    """The optimizer's own largest eigenvalue, searched for where it does not see the Hessian itself."""
    if rule.plain:
        value, error = float(found.values[0] + rule.decay[0]), float(found.errors[0])
    else:
        root = rule.scale.sqrt()

        def seen(vector: Tensor) -> Tensor:
            moved = root * vector
            return root * (operator(moved) + rule.decay * moved)

        own = search.largest(seen, 1)
        value, error = float(own.values[0]), float(own.errors[0])
    return StableStep(rule.name, value, error, rule.largest(value + error), rule.rate)


__all__ = ["RISK", "Curvature", "CurvatureChange", "curvature"]
