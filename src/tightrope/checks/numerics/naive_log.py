"""`naive-log`: the logarithm of a probability that rounds to zero.

Law       softmax gives a score d below the largest one exp(-d), which is 0 beyond d = 103 in single precision and 16.6
          in float16; 1 - sigmoid(z) is 0 beyond z = 16.6 in single precision, half a rounding unit. The logarithm is
          then minus infinity, and its slope 1 / 0. log_softmax and logsigmoid compute -d itself. Training that makes a
          classifier sure brings its scores from a standard deviation near 0.5 to one near 5; of n normal ones the
          largest is sqrt(2 ln n) standard deviations out. A logarithm that a label of 0 multiplies meets its zero on
          that way, and 0 times infinity is NaN; one that is picked by the label meets it where the net is surely wrong.
Evidence  what the logarithm reads on the tape; the smallest measured probability as a distance d beside the dtype's
          limit; whether labels of 0 multiply the logarithm; for anything else that is learned, its smallest value.
Verdict   `fault` when the limit is passed, or a learned argument is 0 or less; `warning` when the largest of a short
          run's scores will pass it (ten times the scores of the first step, twice those of a later one; behind labels
          of 0 a standard deviation of 5 at least); else `advice`. log(p + eps) and log(p.clamp(min=eps)) are silent.
Remedy    log_softmax or logsigmoid of the scores (`stable-log`).
Limits    one batch; an argument that the walk cannot follow is judged by its measured values alone.
References  Goldberg (1991), What every computer scientist should know about floating-point arithmetic, ACM Comput.
          Surv. 23; Blanchard, Higham, Higham (2021), Accurately computing the log-sum-exp and softmax functions, IMA J.
          Numer. Anal. 41.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.checks.echoes import AFTERMATH
from tightrope.checks.loss.numbers import numbers
from tightrope.checks.numerics.naive_softmax import largest_exponent
from tightrope.checks.trace import VIEWS, learned, origin, producers, reads
from tightrope.finding import Evidence, Finding, Severity
from tightrope.rules.extremes import extreme
from tightrope.study import Study
from tightrope.subject import Subject
from tightrope.tape.tape import Entry

STAGE = "batch"
EXPLAINS = AFTERMATH
REMEDIES = ("stable-log",)

FIRST, LATER = 10.0, 2.0  # growth of a classifier's scores: they start near std 0.5 and end near 5
SURE = 5.0  # their standard deviation then
RUN = 1000  # steps of a short run: so many batches are read


def judge(study: Study) -> Iterator[Finding]:
    """A finding for each logarithm of what is, or may become, zero; the one nearest to it first."""
    found = list(_found(study))
    yield from sorted(found, key=lambda f: (f.severity.rank, -f.evidence[0].measured / (f.evidence[0].expected or 1.0)))


def _found(study: Study) -> Iterator[Finding]:
    tape = study.tape
    made = producers(tape)
    depends = learned(tape) - tape.parametric
    for entry in tape.entries:
        if entry.op not in ("log", "log2", "log10") or entry.inputs[0] not in depends:
            continue
        source, rest = _source(made, entry.inputs[0])
        if source is not None and source.op in ("softmax", "sigmoid"):
            finding = _probability(study, entry, source, rest)
        else:
            finding = _zero(study, entry)
        if finding is not None:
            yield finding


def _source(made: dict[int, Entry], number: int) -> tuple[Entry | None, bool]:
    """What a logarithm is taken of, past views, and whether of 1 minus it."""
    source = made.get(origin(made, number))
    if source is not None and source.op in ("rsub", "sub") and len(source.inputs) == 1:
        first = source.args[0] if source.op == "sub" else source.argument(1, "other")
        if first == 1:
            return made.get(origin(made, source.inputs[0])), True
    return source, False


def _probability(study: Study, entry: Entry, source: Entry, rest: bool) -> Finding | None:
    kind = study.tape.values[source.outputs[0]].dtype
    limits = torch.finfo(kind)
    smallest, rounding = -math.log(limits.smallest_normal * limits.eps), -math.log(limits.eps / 2)
    units = study.measurement.units.get(source.outputs[0])
    if units is None or units.nonfinite:
        return None
    limit = rounding if rest else smallest
    if rest and source.op == "sigmoid":
        distance = largest_exponent(study, source.inputs[0])
    else:
        edge = 1 - units.high if rest else units.low
        distance = -math.log(edge) if edge > 0 else math.inf
    ahead = (FIRST if study.step == 1 else LATER) * distance
    if _multiplied(study, entry):
        ahead = max(ahead, _sure(study, source, rest=rest))
    severity = Severity.FAULT if distance >= limit else Severity.WARNING if ahead >= limit else Severity.ADVICE
    evidence = (
        Evidence("largest distance of a score from certainty", min(distance, 1e9), limit, unit="nat"),
        Evidence("the same when training has made it sure", min(ahead, 1e9), limit, unit="nat"),
        Evidence("growth of the scores at which a probability is zero", limit / distance if distance > 0 else math.inf),
    )
    what = f"1 - {source.op}" if rest else source.op
    name = str(kind).removeprefix("torch.")
    fact = f"{entry.op} reads {what}: scores lie up to {distance:.3g} from certainty, {name} rounds to 0 at {limit:.3g}"
    return _finding(study, entry, severity, fact, evidence)


def _multiplied(study: Study, entry: Entry) -> bool:
    """Whether labels, some of which are 0, multiply a logarithm."""
    tape, made, depends = study.tape, producers(study.tape), learned(study.tape)
    for reader in reads(tape, entry.outputs[0], VIEWS | {"neg"}):
        for number in reader.inputs if reader.op == "mul" else ():
            label, units = numbers(tape, made, number), study.measurement.units.get(number)
            if number not in depends and label is not None and bool((label == 0).any()):
                return True
            if number not in depends and units is not None and units.zero > 0:
                return True
    return False


def _sure(study: Study, source: Entry, *, rest: bool) -> float:
    """Expected largest distance of a short run's scores from certainty, once a classifier is sure."""
    count = math.prod(study.tape.values[source.inputs[0]].shape) * RUN
    apart = math.sqrt(2.0) if source.op == "softmax" and not rest else 1.0  # of two scores
    return SURE * apart * extreme(count)


def _zero(study: Study, entry: Entry) -> Finding | None:
    units = study.measurement.units.get(entry.inputs[0])
    if units is None or units.nonfinite or units.low > 0:
        return None
    evidence = (Evidence("smallest number that the logarithm reads", units.low, 0.0),)
    return _finding(
        study, entry, Severity.FAULT, f"{entry.op} reads numbers from {units.low:.3g} on; level: above 0", evidence
    )


def _finding(study: Study, entry: Entry, severity: Severity, fact: str, evidence: tuple[Evidence, ...]) -> Finding:
    return Finding(
        "naive-log", severity, entry.module, str(entry.location), fact, evidence, entry.index, modules=(entry.module,)
    )


def sick() -> Subject:
    """The logarithm of a softmax whose scores lie far apart."""
    return _net(lambda p: torch.log(torch.softmax(p, 1)))


def healthy() -> Subject:
    """log_softmax of the same scores."""
    return _net(lambda p: F.log_softmax(p, 1))


class _Scaled(nn.Module):
    """Unit rows against unit rows, over a temperature of 1/60: scores between -60 and 60."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.classes = nn.Linear(8, 8), nn.Parameter(torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        return 60 * F.normalize(self.embed(x), dim=1) @ F.normalize(self.classes, dim=1).T


def _net(log: object) -> Subject:
    torch.manual_seed(0)

    def loss(scores: Tensor, y: Tensor) -> Tensor:
        return F.nll_loss(log(scores), y)  # type: ignore[operator]

    x = torch.randn(32, 8)
    return Subject(_Scaled(), (x, torch.arange(32) % 4), loss)
