"""`zero-gamma`: a normaliser whose gain is zero where the whole signal passes.

Law       a normaliser returns gamma * (x - mean) / std + beta. With gamma = 0 that is beta, whatever x: no sample
          differs from another behind it, and the gradient with respect to x is gamma times something, 0. On a residual
          branch the signal takes the other way, and gamma = 0 starts the block as the identity.
Evidence  gains that are exactly 0, read off the parameter; whether another way around them joins the signal further on.
Verdict   `fault` when every gain of a normaliser is 0 and no sum behind it adds a signal that did not pass it.
Remedy    gains of 1 (`restore-gamma`).
Limits    gains that are almost zero, or zero for some channels (pruned ones), pass.
References  Ioffe, Szegedy (2015), Batch normalization, ICML, algorithm 1; Goyal et al. (2017), Accurate, large
          minibatch SGD, section 5.1.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from tightrope.checks.echoes import AFTERMATH
from tightrope.checks.trace import JOINS, NORMS, learned
from tightrope.finding import Evidence, Finding, Severity
from tightrope.study import Study
from tightrope.subject import Subject
from tightrope.tape.tape import Entry, Kind, Ref, Tape

STAGE = "graph"
EXPLAINS = ("zero-init", "detached-branch", "unused-parameter", *AFTERMATH)
REMEDIES = ("restore-gamma",)

_PLACES = {"batch_norm": 3, "instance_norm": 3, "layer_norm": 2, "group_norm": 2, "rms_norm": 2}
"""Where a normaliser's gain stands among its arguments."""


def judge(study: Study) -> Iterator[Finding]:
    """A finding for each normaliser that lets nothing through and has no way around it."""
    tape = study.tape
    for entry in tape.entries:
        gain = gain_of(tape, entry)
        if gain is None or gain.is_meta or not gain.numel() or bool(gain.any()) or _bypassed(tape, entry):
            continue
        evidence = [Evidence("largest gain", 0.0, 1.0)]
        law = study.measurement.laws.get(entry.outputs[0])
        if law is not None:
            evidence.append(Evidence("std over samples behind it", law.signal, 1.0))
        yield Finding(
            "zero-gamma", Severity.FAULT, entry.module, str(tape.location(entry)),
            f"all {gain.numel()} gains of {entry.op} are 0: what it returns does not depend on its input, and no other "
            "way leads around it",
            tuple(evidence), entry.index, modules=(entry.module,),
        )  # fmt: skip
        return


def gain_of(tape: Tape, entry: Entry) -> torch.Tensor | None:
    """The gain parameter of a normaliser."""
    place = _PLACES.get(entry.op) if entry.op in NORMS else None
    gain = entry.argument(place, "weight") if place is not None else None
    if not isinstance(gain, Ref) or tape.values[gain.id].kind is not Kind.PARAMETER:
        return None
    return tape.values[gain.id].content


def _bypassed(tape: Tape, entry: Entry) -> bool:
    """Whether some sum, join or product behind a call brings in a signal that did not pass it."""
    free = learned(tape) - tape.parametric
    data = {value.id for value in tape.values.values() if value.producer is None and value.kind is Kind.INPUT}
    passed = set(entry.outputs)
    for later in tape.entries:
        if later.index <= entry.index or not passed.intersection(later.inputs):
            continue
        others = [i for i in later.inputs if i not in passed and (i in free or i in data)]
        if others and later.op in JOINS | {"add", "sub", "rsub", "where", "lerp", "scaled_dot_product_attention"}:
            return not _is_loss(tape, later)
        passed.update(later.outputs)
    return False


def _is_loss(tape: Tape, entry: Entry) -> bool:
    """Whether a call compares the net's result with its target: what it joins is no signal."""
    targets = [i for i in entry.inputs if tape.values[i].producer is None and tape.values[i].kind is Kind.INPUT]
    return entry.op in ("sub", "rsub") and len(targets) == 1


def sick() -> Subject:
    """Gains of zero between two layers."""
    return _net(0.0)


def healthy() -> Subject:
    """Gains of one."""
    return _net(1.0)


def _net(gain: float) -> Subject:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(32)
    nn.init.constant_(norm.weight, gain)
    model = nn.Sequential(nn.Linear(8, 32, bias=False), norm, nn.Tanh(), nn.Linear(32, 3))
    return Subject(model, (torch.randn(64, 8), torch.arange(64) % 3), F.cross_entropy)


__all__ = ["gain_of"]
