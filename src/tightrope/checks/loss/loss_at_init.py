"""`loss-at-init`: a first loss far above that of a model that knows nothing.

Law       scores that carry no information should say so: cross-entropy starts at ln K for K classes, binary
          cross-entropy at ln 2 a unit. Scores z of standard deviation s start it s^2 / 2 above (Gaussian z, many
          classes). A squared error starts at E[y^2] + E[f^2]; standardised targets make that 1 + E[f^2].
Evidence  the first recorded loss beside ln K or ln 2, with the standard error that the batch leaves; the scores'
          standard deviation; for a squared error the rms of output and target.
Verdict   excess above 2 nats `warning`, above 10 `fault`, when it exceeds three standard errors; for a squared or
          absolute error an output of rms above 5, and five times the target's, `warning`.
Remedy    scale the last layer down (`scale-head`).
Limits    a target that is too large is `unscaled-target`. Only the first step is judged, and only a loss that is too
          high: a trained model starts low and rightly so. A loss with class weights or a sum over the batch has no such
          level, and scores with a bound (cosines over a temperature) start where that is set: both are passed over.
References  Karpathy (2019), A recipe for training neural networks; Zhang, Dauphin, Ma (2019), Fixup initialization,
          ICLR.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from tightrope.checks.bounds import Bounds
from tightrope.checks.echoes import PROGRESS, UNITS
from tightrope.checks.loss.heads import LossTerm, loss_terms
from tightrope.checks.trace import learned, producers
from tightrope.finding import Evidence, Finding, Severity
from tightrope.law import Law
from tightrope.study import Study
from tightrope.subject import Subject

STAGE = "batch"
EXPLAINS = ("clipping-always", *UNITS, *PROGRESS)
REMEDIES = ("scale-head",)

WARNING, FAULT = 2.0, 10.0  # nats above ln K: logit std 2 and 4.5; library models at their default start below 1
ERRORS = 3.0  # standard errors
LARGE_OUTPUT = 5.0  # rms; library models at their default start below 2
RATIO = 5.0  # between output and target


def judge(study: Study) -> Iterator[Finding]:
    """A finding for each loss of the first step that starts too high."""
    if study.step != 1:
        return
    for term in loss_terms(study.tape):
        loss = study.measurement.laws.get(term.entry.outputs[0])
        scores = study.measurement.laws.get(term.scores)
        if loss is None or scores is None or not loss.finite or not scores.finite:
            continue
        if term.kind in ("mse", "l1"):
            finding = _squared(study, term, loss, scores)
        elif term.kind in ("cross_entropy", "bce_logits"):
            finding = _entropy(study, term, loss, scores)
        else:
            continue
        if finding is not None:
            yield finding


def _entropy(study: Study, term: LossTerm, loss: Law, scores: Law) -> Finding | None:
    shape = study.tape.values[term.scores].shape
    weighted = any(term.entry.kwargs.get(name) is not None for name in ("weight", "pos_weight"))
    if weighted or term.entry.kwargs.get("reduction", "mean") == "sum" or not shape:
        return None
    classes = 2 if term.kind == "bce_logits" else shape[1 if len(shape) > 1 else 0]
    count = math.prod(shape) if term.kind == "bce_logits" else math.prod(shape) // max(classes, 1)
    level = math.log(max(classes, 1))
    error = scores.std / math.sqrt(max(count, 1))
    excess = loss.mean - level
    if excess <= WARNING or excess <= ERRORS * error or _tempered(study, term):
        return None
    name = "ln 2" if term.kind == "bce_logits" else f"ln {classes}"
    fact = (
        f"the loss starts at {loss.mean:.3g}, {name} = {level:.3g} without knowledge; scores have std {scores.std:.3g}"
    )
    evidence = (Evidence("loss", loss.mean, level, error, "nat"), Evidence("std of the scores", scores.std, 1.0))
    return _finding(study, term, Severity.FAULT if excess > FAULT else Severity.WARNING, fact, evidence)


def _tempered(study: Study, term: LossTerm) -> bool:
    """Whether the scores have a bound: cosines over a temperature start as far out as it says."""
    tape = study.tape
    low, high = Bounds(tape, producers(tape), study.measurement.units, learned(tape)).of(term.scores)
    return math.isfinite(low) and math.isfinite(high)


def _squared(study: Study, term: LossTerm, loss: Law, scores: Law) -> Finding | None:
    target = study.measurement.laws.get(term.target) if term.target is not None else None
    if target is None or not target.finite:
        return None
    output = Evidence("rms of the output", scores.rms, 1.0)
    wanted = Evidence("rms of the target", target.rms, 1.0)
    if scores.rms <= max(LARGE_OUTPUT, RATIO * target.rms):
        return None
    fact = f"the output's rms is {scores.rms:.3g}, the target's {target.rms:.3g}"
    evidence = (output, wanted)
    fact = f"the {'squared' if term.kind == 'mse' else 'absolute'} error starts at {loss.mean:.3g}: {fact}"
    return _finding(study, term, Severity.WARNING, fact, evidence)


def _finding(study: Study, term: LossTerm, severity: Severity, fact: str, evidence: tuple[Evidence, ...]) -> Finding:
    return Finding(
        "loss-at-init", severity, term.entry.module, str(study.tape.location(term.entry)), fact, evidence,
        term.entry.index, modules=(term.entry.module,),
    )  # fmt: skip


def sick() -> Subject:
    """A last layer drawn with a standard deviation of 1 over a fan-in of 64."""
    return _net(1.0)


def healthy() -> Subject:
    """The same net with the last layer at its default initialisation."""
    return _net(None)


def _net(std: float | None) -> Subject:
    torch.manual_seed(0)
    first, second, head = nn.Linear(16, 64), nn.Linear(64, 64), nn.Linear(64, 10)
    for layer in (first, second):
        nn.init.xavier_normal_(layer.weight, gain=1.6)
    if std is not None:
        nn.init.normal_(head.weight, std=std)
    model = nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), head)
    return Subject(model, (torch.randn(64, 16), torch.arange(64) % 10), F.cross_entropy)
