"""Follows what one sample reaches: two runs of a tape, of which the second has another sample in one place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tightrope.checks.loss.heads import LossTerm
from tightrope.checks.trace import origin, producers
from tightrope.isolation import undisturbed
from tightrope.tape.rerun import rerun
from tightrope.tape.tape import Entry, Kind, Tape

CHANGED = 1e-5
"""Share of a tensor's largest element above which a difference is no rounding."""
SAMPLES = 4
"""Fewest samples that are told apart."""


@dataclass
class Reach:
    """What one sample reaches.

    Attributes:
        first: the first call whose result holds the sample at other places than its own; None when there is none.
        source: id of what that call read.
        mixed: share of the other samples whose scores changed.
        own: whether its own scores changed.
    """

    first: Entry | None = None
    source: int = -1
    mixed: float = 0.0
    own: bool = True


@dataclass
class _Fixed:
    """Batch norms of the second run take the statistics of the first: they mix samples on purpose."""

    statistics: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def measure(self, entry: Entry, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if entry.op == "batch_norm":
            x = args[0]
            dims = [d for d in range(x.ndim) if d != 1]
            self.statistics[entry.index] = (x.mean(dims), x.var(dims, correction=0))
        return NotImplemented

    def apply(self, entry: Entry, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if entry.op != "batch_norm" or not _of_batch(entry):
            return NotImplemented
        named = dict(zip(("weight", "bias", "training", "momentum", "eps"), args[3:], strict=False), **kwargs)
        mean, var = self.statistics[entry.index]
        return F.batch_norm(args[0], mean, var, named.get("weight"), named.get("bias"), False, 0.0, named["eps"])


def _of_batch(entry: Entry) -> bool:
    return bool(entry.argument(5, "training", False)) or entry.argument(1, "running_mean") is None


def data_of(tape: Tape, term: LossTerm) -> dict[int, tuple[int, ...]]:
    """Sources of the scores that hold the target's samples, by id, with the axes (0 or 1) they may lie along."""
    made = producers(tape)
    if term.target is None:
        return {}
    target = origin(made, term.target)
    lengths = {n for n in tape.values[term.target].shape[:2] if n >= SAMPLES}
    found = {}
    for number in tape.ancestors(term.scores):
        value = tape.values[number]
        if value.producer is None and value.kind in (Kind.INPUT, Kind.KNOWN) and value.content is not None:
            axes = tuple(a for a in range(min(2, len(value.shape))) if value.shape[a] in lengths)
            if axes and number != target and _varies(value.content, axes):
                found[number] = axes
    return found


def _varies(content: Tensor, axes: tuple[int, ...]) -> bool:
    """Whether what lies along an axis differs from place to place: positions and masks of all samples do not count."""
    return any(bool((content.select(a, 0) != content.select(a, content.shape[a] // 2)).any()) for a in axes)


def reach(tape: Tape, scores: int, sources: dict[int, tuple[int, ...]], axis: int, length: int) -> Reach:
    """What the middle sample reaches, of `length` along `axis` of the sources.

    Raises:
        Unplayable: the tape cannot be run again.
    """
    place = length // 2
    changes = {}
    for number, axes in sources.items():
        content = tape.values[number].content
        if axis in axes and content is not None and content.shape[axis] == length:
            changes[number] = _replaced(content, axis, place)
    found, spread, fixed = Reach(), set(changes), _Fixed()
    with undisturbed():
        first = rerun(tape, call=fixed.measure, wanted={scores})
        second = rerun(tape, changes, fixed.apply, wanted={scores})
        for (entry, before), (_, after) in zip(first, second, strict=True):
            touched = False
            for number, a, b in zip(entry.outputs, before, after, strict=True):
                changed = _difference(a, b)
                if number == scores:
                    found.mixed, found.own = _share(changed, place, length), bool(changed.any())
                if changed.any() and not apart(changed, place, length):
                    touched = True
                elif changed.any():
                    spread.add(number)
            came = [n for n in entry.inputs if n in spread]
            if touched and found.first is None and came:
                found.first, found.source = entry, came[0]
    return found


def _replaced(content: Tensor, axis: int, place: int) -> Tensor:
    """A tensor in which the sample at a place is another one of the batch."""
    length = content.shape[axis]
    here = content.select(axis, place)
    others = (content.select(axis, (place + k) % length) for k in range(1, length))
    other = next((o for o in others if bool((o != here).any())), here)
    made = content.clone()
    made.select(axis, place).copy_(other)
    return made


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """Where two tensors differ by more than rounding."""
    if not a.is_floating_point():
        return a != b
    scale = float(a.detach().abs().nan_to_num(posinf=0.0).max()) if a.numel() else 0.0
    return (a - b).abs().nan_to_num() > CHANGED * scale


def apart(changed: Tensor, place: int, length: int) -> bool:
    """Whether a change stays at one place of some dimension that holds the samples, alone or merged with another."""
    return any(not bool(rest.any()) for rest in _others(changed, place, length))


def _others(changed: Tensor, place: int, length: int) -> Iterator[Tensor]:
    """Changes away from a place, for every way in which a dimension may hold the samples."""
    for dim, size in enumerate(changed.shape):
        if size == 0 or size % length:
            continue
        for shape, at in {((length, size // length), 0), ((size // length, length), 1)}:
            split = changed.unflatten(dim, shape).clone()
            split.select(dim + at, place).fill_(False)
            yield split


def _share(changed: Tensor, place: int, length: int) -> float:
    """Share of the other samples that changed, of scores whose samples lie along the first dimension."""
    if not changed.shape or changed.shape[0] != length:
        return 0.0 if apart(changed, place, length) else 1.0
    rows = changed.flatten(1).any(1) if changed.ndim > 1 else changed
    return 0.0 if apart(changed, place, length) else (int(rows.sum()) - int(rows[place])) / (length - 1)


__all__ = ["Reach", "apart", "data_of", "reach"]
