"""Masks that a training step draws by itself: what they leave of the mean, and what evaluation does in their place."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tightrope.checks.trace import VIEWS, learned
from tightrope.measure.measurement import Measurement
from tightrope.study import Study
from tightrope.tape.names import RANDOM
from tightrope.tape.tape import Entry, Kind, Tape

DRAWS = RANDOM - {"empty", "empty_like"}
SHAPES = frozenset(
    ("full_like", "ones_like", "zeros_like", "empty_like", "new_empty", "new_zeros", "new_ones", "new_full")
)
"""Calls that take of a tensor its shape alone."""
FEWEST, MOST = 0.01, 0.99
"""Shares of a mask's zeros: outside it masks nothing, or is no mask."""
MISS = 0.1
"""Of the mean, lost or gained in one layer: what a batch norm's running mean misses too in ordinary training."""
ERRORS = 4.0


@dataclass(frozen=True)
class Mask:
    """A product of a learned tensor with a mask that was drawn.

    Attributes:
        entry: the product.
        mean: what it leaves of the mean over draws, with the constant factors beside it.
        error: standard error of `mean`.
    """

    entry: Entry
    mean: float
    error: float


def unequal(study: Study) -> list[Mask]:
    """Masks whose mean is not 1 though evaluation puts nothing in their place; none where that is not known."""
    found = [
        mask for mask in masks(study.tape, study.measurement)
        if abs(mask.mean - 1) > max(MISS, ERRORS * mask.error) and mask.entry.training
    ]  # fmt: skip
    evaluated = study.replay.tape(training=False) if found and study.replay is not None else None
    return [mask for mask in found if evaluated is not None and not _replaced(evaluated, mask)]


def masks(tape: Tape, measurement: Measurement) -> Iterator[Mask]:
    """Products of learned tensors with drawn masks, of single units or of a branch beside its skip connection."""
    drawn = _drawn(tape)
    depends = learned(tape) - drawn  # `rand_like(x)` takes of x its shape alone
    for entry in tape.entries:
        sides = tuple(dict.fromkeys(entry.inputs))
        if entry.op != "mul" or len(sides) != 2 or len(depends.intersection(sides)) != 1:
            continue
        (data,), (mask,) = [n for n in sides if n in depends], [n for n in sides if n not in depends]
        if mask not in drawn or not (_of_units(tape, data, mask) or _is_branch(tape, entry, data)):
            continue
        kept = _kept(tape, measurement, data, mask, entry.outputs[0])
        if kept is None:
            continue
        mean, error = kept
        factors = [1.0, *_factors(tape, measurement, drawn, entry, data)]
        best = min(factors, key=lambda factor: abs(mean * factor - 1))
        yield Mask(entry, mean * best, error * best)


def _drawn(tape: Tape) -> frozenset[int]:
    """Ids of what is made of random numbers and constants alone."""
    found: set[int] = set()
    known = learned(tape) | tape.of_batch
    constants = {v.id for v in tape.values.values() if v.kind in (Kind.KNOWN, Kind.BUFFER)} - tape.of_batch
    for entry in tape.entries:
        free = set(entry.inputs) - constants - found
        if entry.op in SHAPES:
            constants.update(entry.outputs)
            continue
        draws = entry.op in DRAWS and (entry.op.endswith("_like") or not free & known)
        if draws or (found.intersection(entry.inputs) and not free):
            found.update(entry.outputs)
    return frozenset(found)


def _of_units(tape: Tape, data: int, mask: int) -> bool:
    """Whether units of one sample are masked apart from each other: not whole samples, tokens or conditions."""
    shape, drawn = tape.values[data].shape, tape.values[mask].shape
    axis = len(shape) - 1 if len(shape) < 4 else 1
    behind = len(shape) - axis
    return len(shape) > 1 and len(drawn) >= behind and drawn[-behind] == shape[axis] > 1


def _is_branch(tape: Tape, entry: Entry, data: int) -> bool:
    """Whether what is masked is added to something that it was made of."""
    above = tape.ancestors(data)
    waiting, seen = [entry.outputs[0]], set[int]()
    while waiting:
        for reader in tape.readers.get(waiting.pop(), []):
            if reader.op == "add" and set(reader.inputs) & set(above):
                return True
            if reader.op in VIEWS | {"mul", "div"} and reader.index not in seen:
                seen.add(reader.index)
                waiting.extend(reader.outputs)
    return False


def _kept(tape: Tape, measurement: Measurement, data: int, mask: int, product: int) -> tuple[float, float] | None:
    """Mean of a mask of zeros and one other number, with its standard error."""
    count = math.prod(tape.values[mask].shape)
    law, units = measurement.laws.get(mask), measurement.units.get(mask)
    if tape.values[mask].dtype is torch.bool:
        before, after = measurement.units.get(data), measurement.units.get(product)
        if before is None or after is None or before.zero >= MOST:
            return None
        share, high = (1 - after.zero) / (1 - before.zero), 1.0
    elif law is not None and units is not None and units.low == 0 and units.high > 0:
        share, high = 1 - units.zero, units.high
        if abs(law.mean - share * high) > 1e-3 * high:
            return None  # other numbers too
    else:
        return None
    if not FEWEST <= 1 - share <= MOST:
        return None
    return share * high, high * math.sqrt(share * (1 - share) / count)


def _factors(tape: Tape, measurement: Measurement, drawn: frozenset[int], entry: Entry, data: int) -> Iterator[float]:
    """Numbers that the product, or the data before it, is multiplied with on the same path, one after the other."""
    before = tape.makers.get(data)
    first = _number(tape, measurement, drawn, before) if before is not None else None
    if first is not None:
        yield first
    number, product = entry.outputs[0], 1.0
    while True:
        readers = [r for r in tape.readers.get(number, []) if r.op in VIEWS | {"mul", "div"}]
        if len(readers) != 1:
            return
        factor = 1.0 if readers[0].op in VIEWS else _number(tape, measurement, drawn, readers[0])
        if factor is None:
            return
        product *= factor
        yield product
        number = readers[0].outputs[0]


def _number(tape: Tape, measurement: Measurement, drawn: frozenset[int], entry: Entry) -> float | None:
    """The number that a tensor is multiplied with; None where it is another tensor or the call is no product."""
    if entry.op not in ("mul", "div") or len(entry.args) < 2:
        return None
    numbers = [float(a) for a in entry.args if isinstance(a, (int, float))]
    if numbers:
        return numbers[0] if entry.op == "mul" else 1 / numbers[0] if numbers[0] else None
    laws = [measurement.laws[n] for n in entry.inputs if n in drawn and n in measurement.laws]
    if len(laws) != 1 or not laws[0].mean:
        return None
    return laws[0].mean if entry.op == "mul" else 1 / laws[0].mean


def _replaced(evaluated: Tape, mask: Mask) -> bool:
    """Whether evaluation draws too where training masks, or multiplies by what training leaves of the mean."""
    path = mask.entry.module
    here = [entry for entry in evaluated.entries if entry.module in (path, path.rpartition(".")[0])]
    scales = [
        float(a) if entry.op == "mul" else 1 / float(a)
        for entry in here if entry.op in ("mul", "div") for a in entry.args if isinstance(a, (int, float)) and a
    ]  # fmt: skip
    return any(entry.op in DRAWS for entry in here) or any(abs(s - mask.mean) < MISS * mask.mean for s in scales)


__all__ = ["Mask", "masks", "unequal"]
