"""`label-mismatch`: labels in another code than the loss reads.

Law       binary cross-entropy -y s + ln(1 + e^s) of a label y outside [0, 1] has slope of one sign in s: it falls
          without end. Cross-entropy against probabilities t has gradient (sum t) softmax(z) - t, and a minimum with
          sum t = 1 alone: rows that sum to S multiply loss and gradient by S; with two ones in a row both cannot be
          had. max(0, 1 - y s) with y = 0 is 1 whatever s. A squared error of K scores against one class number has the
          number as the minimum of every score.
Evidence  the labels' own numbers: smallest and largest, whole or not, the sums of their rows.
Verdict   `fault` for whole numbers outside {0, 1} under binary cross-entropy, for negative probabilities, for a zero
          under a loss that reads -1 and +1, for class numbers that are stretched over K scores, and for probabilities
          of which every row sums to 10 or more (per cent, counts); `warning` for rows that all sum to one other number
          than 1, and for rows of several ones under a softmax; `advice` for a squared error of a softmax's result.
Remedy    the line that recodes the labels (`fix-labels`).
Limits    whole numbers under a squared error of one output may be an ordinal scale and pass; so do smoothed, mixed and
          one-hot labels, rows of zeros (masked), and labels of one class alone (contrastive losses put it first).
References  Murphy (2022), Probabilistic machine learning: an introduction, chapter 10; Szegedy, Vanhoucke, Ioffe,
          Shlens, Wojna (2016), Rethinking the Inception architecture for computer vision, CVPR.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.checks.echoes import AFTERMATH
from tightrope.checks.loss.heads import LossTerm, loss_terms, maker
from tightrope.checks.loss.numbers import numbers, whole
from tightrope.checks.trace import producers
from tightrope.finding import Evidence, Finding, Severity
from tightrope.study import Study
from tightrope.subject import Subject
from tightrope.tape.tape import Entry

STAGE = "batch"
EXPLAINS = ("target-outside-head-range", "unscaled-target", *AFTERMATH)
REMEDIES = ("fix-labels",)

ROUNDING = 1e-3  # of a label in half precision
SEVERAL = 1.5  # sum of a row that has more than one label: half way between one and two
FEW = 8  # rows: fewer show no rule
MANY = 10.0  # times the gradient: above a rate that is ten times too high no step is stable that was half way so
WEIGHT = 0.1  # of 1: smoothing that is spread over the wrong number of classes stays within it
SHARE = 0.1  # of the rows: fewer may be mistakes of single labels


def judge(study: Study) -> Iterator[Finding]:
    """A finding for each loss that reads labels in another code."""
    made = producers(study.tape)
    for term in loss_terms(study.tape):
        target = numbers(study.tape, made, term.target)
        if target is None or not bool(torch.isfinite(target).all()):
            continue
        last = maker(study.tape, made, term.scores)
        found = None
        if term.kind in ("bce", "bce_logits"):
            found = _binary(study, term, target)
        elif term.kind in ("cross_entropy", "soft", "kl"):
            found = _probabilities(study, term, target)
        elif term.kind == "hinge":
            found = _signed(study, term, target)
        elif term.kind == "mse":
            found = _squared(study, term, last, target)
        if found is not None:
            yield found


def _binary(study: Study, term: LossTerm, target: Tensor) -> Finding | None:
    low, high = _ends(target)
    if not whole(target) or (low >= 0 and high <= 1):
        return None
    evidence = (
        Evidence("smallest label", low, 0.0),
        Evidence("largest label", high, 1.0),
        Evidence("share of labels outside [0, 1]", float(((target < 0) | (target > 1)).double().mean()), 0.0),
    )
    what = "signs" if low < 0 else "class numbers"
    fact = f"the labels are {what} from {low:.3g} to {high:.3g}, {_loss(term)} reads 0 and 1: it falls without end"
    return _finding(study, Severity.FAULT, term.entry, fact, evidence)


def _probabilities(study: Study, term: LossTerm, target: Tensor) -> Finding | None:
    shape = study.tape.values[term.scores].shape
    dim = 1 if term.kind == "cross_entropy" else -1
    if not target.is_floating_point() or tuple(target.shape) != shape or len(shape) < 2 or shape[dim] < 2:
        return None
    low, high = _ends(target)
    if low < -ROUNDING and term.kind == "cross_entropy":
        evidence = (Evidence("smallest label", low, 0.0), Evidence("largest label", high, 1.0))
        fact = f"the labels lie in [{low:.3g}, {high:.3g}], {_loss(term)} reads probabilities"
        return _finding(study, Severity.FAULT, term.entry, fact, evidence)
    sums = target.double().sum(dim)
    binary = bool(((target == 0) | (target == 1)).all())
    off = _scaled(study, term, sums[sums != 0]) if low >= 0 and not binary else None
    if off is not None:
        return off
    share = float((sums > SEVERAL).double().mean())
    if not binary or term.kind == "kl" or share <= SHARE or low < 0:
        return None
    most = float(sums.max())
    evidence = (Evidence("share of rows with several labels", share, 0.0), Evidence("most labels of a row", most, 1.0))
    fact = f"{share:.0%} of the rows have several labels, up to {most:.0f}: a softmax has one probability to share out"
    return _finding(study, Severity.WARNING, term.entry, fact, evidence)


def _scaled(study: Study, term: LossTerm, sums: Tensor) -> Finding | None:
    """Probabilities that all sum to one other number than 1; per cent, or counts."""
    if len(sums) < FEW:
        return None
    low, high = _ends(sums)
    middle = float(sums.median())
    others = sum(t.kind in ("cross_entropy", "soft", "kl") for t in loss_terms(study.tape)) > 1
    alike = high - low <= ROUNDING * high and term.kind == "cross_entropy" and not others
    if low < MANY and not (alike and abs(high - 1) > WEIGHT):
        return None
    evidence = (
        Evidence("sum of a row of the target", middle, 1.0),
        Evidence("smallest sum", low, 1.0),
        Evidence("largest sum", high, 1.0),
    )
    fact = f"the rows of the target sum to {middle:.3g}, {_loss(term)} reads probabilities: its gradient is "
    severity = Severity.FAULT if low >= MANY else Severity.WARNING
    return _finding(study, severity, term.entry, f"{fact}{middle:.3g} times what it should be", evidence)


def _signed(study: Study, term: LossTerm, target: Tensor) -> Finding | None:
    low, high = _ends(target)
    if not whole(target) or low != 0 or high != 1:
        return None
    share = float((target == 0).double().mean())
    evidence = (Evidence("share of labels that are 0", share, 0.0), Evidence("smallest label", low, -1.0))
    fact = f"{share:.0%} of the labels are 0, {_loss(term)} reads -1 and +1: they leave no gradient"
    return _finding(study, Severity.FAULT, term.entry, fact, evidence)


def _squared(study: Study, term: LossTerm, last: Entry | None, target: Tensor) -> Finding | None:
    shape = study.tape.values[term.scores].shape
    classes = shape[-1] if len(shape) == 2 else 1
    low, high = _ends(target)
    numbered = len(shape) == 2 and tuple(target.shape) == (shape[0], 1)
    if classes > 2 and numbered and whole(target) and low == 0 and high == classes - 1:
        evidence = (Evidence("scores that are compared with one label", classes, 1.0), Evidence("largest label", high))
        fact = f"each of {classes} scores is compared with the class number, 0 to {high:.0f}; level: its own 0 or 1"
        return _finding(study, Severity.FAULT, term.entry, fact, evidence)
    if last is None or last.op != "softmax" or tuple(target.shape) != shape or classes < 2 or _ends(target) != (0, 1):
        return None
    if not whole(target) or not bool((target.sum(-1) == 1).all()):
        return None
    slope = Evidence("largest slope of a probability in its score, at p = 1/2", 0.25, 1.0)
    fact = "a squared error of a softmax: its gradient falls with p (1 - p) where the answer is wrong and certain"
    return _finding(study, Severity.ADVICE, term.entry, fact, (slope,))


def _ends(target: Tensor) -> tuple[float, float]:
    low, high = torch.aminmax(target)
    return float(low), float(high)


def _loss(term: LossTerm) -> str:
    names = {"bce": "binary cross-entropy", "soft": "cross-entropy", "hinge": "the hinge loss"}
    return names.get(term.kind, term.entry.op) if term.entry.op in ("mean", "sum") else term.entry.op


def _finding(study: Study, severity: Severity, entry: Entry, fact: str, evidence: tuple[Evidence, ...]) -> Finding:
    return Finding(
        "label-mismatch", severity, entry.module, str(entry.location), fact, evidence, entry.index,
        modules=(entry.module,),
    )  # fmt: skip


def sick() -> Subject:
    """Labels of -1 and +1 under binary cross-entropy."""
    return _net(lambda x: torch.sign(x))


def healthy() -> Subject:
    """The same labels as 0 and 1."""
    return _net(lambda x: (x > 0).float())


def _net(label: object) -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    x = torch.randn(64, 8)
    return Subject(model, (x, label(x[:, :1])), F.binary_cross_entropy_with_logits)  # type: ignore[operator]
