"""How a layer sits in its net: what reads it, how many activations are in series with it, where branches join."""

from __future__ import annotations

from tightrope.checks.layers import Layer
from tightrope.checks.trace import CHANCE, NORMS, VIEWS, reads
from tightrope.rules.functions import CHAINING, LINEAR
from tightrope.tape.tape import Entry, Kind, Tape

POOLS = frozenset(
    ("max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d")
)
_ON = VIEWS | CHANCE | POOLS


def curved(entry: Entry) -> bool:
    """Whether a call is an activation: an elementwise function of one tensor, and not a straight one."""
    return entry.op in CHAINING and entry.op not in LINEAR and len(entry.inputs) == 1


def ahead(tape: Tape, layer: Layer) -> Entry | None:
    """The activation that reads a layer's output, if nothing else does."""
    readers = list(reads(tape, layer.entry.outputs[0], _ON))
    return readers[0] if len(readers) == 1 and curved(readers[0]) else None


def joins(tape: Tape, layer: Layer) -> bool:
    """Whether a layer ends a residual branch: its output, activated and scaled at most, is added to another signal.

    What is added must not come of the layer itself, or the layer makes the stream that branches leave and join.
    """
    return _joins(tape, layer.entry.outputs[0], layer.entry)


def _joins(tape: Tape, number: int, start: Entry) -> bool:
    for reader in reads(tape, number, _ON):
        if reader.op == "add" and _forks(tape, reader):
            return sum(_descends(tape, n, start) for n in dict.fromkeys(reader.inputs)) == 1
        on = curved(reader) or (reader.op in ("mul", "div", "add") and not _forks(tape, reader))
        if on and _joins(tape, reader.outputs[0], start):
            return True
    return False


def _descends(tape: Tape, number: int, start: Entry) -> bool:
    """Whether a value is made of what a call returned."""
    seen: set[int] = set()
    waiting = [number]
    while waiting:
        entry = tape.makers.get(waiting.pop())
        if entry is None or entry.index < start.index or entry.index in seen:
            continue
        if entry.index == start.index:
            return True
        seen.add(entry.index)
        waiting.extend(entry.inputs)
    return False


def _forks(tape: Tape, entry: Entry) -> bool:
    """Whether a call reads two signals; on tokens, which are known, all counts as made of parameters."""
    read = {n for n in entry.inputs if tape.values[n].kind in (Kind.RESULT, Kind.INPUT)}
    return len(read if entry.outputs[0] in tape.parametric else read - tape.parametric) > 1


def series(tape: Tape) -> dict[int, int]:
    """Activations that lie in series with each activation, itself included, by index of its entry.

    Counted between joins and normalisers, which begin anew: a branch has a depth of its own.
    """
    above: dict[int, int] = {}
    for entry in tape.entries:
        ways = max((above.get(n, 0) for n in entry.inputs), default=0)
        count = 0 if _anew(tape, entry) else ways + int(curved(entry))
        above.update(dict.fromkeys(entry.outputs, count))
    below: dict[int, int] = {}
    for entry in reversed(tape.entries):
        ways = max((below.get(n, 0) for n in entry.outputs), default=0)
        count = 0 if _anew(tape, entry) else ways + int(curved(entry))
        for n in entry.inputs:
            below[n] = max(below.get(n, 0), count)
    return {e.index: above[e.outputs[0]] + below.get(e.outputs[0], 0) for e in tape.entries if curved(e)}


def _anew(tape: Tape, entry: Entry) -> bool:
    return entry.op in NORMS or (entry.op in ("add", "mul", "cat") and _forks(tape, entry)) or entry.op == "softmax"


def indexed(tape: Tape) -> frozenset[int]:
    """Ids of weights that an embedding looks up: they keep the law of a table, also where a layer shares them."""
    return frozenset(
        entry.inputs[i] for entry in tape.entries if entry.op == "embedding" for i in range(len(entry.inputs))
    )


__all__ = ["ahead", "curved", "indexed", "joins", "series"]
