"""Remedies in words for the way to the loss: `match-shapes`, `fix-labels`, `open-head`, `binary-head`."""

from __future__ import annotations

from tightrope.checks.trace import learned
from tightrope.finding import Finding, Remedy, Safety
from tightrope.remedies.registry import remedy
from tightrope.study import Study
from tightrope.tape.tape import Entry


def entry_of(study: Study, finding: Finding) -> Entry | None:
    """The call that a finding stands at."""
    return next((entry for entry in study.tape.entries if entry.index == finding.index), None)


@remedy("match-shapes")
def match_shapes(study: Study, finding: Finding) -> Remedy | None:
    """Say which operand of a comparison lacks a dimension, or has one too many."""
    entry = entry_of(study, finding)
    if entry is None:
        return None
    values, depends = study.tape.values, learned(study.tape)
    scores, target = sorted(entry.inputs[:2], key=lambda i: i not in depends)
    patch = f"output = output.reshape(target.shape)  # {values[scores].shape} to {values[target].shape}"
    return Remedy("match-shapes", "Give output and target one shape", patch, "none", Safety.ADVICE)


__all__ = ["entry_of", "match_shapes"]
