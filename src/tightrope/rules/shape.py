"""Operations that only move, copy or select elements: a state moves as its tensor does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tightrope.roles import Axes
from tightrope.rules.registry import Call, Gradients, rule
from tightrope.rules.state import State, state_shape


@rule("contiguous", "clone", "alias", "to", "type_as", "float", "double", "half", "bfloat16", "detach", "data",
      "requires_grad", "cpu", "cuda", "type", "checkpoint", "identity", "fmt", trivial=True)  # fmt: skip
def copied(call: Call) -> State:
    """A copy, a cast or a move."""
    return replace(call.input, axes=call.axes[0])


@copied.gradient
def _(call: Call, upstream: State) -> Gradients:
    number = call.id(0, "input")
    assert number is not None
    if call.entry.op in ("detach", "data"):
        return {}
    return {number: replace(upstream, axes=call.input.axes)}


@rule("view", "reshape", "flatten", "unflatten", "view_as", "reshape_as", "unsqueeze", "squeeze", "ravel", trivial=True)
def reshaped(call: Call) -> State:
    """The same elements under another shape."""
    return reshape(call.input, call.axes[0])


@reshaped.gradient
def _(call: Call, upstream: State) -> Gradients:
    number = call.id(0, "input")
    assert number is not None
    return {number: reshape(upstream, call.input.axes)}


def reshape(state: State, axes: Axes) -> State:
    """A state under another grouping of the same axes; what is the same along a dimension stays so."""
    source, target = state.shape, state_shape(axes)

    def move(field: Tensor) -> Tensor:
        if field.numel() == 1:
            return field.reshape((1,) * len(target))
        kept = [size for size in field.shape if size != 1]
        wanted = [size for size in target if size != 1]
        if tuple(field.shape) != source and kept != wanted:
            aligned = _align(field, source, target)
            if aligned is not None:
                return aligned
            field = field.expand(source)
        if field.numel() != _count(target):
            field = field.expand(source)
        return field.reshape(target)

    return state.map(move, axes)


def _align(field: Tensor, source: Sequence[int], target: Sequence[int]) -> Tensor | None:
    """Reshape a field in which some dimensions are collapsed, block by block, without filling them."""
    sizes: list[int] = []
    i = j = 0
    while i < len(source) or j < len(target):
        left, right = [i], [j]
        a = source[i] if i < len(source) else 1
        b = target[j] if j < len(target) else 1
        i, j = i + 1, j + 1
        while a != b:
            if a < b and i < len(source):
                a *= source[i]
                left.append(i)
                i += 1
            elif j < len(target):
                b *= target[j]
                right.append(j)
                j += 1
            else:
                return None
        held = [field.shape[d] == source[d] for d in left if d < len(source) and source[d] != 1]
        wanted = [target[d] for d in right if d < len(target)]
        if all(held):
            sizes += wanted
        elif not any(held):
            sizes += [1] * len(wanted)
        else:
            return None
    return field.reshape(sizes)


def _count(shape: Sequence[int]) -> int:
    found = 1
    for size in shape:
        found *= size
    return found


@rule("permute", "transpose", "t", "T", "mT", "movedim", trivial=True)
def permuted(call: Call) -> State:
    """The same elements in another order of dimensions."""
    order = _order(call)
    return call.input.map(lambda f: f.permute(order), call.axes[0])


@permuted.gradient
def _(call: Call, upstream: State) -> Gradients:
    number, order = call.id(0, "input"), _order(call)
    assert number is not None
    back = [order.index(i) for i in range(len(order))]
    return {number: upstream.map(lambda f: f.permute(back), call.input.axes)}


def _order(call: Call) -> list[int]:
    """The permutation, read off the operation itself on a tensor of distinct sizes."""
    rank = len(call.input.axes.dims)
    probe = torch.empty([i + 2 for i in range(rank)], device="meta")
    result = call.entry.function(probe, *call.entry.args[1:], **call.entry.kwargs) if call.entry.op not in (
        "T", "mT") else (probe.permute(*reversed(range(rank))) if call.entry.op == "T" else probe.mT)  # fmt: skip
    return [size - 2 for size in result.shape]
