"""Recurrences: layers that run over time, and loops that use one weight again on what it made."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tightrope.checks.trace import CONTRACTIONS, origin, producers
from tightrope.law import Law
from tightrope.study import Study
from tightrope.tape.tape import RECURRENT, Entry, Kind, Tape

SHORTEST = 8
"""Uses of one weight, each on what the one before made, from which on a loop is a recurrence."""


@dataclass(frozen=True)
class Recurrence:
    """One recurrence and how it goes with time.

    Attributes:
        entry: the recurrent layer, or the loop's first use of its weight.
        weights: ids of the weights that multiply the state, where they are known.
        state: rms of the state at each step, the first one first.
        gradient: rms of the gradient at each step; of the loss in a loop, of a random direction of the last output in
            a layer. Empty where none arrives.
        cells: the loop's uses of its weight; empty for a layer.
    """

    entry: Entry
    weights: tuple[int, ...]
    state: tuple[float, ...]
    gradient: tuple[float, ...]
    cells: tuple[Entry, ...] = ()

    @property
    def steps(self) -> int:
        """Number of time steps."""
        return len(self.state)


def recurrences(study: Study) -> Iterator[Recurrence]:
    """Every recurrence of a step that is long enough."""
    tape = study.tape
    made = producers(tape)
    for entry in tape.entries:
        course = study.measurement.courses.get(entry.outputs[0]) if entry.op in RECURRENT else None
        if course is not None and len(course.state) >= SHORTEST:
            yield Recurrence(entry, _recurrent(tape, entry), course.state, course.gradient)
    seen: set[tuple[int, ...]] = set()
    for uses in _uses(tape, made).values():
        calls = tuple(entry.index for entry in uses)
        cells = _loop(tape, uses) if calls not in seen else []
        seen.add(calls)
        if len(cells) >= SHORTEST:
            yield _unrolled(study, cells)


def _uses(tape: Tape, made: dict[int, Entry]) -> dict[int, list[Entry]]:
    """The calls that contract data with a parameter, by the parameter, where there are many."""
    found: dict[int, list[Entry]] = {}
    for entry in tape.entries:
        if entry.op not in CONTRACTIONS or entry.op in RECURRENT:
            continue
        for number in dict.fromkeys(origin(made, i) for i in entry.inputs):
            value = tape.values[number]
            if value.kind is Kind.PARAMETER and len(value.shape) >= 2:
                found.setdefault(number, []).append(entry)
    return {weight: uses for weight, uses in found.items() if len(uses) >= SHORTEST}


def _loop(tape: Tape, uses: list[Entry]) -> list[Entry]:
    """The longest way along which each use of a weight reads what the one before made."""
    users = {entry.index for entry in uses}
    depth: dict[int, int] = {}
    at: dict[int, int] = {}
    for entry in tape.entries:
        if entry.index < uses[0].index:
            continue
        here = max((depth.get(i, 0) for i in entry.inputs), default=0) + (entry.index in users)
        if here:
            depth.update(dict.fromkeys(entry.outputs, here))
            at[entry.index] = here
    rounds: dict[int, Entry] = {}
    for entry in uses:
        rounds.setdefault(at[entry.index], entry)
    return [rounds[i] for i in sorted(rounds)]


def _unrolled(study: Study, cells: list[Entry]) -> Recurrence:
    """What was measured of the state in a loop; only the last steps that a gradient reached count for the gradient."""
    laws, gradients, values = study.measurement.laws, study.measurement.gradients, study.tape.values
    shape = values[cells[-1].outputs[0]].shape
    cells = [cell for cell in cells if values[cell.outputs[0]].shape == shape]

    state = [_rms(laws, cell) for cell in cells]
    back: list[float] = []
    for cell in reversed(cells):
        found = _rms(gradients, cell)
        if found is None:
            break
        back.append(found)
    known = tuple(s for s in state if s is not None)
    return Recurrence(cells[0], _recurrent(study.tape, cells[-1]), known, tuple(back[::-1]), tuple(cells))


def _rms(table: Mapping[int, Law], cell: Entry) -> float | None:
    """Root of the second moments of what a cell returns, its state and what it remembers; None if nothing is known."""
    moments = [table[i].second_moment for i in cell.outputs[:2] if i in table]
    return math.sqrt(sum(moments)) if moments else None


def _recurrent(tape: Tape, entry: Entry) -> tuple[int, ...]:
    """The weights of a call whose rows are multiples of their columns: they map the state onto itself."""
    cellular = entry.op in RECURRENT or entry.op.endswith("_cell")
    found = []
    for number in entry.inputs:
        value = tape.values[number]
        if value.kind is not Kind.PARAMETER or len(value.shape) != 2:
            continue
        named = not cellular or "weight_hh" in (value.name or "")
        if named and value.shape[0] % value.shape[1] == 0 and (cellular or value.shape[0] == value.shape[1]):
            found.append(number)
    return tuple(found)


__all__ = ["Recurrence", "recurrences"]
