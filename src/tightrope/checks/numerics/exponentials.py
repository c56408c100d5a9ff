"""Softmaxes, sigmoids and their logarithms that are written out with exp."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tightrope.checks.trace import VIEWS
from tightrope.tape.tape import Entry, Tape

_ON_TOP = VIEWS | {"mul", "masked_fill", "where"}
_BELOW = VIEWS | {"add", "sum", "clamp", "clamp_min", "cumsum", "mul", "masked_fill", "where"}


@dataclass(frozen=True)
class Exponential:
    """An exp whose result is divided by a sum that holds it, or whose logarithm is taken.

    Attributes:
        name: `softmax`, `sigmoid`, `logsumexp` or `softplus`: what is written out.
        exp: the call of exp.
        entry: the call that divides, or takes the logarithm.
    """

    name: str
    exp: Entry
    entry: Entry

    @property
    def summed(self) -> bool:
        """Whether a whole row is summed."""
        return self.name in ("softmax", "logsumexp")


def exponentials(tape: Tape, made: dict[int, Entry]) -> Iterator[Exponential]:
    """All that a tape writes out, in its order."""
    for entry in tape.entries:
        if entry.op == "div" and len(entry.inputs) == 2:
            top = {e.index: e for e, _ in _exps(made, entry.inputs[0], _ON_TOP)}
            for exp, summed in _exps(made, entry.inputs[1], _BELOW):
                if exp.index in top:
                    yield Exponential("softmax" if summed else "sigmoid", exp, entry)
                    break
        elif entry.op in ("rdiv", "reciprocal") or (entry.op == "div" and not _first_is_tensor(entry)):
            added = made.get(entry.inputs[0])
            below = made.get(added.inputs[0]) if added is not None and added.op == "add" else None
            if below is not None and below.op == "exp":
                yield Exponential("sigmoid", below, entry)
        elif entry.op in ("log", "log1p"):
            for exp, summed in _exps(made, entry.inputs[0], _BELOW):
                yield Exponential("logsumexp" if summed else "softplus", exp, entry)
                break


def _exps(made: dict[int, Entry], number: int, through: frozenset[str]) -> Iterator[tuple[Entry, bool]]:
    """Calls of exp behind a value, each with whether it was summed on the way."""
    waiting = [(number, False)]
    seen: set[int] = set()
    while waiting:
        here, summed = waiting.pop()
        entry = made.get(here)
        if entry is None or entry.index in seen:
            continue
        seen.add(entry.index)
        if entry.op == "exp":
            yield entry, summed
        elif entry.op in through:
            waiting += [(i, summed or entry.op in ("sum", "cumsum")) for i in entry.inputs]


def _first_is_tensor(entry: Entry) -> bool:
    return bool(entry.args) and not isinstance(entry.args[0], (int, float))


__all__ = ["Exponential", "exponentials"]
