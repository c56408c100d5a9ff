"""One dimension of a tensor followed along the tape: what becomes of it, and what sums over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map

from tightrope.checks.trace import CHANCE, CONTRACTIONS
from tightrope.roles import Axes, Role
from tightrope.tape.axes import infer
from tightrope.tape.tape import Entry, Ref, Tape

MOVES = frozenset((
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "transpose", "permute", "t", "T", "mT",
    "movedim", "view_as", "reshape_as", "expand", "expand_as", "ravel",
))  # fmt: skip
"""Calls that rearrange dimensions."""
KEEPS = CHANCE | {
    "contiguous",
    "clone",
    "float",
    "half",
    "double",
    "bfloat16",
    "to",
    "type",
    "type_as",
    "neg",
    "log",
    "masked_fill",
    "nan_to_num",
    "clamp",
}
"""Calls that leave every dimension where it is."""
_SUMS = frozenset(("sum", "mean", "nansum", "amax", "max", "logsumexp"))


@dataclass(frozen=True)
class Use:
    """What reads a tensor whose dimension is followed.

    Attributes:
        entry: the call.
        value: id of what it reads.
        dim: where the dimension stands in that.
        summed: whether the call sums over it; None where that cannot be said.
    """

    entry: Entry
    value: int
    dim: int
    summed: bool | None


def axes_of(tape: Tape) -> dict[int, Axes]:
    """The roles of all dimensions on a tape, by value id."""
    known: dict[int, Axes] = {}
    for entry in tape.entries:
        known.update(zip(entry.outputs, infer(tape, entry, known), strict=True))
    return known


def is_sample(axes: Axes | None, dim: int, samples: int | None) -> bool:
    """Whether a dimension is the batch and nothing else."""
    if axes is None or samples is None or samples < 2 or dim >= len(axes.dims):
        return False
    held = axes.dims[dim]
    return len(held) == 1 and held[0].role is Role.SAMPLE and held[0].size == samples


def uses(tape: Tape, number: int, dim: int, through: frozenset[str] = frozenset()) -> Iterator[Use]:
    """Every call that reads a value past rearrangements and products with other values, with its dimension.

    Args:
        tape: the recorded step.
        number: id of the value.
        dim: the dimension that is followed.
        through: further calls that leave dimensions where they are.
    """
    waiting = [(number, dim)]
    seen: set[int] = set()
    while waiting:
        here, place = waiting.pop()
        for entry in tape.readers.get(here, []):
            if entry.index in seen:
                continue
            seen.add(entry.index)
            after = _after(tape, entry, here, place, through)
            if after is not None:
                waiting.append((entry.outputs[0], after))
            else:
                yield Use(entry, here, place, _summed(tape, entry, here, place))


def _after(tape: Tape, entry: Entry, number: int, dim: int, through: frozenset[str]) -> int | None:
    """Where a dimension stands behind a call that neither sums over it nor mixes it; None behind any other."""
    before, result = tape.values[number].shape, tape.values[entry.outputs[0]].shape
    if entry.op in KEEPS and entry.inputs[0] == number and result == before:
        return dim
    if entry.op == "linear" and "linear" in through:
        return dim if entry.inputs[0] == number and dim < len(before) - 1 else None
    if entry.op in through and (entry.inputs[0] == number or len(entry.inputs) == 2) and result == before:
        return dim
    if entry.op == "mul" and len(entry.inputs) == 2 and entry.inputs[0] != entry.inputs[1]:
        place = dim + len(result) - len(before)
        return place if result[place] == before[dim] else None
    return moved(tape, entry, dim) if entry.op in MOVES and entry.inputs[0] == number else None


def moved(tape: Tape, entry: Entry, dim: int) -> int | None:
    """Where a rearrangement takes a dimension; None where it is merged with others or split."""
    before = tape.values[entry.inputs[0]].shape
    strides = [1 if i == dim else 0 for i in range(len(before))]
    probe = torch.empty_strided(before, strides, device="meta")
    first = entry.inputs[0]

    def fill(item: Any) -> Any:
        if not isinstance(item, Ref):
            return item
        return probe if item.id == first else torch.empty(tape.values[item.id].shape, device="meta")

    args, kwargs = tree_map(fill, (entry.args, dict(entry.kwargs)))
    function: Callable[..., Any] = entry.function
    try:
        result = tree_flatten(function(*args, **kwargs))[0][0]
    except (RuntimeError, TypeError, NotImplementedError):
        return None
    if not isinstance(result, torch.Tensor) or tuple(result.shape) != tape.values[entry.outputs[0]].shape:
        return None
    found = [i for i, size in enumerate(result.shape) if size > 1 and result.stride(i) != 0]
    return found[0] if len(found) == 1 and result.shape[found[0]] == before[dim] else None


def _summed(tape: Tape, entry: Entry, number: int, dim: int) -> bool | None:
    """Whether a call sums over a dimension of one of its operands."""
    shape = tape.values[number].shape
    if entry.op in _SUMS:
        wanted = entry.argument(1, "dim", entry.kwargs.get("axis"))
        if wanted is None:
            return True
        dims = [wanted] if isinstance(wanted, int) else list(wanted)
        return dim in [d % len(shape) for d in dims if isinstance(d, int)]
    if entry.op == "einsum":
        return _einsum(entry, number, dim)
    if entry.op in ("matmul", "bmm", "mm") and len(entry.inputs) == 2 and entry.inputs[0] != entry.inputs[1]:
        left = entry.inputs[0] == number
        return dim == (len(shape) - 1 if left or len(shape) == 1 else len(shape) - 2)
    if entry.op == "linear":
        return dim == len(shape) - 1 if entry.inputs[0] == number else None
    return False if entry.op in CONTRACTIONS and entry.op.startswith("conv") and dim == 0 else None


def _einsum(entry: Entry, number: int, dim: int) -> bool | None:
    equation = entry.args[0] if entry.args and isinstance(entry.args[0], str) else ""
    left, arrow, out = equation.replace(" ", "").partition("->")
    parts = left.split(",")
    if not arrow or "." in equation or len(parts) != len(entry.inputs) or entry.inputs.count(number) != 1:
        return None
    return parts[entry.inputs.index(number)][dim] not in out


__all__ = ["KEEPS", "MOVES", "Use", "axes_of", "is_sample", "moved", "uses"]
