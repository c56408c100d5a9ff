"""Which loss a step computes, from which scores and targets, as read off its tape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tightrope.checks.trace import VIEWS, origin, producers
from tightrope.tape.tape import Entry, Kind, Ref, Tape

NAMED = {
    "cross_entropy": "cross_entropy", "nll_loss": "nll", "binary_cross_entropy_with_logits": "bce_logits",
    "binary_cross_entropy": "bce", "mse_loss": "mse", "l1_loss": "l1", "smooth_l1_loss": "l1", "huber_loss": "l1",
}  # fmt: skip


@dataclass(frozen=True)
class LossTerm:
    """One loss on the tape.

    Attributes:
        kind: `cross_entropy`, `nll`, `bce_logits`, `bce`, `mse` or `l1`.
        entry: the call.
        scores: id of what it is computed from.
        target: id of the target; None when it is no tensor of the tape.
    """

    kind: str
    entry: Entry
    scores: int
    target: int | None


def loss_terms(tape: Tape) -> Iterator[LossTerm]:
    """All losses that a tape computes, by name or as a mean of squared differences."""
    made = producers(tape)
    for entry in tape.entries:
        if entry.op in NAMED:
            first, second = entry.argument(0, "input"), entry.argument(1, "target")
            if isinstance(first, Ref):
                yield LossTerm(NAMED[entry.op], entry, first.id, second.id if isinstance(second, Ref) else None)
        elif entry.op == "mean" and not tape.values[entry.outputs[0]].shape:
            yield from _squared(tape, made, entry)


def _squared(tape: Tape, made: dict[int, Entry], entry: Entry) -> Iterator[LossTerm]:
    """mean((a - b) ** 2), with one of both from outside."""
    power = made.get(origin(made, entry.inputs[0]))
    if power is None or not (power.op == "square" or (power.op == "pow" and power.argument(1, "exponent") == 2)):
        return
    difference = made.get(origin(made, power.inputs[0]))
    if difference is None or difference.op not in ("sub", "rsub") or len(difference.inputs) != 2:
        return
    outside = [i for i in difference.inputs if tape.values[origin(made, i)].kind in (Kind.INPUT, Kind.KNOWN)]
    inside = [i for i in difference.inputs if i not in outside]
    if len(outside) == 1 and len(inside) == 1:
        yield LossTerm("mse", entry, inside[0], outside[0])


def maker(tape: Tape, made: dict[int, Entry], number: int) -> Entry | None:
    """The call that made scores, past views."""
    return made.get(origin(made, number, VIEWS))
