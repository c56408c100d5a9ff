"""`half-precision-overflow`: a tensor in half precision whose law reaches the largest number of its dtype.

Law       of n draws of a law with mean mu and standard deviation sigma the largest lies near |mu| + sigma sqrt(2 ln
          2n). float16 ends at 65504, bfloat16 and single precision at 3.4e38; what is larger is infinite. A product of
          d numbers of scale a and b has sigma = a b sqrt(d), a square the square of its argument's largest.
Evidence  for tensors that the step holds in half precision: the largest value expected by the predicted law over all
          elements, the measured one, and the dtype's largest number.
Verdict   `fault` when the expected or the measured largest value reaches the dtype's; `warning` when it comes within a
          factor of 2, one doubling of a weight's scale.
Remedy    bring the scale down where it is made, or hold the tensor in bfloat16 (`wider-dtype`).
Limits    what a fused kernel keeps inside is in single precision and not judged, nor are single numbers such as a loss;
          a prediction alone, far above what was measured, is not believed.
References  Micikevicius et al. (2018), Mixed precision training, ICLR; Kalamkar et al. (2019), A study of BFLOAT16 for
          deep learning training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tightrope.checks.echoes import AFTERMATH
from tightrope.checks.trace import VIEWS
from tightrope.finding import Evidence, Finding, Severity
from tightrope.rules.extremes import largest
from tightrope.study import Study
from tightrope.subject import Subject
from tightrope.tape.tape import Entry, Kind

STAGE = "batch"
EXPLAINS = ("loss-scale", *(name for name in AFTERMATH if name != "half-precision-overflow"))
REMEDIES = ("wider-dtype",)

HALVES = frozenset((torch.float16, torch.bfloat16))
ROOM = 2.0  # one doubling
BELIEF = 4.0  # how far above a measured value a prediction may lie: more than the tails of its law differ
CREATED = frozenset(("full", "full_like", "masked_fill", "where", "triu", "tril", "finfo", "zeros", "fill", "setitem"))
"""Calls that put a number into a tensor on purpose: masks."""


def judge(study: Study) -> Iterator[Finding]:
    """A finding for the first tensor in half precision that comes near the end of its dtype."""
    tape, units = study.tape, study.measurement.units
    for entry in tape.entries:
        if entry.op in CREATED or entry.op in VIEWS - {"half", "to", "type", "type_as", "bfloat16"}:
            continue
        for number in entry.outputs:
            value = tape.values[number]
            known = value.dtype in HALVES and value.kind is Kind.RESULT and math.prod(value.shape) > 1
            if not known or number not in units or number in tape.parametric or _masked(study, entry):
                continue
            top = torch.finfo(value.dtype).max
            seen, expected = _seen(study, number), _expected(study, entry, number)
            peak = max(seen, expected if expected <= BELIEF * seen or math.isinf(seen) else seen)
            if peak * ROOM >= top:
                yield _finding(study, entry, number, expected, seen, top)
                return


def _masked(study: Study, entry: Entry) -> bool:
    """Whether a mask's large number came in with a known operand, or an infinity was there before."""
    units = study.measurement.units
    for i in entry.inputs:
        value, found = study.tape.values[i], units.get(i)
        if found is None or value.dtype not in HALVES:
            continue
        top = torch.finfo(value.dtype).max
        if found.nonfinite or max(abs(found.low), abs(found.high)) * ROOM >= top:
            return True
    return False


def _seen(study: Study, number: int) -> float:
    units = study.measurement.units[number]
    return math.inf if units.nonfinite else max(abs(units.low), abs(units.high))


def _expected(study: Study, entry: Entry, number: int) -> float:
    states = study.forecast.states
    return largest(study.tape, states, entry, number) if number in states else 0.0


def _finding(study: Study, entry: Entry, number: int, expected: float, seen: float, top: float) -> Finding:
    value = study.tape.values[number]
    name = str(value.dtype).removeprefix("torch.")
    reached = max(expected, seen if math.isfinite(seen) else 0.0)
    overflows = math.isinf(seen) or reached >= top
    evidence = [Evidence("largest value expected", expected, top), Evidence("largest number of the dtype", top)]
    if math.isfinite(seen):
        evidence.insert(1, Evidence("largest value measured", seen, top))
    law = study.forecast.laws.get(number)
    if law is not None:
        evidence.append(Evidence("std by the law", law.std))
    return Finding(
        "half-precision-overflow", Severity.FAULT if overflows else Severity.WARNING, entry.module,
        str(entry.location),
        f"{entry.op} of shape {value.shape} in {name} is expected to reach {reached:.3g}; the dtype ends at {top:.3g}",
        tuple(evidence), entry.index, modules=(entry.module,),
    )  # fmt: skip


class _Scorer(nn.Module):
    """Products of two projections, in half precision."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.query, self.key, self.scale = nn.Linear(16, 64), nn.Linear(16, 64), scale

    def forward(self, x: Tensor) -> Tensor:
        q, k = ((self.scale * layer(x)).half() for layer in (self.query, self.key))
        scores: Tensor = (q @ k.T).float() / (8 * self.scale**2)
        return scores


def sick() -> Subject:
    """Products of vectors of scale 60, in float16."""
    return _net(60.0)


def healthy() -> Subject:
    """The same products at unit scale."""
    return _net(1.0)


def _net(scale: float) -> Subject:
    torch.manual_seed(0)
    return Subject(_Scorer(scale), (torch.randn(48, 16), torch.arange(48)), nn.functional.cross_entropy)
