"""`last-layer-init`: a last bias that does not know how often each class occurs.

Law       scores that carry no information reach the entropy H of the class frequencies p when the last bias is ln p_k
          (for two classes in one unit ln p / (1 - p)); at bias 0 they start at ln K. The first steps of training move
          the bias by ln K - H nats' worth, with gradients that all samples share and that drown what differs between
          them.
Evidence  the frequencies of the labels in the batch; ln K less their entropy, beside the standard error that a batch of
          m labels leaves, sqrt(Var(ln p_y) / m); the loss where the scores start.
Verdict   `advice` when the loss starts less than half a nat from ln K and the frequencies explain more than a third of
          it, by four standard errors.
Remedy    set the last bias to the logarithms of the frequencies (`prior-bias`).
Limits    the first step, and labels of one batch; classes that the batch does not hold count as one label of it. A
          sampler that balances classes leaves nothing to say.
References  Karpathy (2019), A recipe for training neural networks; Lin, Goyal, Girshick, He, Dollár (2017), Focal loss
          for dense object detection, ICCV, section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.checks.loss.heads import LossTerm, loss_terms
from tightrope.checks.loss.numbers import numbers
from tightrope.checks.trace import VIEWS, learned, origin, producers
from tightrope.finding import Evidence, Finding, Severity
from tightrope.study import Study
from tightrope.subject import Subject
from tightrope.tape.tape import Entry, Kind, Ref

STAGE = "batch"
EXPLAINS = ()
REMEDIES = ("prior-bias",)

KNOWN = 1 / 3  # of ln K: what the frequencies alone explain
START = 0.5  # nats: further from ln K the scores say something already
ERRORS = 4.0  # standard errors
FEW = 32  # labels: fewer tell no frequencies


def judge(study: Study) -> Iterator[Finding]:
    """A finding for each loss of the first step that its class frequencies alone would lower."""
    if study.step != 1:
        return
    made = producers(study.tape)
    for term in loss_terms(study.tape):
        loss = study.measurement.laws.get(term.entry.outputs[0])
        frequencies = class_frequencies(study, made, term)
        last = last_bias(study, made, term)
        if loss is None or frequencies is None or last is None:
            continue
        p, count = frequencies
        level, entropy = math.log(len(p)), float(-(p * p.log()).sum())
        error = math.sqrt(max(float((p * p.log().square()).sum()) - entropy**2, 0.0) / count)
        explained = level - entropy
        if abs(loss.mean - level) < START and explained > KNOWN * level and explained > ERRORS * error:
            yield _finding(study, term, p, loss.mean, entropy, error)


def class_frequencies(study: Study, made: dict[int, Entry], term: LossTerm) -> tuple[Tensor, int] | None:
    """How often each class occurs among the labels of a loss, and how many labels there are."""
    target = numbers(study.tape, made, term.target)
    shape = study.tape.values[term.scores].shape
    if target is None or term.entry.kwargs.get("weight") is not None or target.numel() < FEW:
        return None
    if term.kind == "cross_entropy" and not target.is_floating_point() and len(shape) == 2:
        counts = torch.bincount(target.flatten().clamp(min=0), minlength=shape[1]).double()
    elif (term.kind == "bce_logits" and shape[-1:] in ((1,), ())) or (term.kind == "bce_logits" and len(shape) == 1):
        share = target.double().mean()
        if not 0 <= share <= 1:
            return None
        counts = torch.stack([1 - share, share]) * target.numel()
    else:
        return None
    counts = counts.clamp(min=1.0)
    return counts / counts.sum(), target.numel()


def last_bias(study: Study, made: dict[int, Entry], term: LossTerm) -> str | None:
    """The name of the bias of the linear map that makes the scores; None where there is none."""
    tape = study.tape
    entry = made.get(origin(made, term.scores, VIEWS))
    bias = entry.argument(2, "bias") if entry is not None and entry.op == "linear" else None
    if not isinstance(bias, Ref) or tape.values[bias.id].kind is not Kind.PARAMETER or bias.id not in learned(tape):
        return None
    return tape.values[bias.id].name


def _finding(study: Study, term: LossTerm, p: Tensor, loss: float, entropy: float, error: float) -> Finding:
    level = math.log(len(p))
    evidence = (
        Evidence("loss", loss, entropy, unit="nat"),
        Evidence("entropy of the class frequencies", entropy, level, error, "nat"),
        Evidence("share of the most frequent class", float(p.max()), 1 / len(p)),
    )
    return Finding(
        "last-layer-init", Severity.ADVICE, term.entry.module, str(term.entry.location),
        f"the loss starts at {loss:.3g}; the class frequencies as the last bias, {float(p.max()):.0%} for the most "
        f"frequent, reach {entropy:.3g}",
        evidence, term.entry.index, modules=(term.entry.module,),
    )  # fmt: skip


def sick() -> Subject:
    """One class in a hundred, and a last bias near zero."""
    return _net(torch.arange(200) % 100 == 0)


def healthy() -> Subject:
    """Classes of equal frequency."""
    return _net(torch.arange(200) % 2 == 0)


def _net(label: Tensor) -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    return Subject(model, (torch.randn(200, 8), label.float()[:, None]), F.binary_cross_entropy_with_logits)


__all__ = ["class_frequencies", "last_bias"]
