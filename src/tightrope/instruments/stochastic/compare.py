"""Which estimator of the gradient of an expectation to use: all that a distribution admits, measured."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent

from tightrope.errors import InputError
from tightrope.instruments.estimate import Estimate, covariance, plain, positive, ratio, student
from tightrope.instruments.stochastic.measure_valued import exact
from tightrope.instruments.stochastic.parts import ASKED
from tightrope.instruments.stochastic.problem import NotAdmittedError, Problem, pose
from tightrope.instruments.stochastic.result import EstimatorComparison, GradientEstimator
from tightrope.instruments.stochastic.ways import WAYS, Way
from tightrope.isolation import undisturbed

BLOCKS = 32
"""Groups of draws whose disagreement gives the errors of the variances."""
CHANCE = 1e-3
"""Probability that an unbiased estimator is called biased, over all its parameters."""
Goal = tuple[Tensor, Tensor, Tensor]
"""Mean, its error and the means of blocks of what biases are measured against."""
ROUNDING = 64
"""Units of least precision of the gradient below which a difference is none."""


@dataclass(frozen=True)
class Sample:
    """Moments of the gradients of single draws.

    Attributes:
        mean, error, variance, variance_error: of each parameter, shape (parameters,).
        trace: sum of the variances.
        square: squared norm of the mean, without its noise.
        seconds: for a draw.
        blocks: mean of each block, shape (blocks, parameters).
    """

    mean: Tensor
    error: Tensor
    variance: Tensor
    variance_error: Tensor
    trace: Estimate
    square: Estimate
    seconds: float
    blocks: Tensor


def compare_estimators(
    objective: Callable[[Tensor], Any], distribution: Distribution, *, parameters: Any = None, using: str = "",
    only: Sequence[str] = (), draws: int = 4096, relative_error: float = 0.1, temperature: float = 0.5, seed: int = 0,
) -> EstimatorComparison:  # fmt: skip
    """Compare estimators of the gradient of E f(z), z ~ q(z; theta), in theta.

    The score function alone, with the mean of the other draws and with the best scalar as a baseline; the pathwise
    (reparameterised) gradient; measure-valued gradients; straight-through, Gumbel-softmax and both. Each has draws of
    its own, in 32 blocks, with the gradient of every draw by itself: the distribution is made again with a copy of its
    arguments for each draw, so that one backward pass has them all. An estimator that the distribution or the objective
    does not admit stays in the list with the reason.

    The bias is measured against an unbiased reference: the gradient by enumeration where a discrete distribution has
    at most 4096 joint values, else the best of those that are unbiased for any objective. The pathwise gradient of an
    objective that jumps is biased, and is then not recommended.

    Args:
        objective: f, of one draw (shape `batch_shape + event_shape` of the distribution), to one number. Draws run
            side by side under `torch.func.vmap` where they can, else one by one. It may contain theta directly, as an
            evidence bound does: that part of the gradient, of the same draw, is added to every estimator. Nets in it
            belong in evaluation mode.
        distribution: q, of `torch.distributions`, also `Independent`, transformed and mixed ones.
        parameters: theta: a tensor, several, a mapping or a module; by default all that the distribution's arguments
            are computed from and that require a gradient, else those arguments themselves.
        using: name of the estimator that is in use, to be judged.
        only: names of the estimators to compare; all of them by default.
        draws: of each estimator.
        relative_error: of the whole gradient, E |g - g'|^2 / |g'|^2 to the root, that needed draws are counted for.
        temperature: of the relaxed draws.
        seed: of the draws; the random state is left as it was.

    Raises:
        InputError: no such distribution, objective, parameters or estimator; an objective that is not finite; too few
            draws.

    References:
        Mohamed, Rosca, Figurnov, Mnih (2020), Monte Carlo gradient estimation in machine learning, JMLR 21.
    """
    if draws < 4 * BLOCKS or relative_error <= 0 or temperature <= 0:
        found = f"draws is {draws}, relative_error {relative_error}, temperature {temperature}"
        raise InputError(ASKED, found, f"Pass at least {4 * BLOCKS} draws and positive numbers")
    names = [way.name for way in WAYS]
    for name in (*only, *([using] if using else [])):
        if name not in names or (only and name not in only):
            raise InputError(ASKED, f"there is no estimator {name!r}", f"Use one of {', '.join(only or names)}")
    with undisturbed(), torch.enable_grad():
        torch.manual_seed(seed)
        problem = pose(objective, distribution, parameters, temperature)
        truth = exact(problem)
        count = math.ceil(draws / BLOCKS)
        asked = [way for way in WAYS if way.name in (only or names)]
        samples = {way.name: _tried(problem, way, count) for way in asked}
    return _judged(problem, samples, truth, distribution, count * BLOCKS, relative_error, using)


def _tried(problem: Problem, way: Way, count: int) -> Sample | str:
    """Moments of an estimator, or why there are none."""
    try:
        way.gradients(problem, 4)
        blocks, times = [], []
        for _ in range(BLOCKS):
            start = time.perf_counter()
            blocks.append(_block(way.gradients(problem, count)))
            times.append((time.perf_counter() - start) / count)
    except NotAdmittedError as reason:
        return str(reason)
    if not all(bool(torch.isfinite(x).all()) for block in blocks for x in block):
        return "gradients of some draws are NaN or infinite"
    return _moments(torch.stack([b for b, _ in blocks]), torch.stack([s for _, s in blocks]), count, times)


def _block(g: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of a block and sum of squares about it."""
    mean = g.mean(0)
    return mean, (g - mean).square().sum(0)


def _moments(means: Tensor, squares: Tensor, count: int, times: Sequence[float]) -> Sample:
    blocks = len(means)
    mean = means.mean(0)
    off = (means - mean).square()

    def variances(square: Tensor, apart: Tensor, groups: int) -> Tensor:
        return (square + count * apart) / (groups * count - 1)

    whole = variances(squares.sum(0), off.sum(0), blocks)
    # with a block left out, the mean of the others moves by off / (blocks - 1)
    left = variances(squares.sum(0) - squares, off.sum(0) - off * blocks / (blocks - 1), blocks - 1)
    spread = left - left.mean(0)
    error = (spread.square().sum(0) * (blocks - 1) / blocks).sqrt()
    t = student(blocks - 1)
    trace = positive(float(whole.sum()), float(covariance(left.sum(1)[:, None])), t)
    draws = blocks * count
    square = float(mean.square().sum() - whole.sum() / draws)
    kept = ((mean * blocks - means) / (blocks - 1)).square().sum(1) - left.sum(1) / (draws - count)
    known = plain(square, float(covariance(kept[:, None])), t)
    return Sample(mean, (whole / draws).sqrt(), whole, error, trace, known, statistics.median(times), means)


def _judged(
    problem: Problem, samples: Mapping[str, Sample | str], truth: Tensor | None, distribution: Distribution, count: int,
    relative_error: float, using: str,
) -> EstimatorComparison:  # fmt: skip
    measured = {name: found for name, found in samples.items() if isinstance(found, Sample)}
    certain = [way.name for way in WAYS if way.unbiased and way.name in measured]
    possible = certain or [way.name for way in WAYS if way.unbiased is None and way.name in measured]
    if not possible and truth is None:
        why = "; ".join(f"{name}: {found}" for name, found in samples.items())
        raise InputError(ASKED, f"no unbiased estimator is admitted ({why})", "Pass another distribution")
    reference = "exact" if truth is not None else min(possible, key=lambda name: measured[name].trace.value)
    goal = _of(measured[reference]) if truth is None else (truth, torch.zeros_like(truth), truth[None])
    made = []
    for way in (way for way in WAYS if way.name in samples):
        found = samples[way.name]
        if isinstance(found, str):
            made.append(GradientEstimator(way.name, found, way.unbiased))
        else:
            made.append(_estimator(problem, way, found, goal, way.name == reference))
    sound = [found.name for found in made if found.safe]
    signal = _signal(truth, [measured[name] for name in sound or possible])
    made = [_needing(found, signal, relative_error) for found in made]
    best = min((found for found in made if found.safe), key=_order, default=None)
    return EstimatorComparison(
        tuple(made), best.name if best else "", reference, _norm(signal), len(goal[0]), count, relative_error, using,
        _words(distribution),
    )  # fmt: skip


def _of(found: Sample) -> Goal:
    return found.mean, found.error, found.blocks


def _order(found: GradientEstimator) -> tuple[float, float]:
    assert found.trace is not None
    # time says nothing where the gradient is lost in the noise
    return (found.trace.value * found.seconds, found.trace.value)


def _estimator(problem: Problem, way: Way, found: Sample, goal: Goal, is_reference: bool) -> GradientEstimator:
    def named(flat: Tensor) -> dict[str, Tensor]:
        sizes = [p.numel() for p in problem.parameters]
        pieces = zip(problem.names, flat.split(sizes), problem.parameters, strict=True)
        return {name: piece.reshape(p.shape) for name, piece, p in pieces}

    made = GradientEstimator(
        way.name, "", way.unbiased, named(found.mean), named(found.error), named(found.variance),
        named(found.variance_error), found.trace, seconds=found.seconds,
    )  # fmt: skip
    if is_reference:
        return made
    bias = found.mean - goal[0]
    precision = max(torch.finfo(t.dtype).eps for t in problem.parts.tensors)
    floor = ROUNDING * precision * max(float(goal[0].abs().max()), float(found.mean.abs().max()))
    error = (found.error.square() + goal[1].square()).sqrt()
    limit = NormalDist().inv_cdf(1 - CHANCE / 2 / len(bias))
    beyond = bool((bias.abs() > limit * error + floor).any())
    length = float(goal[0].norm()) or 1.0
    square, spread = _shared(found.blocks - goal[2])
    value, low = math.sqrt(max(square, 0.0)), math.sqrt(max(square - spread, 0.0))
    top = math.sqrt(max(square, 0.0) + spread) + floor
    offset = Estimate(value / length, (top - low) / 4 / length, low / length, top / length)
    return replace(made, bias=named(bias), bias_error=named(error), offset=offset, biased=beyond)


def _shared(blocks: Tensor) -> tuple[float, float]:
    """Squared norm of what the rows have in common, and half its 95 % interval, by the jackknife; noise taken off."""
    products = blocks @ blocks.T
    b, diagonal = len(products), products.diagonal()
    rest = products.sum() - diagonal.sum()
    left = (rest - 2 * (products.sum(1) - diagonal)) / ((b - 1) * (b - 2))
    return float(rest) / (b * (b - 1)), student(b - 1) * math.sqrt(float(covariance(left[:, None])))


def _signal(truth: Tensor | None, sound: Sequence[Sample]) -> Estimate:
    """Squared norm of the gradient, from what knows it best."""
    if truth is not None:
        square = float(truth.square().sum())
        return Estimate(square, 0.0, square, square)
    return min(sound, key=lambda found: found.trace.value).square


def _norm(square: Estimate) -> Estimate:
    value, low, high = (math.sqrt(max(x, 0.0)) for x in (square.value, square.low, square.high))
    return Estimate(value, (high - low) / 4, low, high)


def _needing(found: GradientEstimator, signal: Estimate, relative_error: float) -> GradientEstimator:
    if not found.admitted:
        return found
    assert found.trace is not None
    never = found.biased and found.offset is not None and found.offset.low > relative_error
    if never:
        return replace(found, draws=Estimate(math.inf, math.inf, math.inf, math.inf))
    spread = torch.tensor([[found.trace.error**2, 0.0], [0.0, (signal.error * relative_error**2) ** 2]])
    need = ratio(found.trace.value, signal.value * relative_error**2, spread.double(), student(BLOCKS - 1))
    return replace(found, draws=need)


def _words(distribution: Distribution) -> str:
    core: Any = distribution
    while isinstance(core, Independent):
        core = core.base_dist
    shape = " x ".join(str(n) for n in (*distribution.batch_shape, *distribution.event_shape)) or "1"
    return f"{type(core).__name__} ({shape})"


__all__ = ["compare_estimators"]
