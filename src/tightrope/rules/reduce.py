"""Reductions: sums, means, variances, norms and extremes over dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tightrope.law import COMPONENTS
from tightrope.roles import Role
from tightrope.rules.expectation import product
from tightrope.rules.lags import mean_factor
from tightrope.rules.norm import Pool, pool
from tightrope.rules.registry import Call, Gradients, rule
from tightrope.rules.sites import settled
from tightrope.rules.state import DTYPE, State

GRID = 513
"""Points on which distribution functions of extremes are tabled."""


# -- sums ----------------------------------------------------------------------------------------


@rule("sum", "mean")
def reduction(call: Call) -> State:
    """A mean over dimensions divides each component by the number of independent values that it takes there."""
    over = pool(call.input.axes, _dims(call), 0.0)
    made = _mean(call.input, over)
    if made.covariance is not None:
        made = replace(made, covariance=None)
    made = _shaped(made, call)
    return made.scaled(float(over.size)) if call.entry.op == "sum" else made


@reduction.gradient
def _(call: Call, upstream: State) -> Gradients:
    x, number = call.input, call.id(0, "input")
    assert number is not None
    over = pool(x.axes, _dims(call), 0.0)
    spread = _spread_back(upstream, call)
    return {number: spread.scaled(1.0 / over.size) if call.entry.op == "mean" else spread}


def _dims(call: Call) -> list[int]:
    position = 2 if call.entry.op in ("norm", "vector_norm", "linalg_vector_norm") else 1
    rank = len(call.input.axes.dims)
    dim = call.argument(position, "dim", call.entry.kwargs.get("axis"))
    if call.entry.op in ("var", "std", "var_mean", "std_mean") and isinstance(dim, bool):
        dim = None
    if dim is None or dim == () or dim == []:
        return list(range(rank))
    return sorted(d % rank for d in ([dim] if isinstance(dim, int) else dim))


def _mean(x: State, over: Pool) -> State:
    """The law of an average over a pool, with reduced dimensions kept at length 1."""
    dims = list(over.dims)

    def average(field: Tensor) -> Tensor:
        return field.mean(dims, keepdim=True) if dims else field

    parts: dict[str, Any] = {name: average(getattr(x, name)) / over.independent(name) for name in COMPONENTS}
    if x.lags is not None and {2, 3} <= set(dims) and 1 not in dims and x.residual.shape[2:] == (1, 1):
        factor = mean_factor(x.lags, [x.axes.shape[d] for d in (2, 3)])
        parts["residual"] = parts["residual"] * factor.reshape(1, -1, 1, 1)
    made = State(x.axes, average(x.mean), **parts, width=x.width)
    if x.covariance is None or not any(x.axes.role(d) is Role.CHANNEL for d in dims):
        return made
    # Channels that vary together do not average out: Var(mean) = sum of all covariances / K^2.
    together = x.covariance.sum() / len(x.covariance) ** 2
    own = sum(parts.values(), torch.zeros((), dtype=DTYPE)).clamp(min=1e-300)
    scaled: dict[str, Any] = {name: part * (together / own) for name, part in parts.items()}
    return replace(made, **scaled)


def _shaped(made: State, call: Call, position: int = 0) -> State:
    """A reduced state under the result's axes: reduced dimensions are gone, or stay with length 1."""
    axes, dims = call.axes[position], set(_dims(call))
    if len(axes.dims) == len(made.axes.dims):
        return settled(made.map(lambda f: f, axes))
    kept = [d for d in range(len(made.axes.dims)) if d not in dims]
    return settled(made.map(lambda f: f.reshape([f.shape[d] for d in kept]), axes))


def _spread_back(upstream: State, call: Call) -> State:
    """A gradient as every element of the reduced dimensions receives it."""
    x, dims = call.input, set(_dims(call))
    rank = len(x.axes.dims)

    def move(field: Tensor) -> Tensor:
        if field.ndim == rank:
            return field
        sizes = iter(field.shape)
        return field.reshape([1 if d in dims else next(sizes) for d in range(rank)])

    return replace(upstream, latent=None, nodes=None, covariance=None).map(move, x.axes)


# -- second moments ------------------------------------------------------------------------------


def _quadratic(x: State, over: Pool) -> tuple[Tensor, Tensor]:
    """E and Var of the average of squares over a pool, about its own mean where that is centred.

    Var sums the covariances of all pairs: 2 c^2 + 4 c m^2 for two Gaussian values of covariance c and mean m.
    """
    dims = list(over.dims)

    def average(field: Tensor) -> Tensor:
        return field.mean(dims, keepdim=True) if dims else field

    mean = x.mean - average(x.mean) if over.centred else x.mean
    parts = {n: getattr(x, n) * (1 - 1 / over.independent(n) if over.centred else 1.0) for n in COMPONENTS}
    expected = average(mean.square() + sum(parts.values(), torch.zeros((), dtype=DTYPE)))
    n, s, size = over.counts[Role.SAMPLE], over.counts[Role.SITE], over.size

    def pair(*names: str) -> Tensor:
        shared = sum((parts[name] for name in names), torch.zeros((), dtype=DTYPE))
        return average(2 * shared.square() + 4 * shared * mean.square())

    own = pair("constant", "sample", "site", "residual")
    near = pair("constant", "sample") * (s - 1) + pair("constant", "site") * (n - 1)
    return expected, (own + near + pair("constant") * (n - 1) * (s - 1)) / size


def _random_over(x: State, mean: Tensor, variance: Tensor) -> State:
    """A statistic of a pool as a state: what varies varies from sample to sample, or from site to site too."""
    zero = torch.zeros_like(variance)
    return State(x.axes, mean, zero, zero, zero, variance.clamp(min=0), x.width)


@rule("var", "std", "var_mean", "std_mean")
def variance(call: Call) -> State | list[State]:
    """The variance over a pool; its fluctuation by the pool's pair covariances."""
    x = call.input
    over = pool(x.axes, _dims(call), 0.0)
    expected, spread = _quadratic(x, over)
    grow = over.size / max(over.size - _correction(call), 1)
    expected, spread = expected * grow, spread * grow**2
    made = _random_over(x, expected, spread)
    if call.entry.op.startswith("std"):
        made = _root(made)
    call.saved["value"] = made
    if call.entry.op.endswith("mean"):
        return [_shaped(made, call), _shaped(_mean(x, over), call, 1)]
    return _shaped(made, call)


@variance.gradient
def _(call: Call, upstream: State | list[State | None]) -> Gradients:
    number, x = call.id(0, "input"), call.input
    assert number is not None
    over = pool(x.axes, _dims(call), 0.0)
    first, second = upstream if isinstance(upstream, list) else [upstream, None]
    total: State | None = None
    if first is not None:
        mean = x.mean - x.mean.mean(list(over.dims), keepdim=True)
        centred = replace(x, mean=mean, latent=None, nodes=None, covariance=None)
        made = product(_spread_back(first, call), centred).scaled(2.0 / max(over.size - _correction(call), 1))
        if call.entry.op.startswith("std"):
            made = made.scaled(0.5 / call.saved["value"].mean.clamp(min=1e-300))
        total = replace(made, axes=x.axes)
    if second is not None:
        part = _spread_back(second, call).scaled(1.0 / over.size)
        total = part if total is None else total.plus(part)
    return {} if total is None else {number: total}


def _correction(call: Call) -> int:
    unbiased = call.argument(2, "unbiased", True)
    if isinstance(call.argument(1, "dim", None), bool):
        unbiased = call.argument(1, "dim")
    return int(call.entry.kwargs.get("correction", 1 if unbiased else 0))


def _root(square: State) -> State:
    """The square root of a positive variable, to second order in its spread."""
    mean, spread = square.mean.clamp(min=1e-300), square.variance
    ratio = (spread / mean.square()).clamp(max=1.0)
    root = mean.sqrt() * (1 - ratio / 8)
    return replace(square, mean=root, residual=mean * ratio / 4)


@rule("norm", "vector_norm", "linalg_vector_norm")
def norm(call: Call) -> State:
    """The Euclidean norm over dimensions.

    Raises:
        NotImplementedError: another norm.
    """
    order = call.argument(1, "p" if call.entry.op == "norm" else "ord", 2)
    if order not in (2, 2.0, "fro", None):
        raise NotImplementedError(f"{call.entry.op} of order {order}")
    over = pool(call.input.axes, _dims(call), 0.0, centred=False)
    expected, spread = _quadratic(call.input, over)
    made = _root(_random_over(call.input, expected * over.size, spread * over.size**2))
    call.saved["value"] = made
    return _shaped(made, call)


@norm.gradient
def _(call: Call, upstream: State) -> Gradients:
    number = call.id(0, "input")
    assert number is not None
    plain = replace(call.input, latent=None, nodes=None, covariance=None)
    made = product(_spread_back(upstream, call), plain).scaled(1 / call.saved["value"].mean.clamp(min=1e-300))
    return {number: replace(made, axes=call.input.axes)}


# -- extremes ------------------------------------------------------------------------------------


@rule("amax", "amin", "max", "min")
def extreme(call: Call) -> State | list[State]:
    """The largest of many Gaussian values: its distribution function is the product of theirs.

    Raises:
        NotImplementedError: the elementwise maximum of two tensors.
    """
    if call.state(1, "other") is not None:
        raise NotImplementedError(f"{call.entry.op} of two tensors")
    x, dims = call.input, _dims(call)
    sign = -1.0 if call.entry.op.endswith("min") else 1.0
    shared = (x.constant + x.sample).expand(x.shape).mean(dims, keepdim=True)
    own = (x.site + x.residual).expand(x.shape)
    alone = not any(x.axes.has(d, Role.SITE) for d in dims)
    if alone or bool((own == 0).all()):
        own, shared = x.variance.expand(x.shape), shared * 0
    mean, spread = _largest(sign * x.mean.expand(x.shape), own, dims, _repeats(x, dims))
    zero = torch.zeros_like(mean)
    made = _shaped(State(x.axes, sign * mean, zero, shared, zero, spread, x.width), call)
    return made


@extreme.gradient
def _(call: Call, upstream: State | list[State | None]) -> Gradients:
    first = upstream[0] if isinstance(upstream, list) else upstream
    number, x = call.id(0, "input"), call.input
    assert number is not None
    if first is None:
        return {}
    count = pool(x.axes, _dims(call), 0.0).size
    spread = _spread_back(first, call)
    thin = {name: getattr(spread, name) / count**2 for name in ("constant", "sample", "site")}
    mean = spread.mean / count
    rest = spread.second_moment / count - mean.square() - sum(thin.values(), torch.zeros((), dtype=DTYPE))
    return {number: replace(spread, mean=mean, **thin, residual=rest.clamp(min=0))}


def _repeats(x: State, dims: Sequence[int]) -> int:
    """Independent draws behind each element of the state: the samples that are reduced over."""
    return math.prod(a.size for d in dims for a in x.axes.dims[d] if a.role is Role.SAMPLE)


def _largest(mean: Tensor, variance: Tensor, dims: Sequence[int], repeats: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of the largest of independent Gaussians over some dimensions."""
    std = variance.clamp(min=1e-30).sqrt()
    dims = list(dims)
    low = (mean - 8 * std).amin(dims, keepdim=True)
    high = (mean + 8 * std).amax(dims, keepdim=True)
    steps = torch.linspace(0, 1, GRID, dtype=DTYPE)
    total = torch.zeros((*low.shape, GRID), dtype=DTYPE)
    grid = low.unsqueeze(-1) + (high - low).unsqueeze(-1) * steps
    for start in range(0, GRID, 27):
        part = grid[..., start : start + 27]
        z = (part - mean.unsqueeze(-1)) / std.unsqueeze(-1)
        total[..., start : start + 27] = repeats * torch.special.log_ndtr(z).sum(dims, keepdim=True)
    chance = total.exp().diff(dim=-1)
    middle = (grid[..., 1:] + grid[..., :-1]) / 2
    expected = (chance * middle).sum(-1)
    return expected, (chance * (middle - expected.unsqueeze(-1)).square()).sum(-1)
