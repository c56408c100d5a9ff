"""`target-outside-head-range`: targets that the last activation cannot reach.

Law       a head f(z) in [a, b] leaves a squared error of at least E[d(y)^2], d being the distance of y from [a, b]; as
          a share of Var(y) that is what no weights explain. For scores in [a, b] under a cross-entropy of K classes the
          loss cannot fall below ln(1 + (K - 1) exp(a - b)), and under binary cross-entropy of logits not below ln(1 +
          exp(-b)) for y = 1 and ln(1 + exp(a)) for y = 0. Binary cross-entropy of a target outside [0, 1] falls without
          end. Class scores behind a rectifier have no floor, since they may grow; but a score that is cut to 0 has
          slope 0, so that (p - y) f'(z) = 0: the sample teaches nothing about that class, its own one included.
Evidence  the operation that made the scores, past views and the loss's own softmax or sigmoid, and its range; the
          target's smallest and largest element; the floor beside the target's variance, or the loss's floor beside what
          a constant reaches; the share of class scores that a rectifier cuts, and of units that are 0 for all samples.
Verdict   floor over variance above 0.01 `warning`, above 0.1 `fault`; a floor of a cross-entropy above a tenth of ln K
          (ln 2) `warning`, `fault` where one class of a binary target is out of reach altogether; fractional targets
          of a binary cross-entropy beyond [-0.5, 1.5] `fault`. A rectifier that cuts more than a tenth of the class
          scores `warning`, `fault` where fewer units are alive than the batch holds classes.
Remedy    take the activation away (`open-head`), or bring the target into its range.
Limits    a head that is scaled or shifted afterwards is not bounded by the activation and not judged. Targets on the
          edge of an open range are reached in the limit and pass, and so do rectified maps that are pooled into scores,
          and scores that are positive with a slope (softplus) under a softmax. Whole numbers under a binary
          cross-entropy are left to `label-mismatch`.
References  Bishop (2006), Pattern recognition and machine learning, section 5.2; LeCun, Bottou, Orr, Müller (1998),
          Efficient backprop.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tightrope.checks.bounds import head_range
from tightrope.checks.echoes import AFTERMATH
from tightrope.checks.loss.heads import LossTerm, loss_terms, maker
from tightrope.checks.loss.numbers import numbers, reach, whole
from tightrope.checks.trace import producers
from tightrope.finding import Evidence, Finding, Severity
from tightrope.study import Study
from tightrope.subject import Subject
from tightrope.tape.tape import Entry

STAGE = "batch"
EXPLAINS = ("unscaled-target", *AFTERMATH)
REMEDIES = ("open-head",)

CLASSES = ("cross_entropy", "nll", "likelihood", "bce_logits", "bce")
SQUASHING = frozenset(("softmax", "sigmoid", "log_softmax", "logsigmoid"))
RECTIFIERS = frozenset(("relu", "relu6", "threshold", "hardtanh", "clamp", "clamp_min"))
WARNING, FAULT = 0.01, 0.1  # of the target's variance: a hundredth, and a tenth, of R^2 that nothing can explain
FLOOR = 0.1  # of ln K: the share of the way from knowing nothing to knowing all that the head cannot go
CUT = 0.1  # of the class scores: the same tenth, of the gradients that a head is to receive
NOISE = 0.5  # half the distance of the two labels: no smoothing and no label noise in use goes so far


def judge(study: Study) -> Iterator[Finding]:
    """A finding for each loss whose target lies outside what its scores, or the loss itself, can take."""
    made = producers(study.tape)
    for term in loss_terms(study.tape):
        last = maker(study.tape, made, term.scores)
        target = numbers(study.tape, made, term.target)
        found = None
        if term.kind in ("mse", "l1", "gaussian") and target is not None:
            found = _regression(study, term, last, target)
        elif term.kind in ("bce", "bce_logits") and target is not None and not whole(target):
            found = _unbounded(study, term, target)
        elif term.kind in CLASSES:
            last = _scored(study, made, term, last)
            found = _rectified(study, term, last, target) or _entropy(study, term, last, target)
        if found is not None:
            yield found


def _scored(study: Study, made: dict[int, Entry], term: LossTerm, last: Entry | None) -> Entry | None:
    """What made the scores, also those that a softmax or a sigmoid in front of the loss reads."""
    if term.kind in ("cross_entropy", "bce_logits"):
        return last
    return maker(study.tape, made, last.inputs[0]) if last is not None and last.op in SQUASHING else None


def _rectified(study: Study, term: LossTerm, last: Entry | None, target: Tensor | None) -> Finding | None:
    """Class scores of which a part is cut off, without a slope."""
    units = study.measurement.units.get(last.outputs[0]) if last is not None and last.op in RECTIFIERS else None
    if last is None or units is None or term.kind in ("bce", "bce_logits") or units.zero <= CUT:
        return None
    shape = study.tape.values[term.scores].shape
    classes = shape[1] if len(shape) > 1 else 1
    alive = round((1 - units.silent) * classes)
    labels = target is not None and not target.is_floating_point()
    held = len(torch.unique(target[target >= 0])) if labels and target is not None else 0
    evidence = (
        Evidence("share of scores that are cut to 0", units.zero, 0.0),
        Evidence("share of classes whose score is 0 for all samples", units.silent, 0.0),
    )
    fact = f"{last.op} cuts {units.zero:.0%} of the class scores to 0, where no gradient passes"
    if units.silent > 0:
        fact += f"; {classes - alive} of {classes} classes have none from any sample"
    severity = Severity.FAULT if alive < held else Severity.WARNING
    return _finding(study, severity, last, f"{fact}; level: 0", evidence)


def _regression(study: Study, term: LossTerm, last: Entry | None, target: Tensor) -> Finding | None:
    ends = head_range(last)
    found = reach(target, ends) if ends is not None else None
    if ends is None or found is None or last is None or found.share <= WARNING:
        return None
    severity = Severity.FAULT if found.share > FAULT else Severity.WARNING
    evidence = (
        Evidence("smallest squared error that it can reach", found.floor, 0.0),
        Evidence("share of the target's variance that this is", min(found.share, 1e9), 0.0),
        Evidence("share of the target outside the range", found.outside, 0.0),
        Evidence("smallest target", found.low, ends[0] if math.isfinite(ends[0]) else None),
        Evidence("largest target", found.high, ends[1] if math.isfinite(ends[1]) else None),
    )
    fact = (
        f"the targets lie in [{found.low:.3g}, {found.high:.3g}], {last.op} ends in {_interval(ends)}: "
        f"{found.outside:.0%} of them are out of reach"
    )
    return _finding(study, severity, last, fact, evidence)


def _unbounded(study: Study, term: LossTerm, target: Tensor) -> Finding | None:
    found = reach(target, (0.0, 1.0))
    if found is None or (found.low >= -NOISE and found.high <= 1 + NOISE):
        return None
    evidence = (
        Evidence("smallest target", found.low, 0.0),
        Evidence("largest target", found.high, 1.0),
        Evidence("share of the target outside [0, 1]", found.outside, 0.0),
    )
    fact = (
        f"the targets lie in [{found.low:.3g}, {found.high:.3g}]; a binary cross-entropy takes probabilities and falls "
        "without end outside [0, 1]"
    )
    return _finding(study, Severity.FAULT, term.entry, fact, evidence)


def _entropy(study: Study, term: LossTerm, last: Entry | None, target: Tensor | None) -> Finding | None:
    ends = head_range(last) if last is not None and last.op not in SQUASHING else None
    shape = study.tape.values[term.scores].shape
    if ends is None or last is None or not shape:
        return None
    severity = Severity.WARNING
    if term.kind not in ("bce", "bce_logits"):
        classes = shape[1] if len(shape) > 1 else shape[0]
        floor, level = math.log1p((classes - 1) * math.exp(ends[0] - ends[1])), math.log(max(classes, 2))
    else:
        if target is None:
            return None
        share = float(target.double().mean())
        above, below = (math.log1p(math.exp(-ends[1])), math.log1p(math.exp(min(ends[0], 700.0))))
        floor, level = share * above + (1 - share) * below, math.log(2)
        if (share < 1 and ends[0] >= 0) or (share > 0 and ends[1] <= 0):
            severity = Severity.FAULT
    if floor <= FLOOR * level:
        return None
    evidence = (Evidence("smallest loss that it can reach", floor, 0.0, unit="nat"), Evidence("without scores", level))
    fact = f"{last.op} keeps the scores in {_interval(ends)}: the loss cannot fall below {floor:.3g}, a constant "
    return _finding(study, severity, last, fact + f"prediction reaches {level:.3g}", evidence)


def _interval(ends: tuple[float, float]) -> str:
    low = "(-inf" if ends[0] == -math.inf else f"[{ends[0]:.3g}"
    return low + (", inf)" if ends[1] == math.inf else f", {ends[1]:.3g}]")


def _finding(study: Study, severity: Severity, entry: Entry, fact: str, evidence: tuple[Evidence, ...]) -> Finding:
    return Finding(
        "target-outside-head-range", severity, entry.module, str(study.tape.location(entry)), fact, evidence,
        entry.index, modules=(entry.module,),
    )  # fmt: skip


def sick() -> Subject:
    """A ReLU behind the last layer, under targets of either sign."""
    return _net(nn.ReLU())


def healthy() -> Subject:
    """The same net that ends in its last layer."""
    return _net(nn.Identity())


def _net(last: nn.Module) -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1), last)
    x = torch.randn(64, 8)
    return Subject(model, (x, x[:, :1] + x[:, 1:2]), nn.functional.mse_loss)
