"""`double-softmax`: a loss that applies its softmax to probabilities, or that misses it.

Law       cross-entropy of scores z is log sum exp z - z_y. Fed with probabilities p instead, it softmaxes a second
          time: its scores lie within 1 of each other, so with K classes no sample's loss can fall below ln(1 + (K - 1)
          / e), 1.46 for ten, and no gradient exceeds that of nearly uniform scores, times the slope of the first
          softmax. The negative log-likelihood loss is linear in what it reads: without log-probabilities it has no
          minimum.
Evidence  the operation that made the loss's input, past views; for the likelihood loss the largest value that it read,
          which for a log-probability is at most 0.
Verdict   `fault` when softmax or sigmoid feeds a loss that has its own, and when the likelihood loss reads anything but
          log-probabilities; `advice` for log-softmax before cross-entropy, which changes no number.
Remedy    take the last activation away (`remove-softmax`): in memory where it is a module, else the line to change.
Limits    reads the tape, so a loss that is written out by hand is not recognised.
References  Bridle (1990), Probabilistic interpretation of feedforward classification network outputs; Goodfellow,
          Bengio, Courville (2016), Deep learning, section 6.2.2.3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from tightrope.checks.echoes import AFTERMATH
from tightrope.checks.loss.heads import LossTerm, loss_terms, maker
from tightrope.checks.trace import producers
from tightrope.finding import Evidence, Finding, Severity
from tightrope.study import Study
from tightrope.subject import Subject
from tightrope.tape.tape import Entry

STAGE = "graph"
EXPLAINS = AFTERMATH
REMEDIES = ("remove-softmax",)

ROUNDING = 1e-3  # how far above 0 rounding in half precision may put a log-probability


def judge(study: Study) -> Iterator[Finding]:
    """A finding for each loss whose input went through the wrong last activation."""
    made = producers(study.tape)
    for term in loss_terms(study.tape):
        last = maker(study.tape, made, term.scores)
        op = last.op if last is not None else ""
        if term.kind == "cross_entropy" and op in ("softmax", "sigmoid"):
            yield _twice(study, term, last, "cross_entropy has its own softmax")
        elif term.kind == "bce_logits" and op in ("softmax", "sigmoid"):
            yield _twice(study, term, last, "binary_cross_entropy_with_logits has its own sigmoid")
        elif term.kind == "nll" and op != "log_softmax":
            units = study.measurement.units.get(term.scores)
            if units is not None and units.high > ROUNDING:
                yield _missing(study, term, last, units.high)
        elif term.kind == "cross_entropy" and op == "log_softmax":
            yield _idle(study, term, last)


def _twice(study: Study, term: LossTerm, last: Entry | None, why: str) -> Finding:
    assert last is not None
    shape = study.tape.values[term.scores].shape
    classes = shape[1] if len(shape) > 1 else 1
    evidence: tuple[Evidence, ...] = ()
    if term.kind == "cross_entropy" and study.measurement.loss is not None:
        floor = math.log(1 + (classes - 1) / math.e)
        evidence = (Evidence("loss", study.measurement.loss), Evidence("smallest loss that it can reach", floor, 0.0))
    gradient = study.measurement.gradients.get(term.scores)
    if gradient is not None:
        evidence += (Evidence("gradient's rms at the loss's input", gradient.rms),)
    return _finding(study, Severity.FAULT, last, f"{last.op} feeds {term.entry.op}; {why}", evidence)


def _missing(study: Study, term: LossTerm, last: Entry | None, high: float) -> Finding:
    what = last.op if last is not None else "an input"
    fact = f"nll_loss reads {what}, values up to {high:.3g}; log-probabilities are at most 0"
    evidence = (Evidence("largest input of nll_loss", high, 0.0),)
    return _finding(
        study, Severity.FAULT, last if last is not None and last.op == "softmax" else term.entry, fact, evidence
    )


def _idle(study: Study, term: LossTerm, last: Entry | None) -> Finding:
    assert last is not None
    return _finding(study, Severity.ADVICE, last, "log_softmax feeds cross_entropy: it has no effect there", ())


def _finding(study: Study, severity: Severity, entry: Entry, fact: str, evidence: tuple[Evidence, ...]) -> Finding:
    return Finding(
        "double-softmax", severity, entry.module, str(study.tape.location(entry)), fact, evidence, entry.index,
        modules=(entry.module,),
    )  # fmt: skip


def sick() -> Subject:
    """A softmax as last layer, under cross-entropy."""
    return _net(nn.Softmax(dim=-1))


def healthy() -> Subject:
    """The same net that ends in its scores."""
    return _net(nn.Identity())


def _net(last: nn.Module) -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10), last)
    return Subject(model, (torch.randn(64, 16), torch.arange(64) % 10), F.cross_entropy)
