"""Mixtures of experts: each token passes one of several linear maps, chosen by a router."""

from __future__ import annotations

import torch
from torch import Tensor

from tightrope.roles import Axes
from tightrope.rules.linear import mapped, outer
from tightrope.rules.registry import Call, Gradients, rule
from tightrope.rules.state import DTYPE, State


@rule("_grouped_mm", "grouped_mm", "grouped_mm_fallback")
def grouped(call: Call) -> State:
    """Rows times the matrix of their group: a mixture of the laws that each matrix makes, all alike probable.

    Raises:
        NotImplementedError: the matrices are not given as (group, input, output).
    """
    x, weight = call.input, _matrices(call)
    return _mixed([mapped(x, _turned(part), call.axes[0]) for part in _each(weight)])


@grouped.gradient
def _(call: Call, upstream: State) -> Gradients:
    x, weight = call.input, _matrices(call)
    first, second = call.id(0, "input"), call.id(1, "mat2")
    assert first is not None and second is not None
    parts = _each(weight)
    share = 1.0 / len(parts)
    to_weight = _turned(outer(x, upstream, call.axes[0], _turned(parts[0])))
    # A group has its share of the rows: a sum over so many fewer of them.
    found = State.of(weight.axes, share * to_weight.mean, residual=share * to_weight.variance, width=to_weight.width)
    return {first: _mixed([mapped(upstream, part, x.axes) for part in parts]), second: found}


def _matrices(call: Call) -> State:
    weight = call.state(1, "mat2") or call.state(1, "weight")
    if weight is None or len(weight.axes.dims) != 3:
        raise NotImplementedError(f"{call.entry.op} of other than a matrix for each group")
    return weight


def _each(weight: State) -> list[State]:
    """The groups' matrices; drawn ones are all alike."""
    axes = Axes(weight.axes.dims[1:])
    alike = all(field.shape[0] == 1 for field in weight.fields)
    groups = 1 if alike else weight.axes.shape[0]
    return [weight.map(lambda f, at=g: f[min(at, f.shape[0] - 1)], axes) for g in range(groups)]


def _turned(weight: State) -> State:
    return weight.map(lambda f: f.transpose(-1, -2), Axes(weight.axes.dims[::-1]))


def _mixed(states: list[State]) -> State:
    """The law of rows of which each follows one of several laws: their means differ from row to row."""

    def average(fields: list[Tensor]) -> Tensor:
        return sum(fields, torch.zeros((), dtype=DTYPE)) / len(fields)

    mean, *parts = (average(list(fields)) for fields in zip(*(s.fields for s in states), strict=True))
    between = average([(s.mean - mean).square() for s in states])
    parts[3] = parts[3] + between
    return State.from_fields(states[0].axes, (mean, *parts), width=max(s.width for s in states))


__all__ = ["grouped"]
