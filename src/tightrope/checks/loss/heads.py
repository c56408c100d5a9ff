"""Which loss a step computes, from which scores and targets, as read off its tape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tightrope.checks.loss.written import Written, written
from tightrope.checks.trace import VIEWS, learned, origin, producers
from tightrope.tape.tape import Entry, Ref, Tape

NAMED = {
    "cross_entropy": "cross_entropy", "nll_loss": "nll", "binary_cross_entropy_with_logits": "bce_logits",
    "binary_cross_entropy": "bce", "mse_loss": "mse", "l1_loss": "l1", "smooth_l1_loss": "l1", "huber_loss": "l1",
    "kl_div": "kl", "soft_margin_loss": "hinge", "poisson_nll_loss": "poisson",
}  # fmt: skip


@dataclass(frozen=True)
class LossTerm:
    """One loss on the tape.

    Attributes:
        kind: `cross_entropy`, `nll`, `bce_logits`, `bce`, `mse`, `l1`, `kl`, `hinge`, `poisson`, `gaussian` (a squared
            error over a learned variance), `soft` (a sum of target times log-probability), `likelihood` (the logarithm
            of the probability that was picked).
        entry: the call; of a loss that is written out, its mean or sum.
        scores: id of what it is computed from.
        target: id of the target; None when it is no tensor of the tape.
    """

    kind: str
    entry: Entry
    scores: int
    target: int | None


def loss_terms(tape: Tape) -> Iterator[LossTerm]:
    """All losses that a tape computes, by name or written out."""
    made = producers(tape)
    depends = learned(tape)
    for entry in tape.entries:
        if entry.op in NAMED:
            first, second = entry.argument(0, "input"), entry.argument(1, "target")
            if isinstance(first, Ref):
                yield LossTerm(NAMED[entry.op], entry, first.id, second.id if isinstance(second, Ref) else None)
        elif entry.op in ("mean", "sum") and not tape.values[entry.outputs[0]].shape:
            seen: set[Written] = set()
            for term in written(tape, made, depends, entry.inputs[0]):
                if term not in seen:
                    seen.add(term)
                    yield LossTerm(term.kind, entry, term.scores, term.target)


def maker(tape: Tape, made: dict[int, Entry], number: int) -> Entry | None:
    """The call that made scores, past views."""
    return made.get(origin(made, number, VIEWS))


__all__ = ["NAMED", "LossTerm", "loss_terms", "maker"]
