"""Losses that are written out: squared differences, picked log-probabilities, target times log-probability, hinges."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tightrope.checks.trace import VIEWS, origin
from tightrope.tape.tape import Entry, Ref, Tape

LOGARITHMS = frozenset(("log", "log_softmax", "logsigmoid"))
_NEUTRAL = VIEWS | {"neg", "mean", "sum", "masked_select", "masked_fill"}
_GUARDS = frozenset(("add", "clamp", "clamp_min"))


@dataclass(frozen=True)
class Written:
    """A loss that is written out; see `LossTerm`."""

    kind: str
    scores: int
    target: int | None


def written(tape: Tape, made: dict[int, Entry], depends: frozenset[int], number: int) -> Iterator[Written]:
    """The losses whose mean or sum is taken of a value.

    Args:
        tape: the recorded step.
        made: which entry made each value.
        depends: ids of the values that depend on a parameter.
        number: what is reduced.
    """
    reader = _Reader(tape, made, depends)
    seen: set[int] = set()
    waiting = [(number, False)]
    while waiting:
        here, scaled = waiting.pop()
        entry = made.get(here)
        if entry is None or entry.index in seen or here not in depends:
            continue
        seen.add(entry.index)
        found = reader.term(entry)
        if found is not None:
            yield Written("gaussian", found.scores, found.target) if scaled and found.kind == "mse" else found
        elif entry.op in _NEUTRAL:
            waiting.append((entry.inputs[0], scaled))
        elif entry.op in ("add", "sub"):
            waiting += [(i, scaled) for i in entry.inputs]
        elif entry.op in ("mul", "div"):
            inside = [i for i in entry.inputs if i in depends]
            both = len(inside) > 1
            waiting += [(i, both or scaled) for i in inside if not scaled]


class _Reader:
    """Reads one call as the pointwise part of a loss."""

    def __init__(self, tape: Tape, made: dict[int, Entry], depends: frozenset[int]) -> None:
        self.tape, self.made, self.depends = tape, made, depends

    def term(self, entry: Entry) -> Written | None:
        """The loss that a call computes, element by element; None for any other call."""
        if _squares(entry):
            return self._distance(entry, "mse")
        if entry.op == "abs":
            return self._distance(entry, "l1")
        if entry.op in ("getitem", "gather"):
            return self._picked(entry)
        if entry.op in ("log", "add", "sub", "mul"):
            return self._logarithm(entry)
        if entry.op in ("relu", "clamp", "clamp_min"):
            return self._hinge(entry)
        return None

    def _distance(self, entry: Entry, kind: str) -> Written | None:
        difference = self.made.get(origin(self.made, entry.inputs[0]))
        if difference is None or difference.op not in ("sub", "rsub"):
            return None
        pair = self._sides(difference)
        return Written(kind, *pair) if pair else None

    def _sides(self, entry: Entry) -> tuple[int, int] | None:
        """Scores and target among the two tensors of a call."""
        if len(entry.inputs) != 2:
            return None
        inside = [i for i in entry.inputs if i in self.depends]
        outside = [i for i in entry.inputs if i not in self.depends]
        return (inside[0], outside[0]) if len(inside) == len(outside) == 1 else None

    def _picked(self, entry: Entry) -> Written | None:
        """log p[rows, y], log p.gather(1, y)."""
        index = self._index(entry)
        source = self.made.get(origin(self.made, entry.inputs[0], VIEWS - {"getitem"}))
        if index is None or source is None or source.op not in LOGARITHMS:
            return None
        return Written("nll", source.outputs[0], index)

    def _index(self, entry: Entry) -> int | None:
        """The tensor of indices by which single elements are picked."""
        wanted = entry.argument(2, "index") if entry.op == "gather" else entry.argument(1, "")
        items = wanted if isinstance(wanted, (tuple, list)) else (wanted,)
        kinds = [i.id for i in items if isinstance(i, Ref)]
        kinds = [i for i in kinds if not self.tape.values[i].is_float and "bool" not in str(self.tape.values[i].dtype)]
        return kinds[-1] if kinds and (entry.op == "gather" or len(items) > 1) else None

    def _logarithm(self, entry: Entry) -> Written | None:
        """log(p[rows, y]); y log p + (1 - y) log(1 - p); y log p."""
        if entry.op == "log":
            inner = self._unguarded(entry.inputs[0])
            index = self._index(inner) if inner is not None and inner.op in ("getitem", "gather") else None
            return Written("likelihood", inner.inputs[0], index) if inner is not None and index is not None else None
        if entry.op == "mul":
            found = self._weighted(entry)
            return Written("soft", *found) if found else None
        parts = [self._weighted(self.made.get(origin(self.made, i))) for i in entry.inputs]
        if len(parts) != 2 or parts[0] is None or parts[1] is None:
            return None
        arguments = [self._argument(part[0]) for part in parts if part]
        for p, q, target in ((*arguments, parts[0][1]), (*reversed(arguments), parts[1][1])):
            rest = self.made.get(origin(self.made, q)) if q is not None else None
            if p is not None and rest is not None and rest.op in ("rsub", "sub") and rest.inputs == (p,):
                return Written("bce", p, target)
        return None

    def _weighted(self, entry: Entry | None) -> tuple[int, int] | None:
        """A logarithm and the target that it is multiplied by."""
        while entry is not None and entry.op == "neg":
            entry = self.made.get(origin(self.made, entry.inputs[0]))
        pair = self._sides(entry) if entry is not None and entry.op == "mul" else None
        if pair is None:
            return None
        start = origin(self.made, pair[0], VIEWS | {"neg"})
        source = self.made.get(start)
        return (start, pair[1]) if source is not None and source.op in LOGARITHMS else None

    def _argument(self, number: int) -> int | None:
        """What a logarithm is taken of, past a guard against zero."""
        entry = self.made.get(number)
        if entry is None or entry.op != "log":
            return None
        number = origin(self.made, entry.inputs[0])
        inner = self.made.get(number)
        if inner is not None and inner.op in _GUARDS and len(inner.inputs) == 1:
            return origin(self.made, inner.inputs[0])
        return number

    def _unguarded(self, number: int) -> Entry | None:
        entry = self.made.get(origin(self.made, number, VIEWS - {"getitem"}))
        if entry is not None and entry.op in _GUARDS and len(entry.inputs) == 1:
            entry = self.made.get(origin(self.made, entry.inputs[0], VIEWS - {"getitem"}))
        return entry

    def _hinge(self, entry: Entry) -> Written | None:
        """max(0, 1 - y s)."""
        if entry.op != "relu" and entry.argument(1, "min") != 0:
            return None
        inner = self.made.get(origin(self.made, entry.inputs[0]))
        if inner is None or (inner.op != "rsub" and not (inner.op == "sub" and len(inner.inputs) == 1)):
            return None
        product = self.made.get(origin(self.made, inner.inputs[0]))
        pair = self._sides(product) if product is not None and product.op == "mul" else None
        return Written("hinge", *pair) if pair else None


def _squares(entry: Entry) -> bool:
    """x ** 2, x.square(), x * x."""
    if entry.op == "mul":
        return len(entry.inputs) == 2 and entry.inputs[0] == entry.inputs[1]
    return entry.op == "square" or (entry.op == "pow" and entry.argument(1, "exponent") == 2)


__all__ = ["Written", "written"]
