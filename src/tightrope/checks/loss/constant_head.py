"""`constant-head`: a softmax over one unit, whose result is 1 whatever its input.

Law       softmax of one score z is exp(z) / exp(z) = 1 and its logarithm 0; the slope is 0. The cross-entropy of one
          class is 0 for every sample. No gradient reaches any weight.
Evidence  the length of the dimension that the softmax before a loss, or the loss's own, runs over; the gradient's rms
          at its input.
Verdict   `fault`, always: the output is a constant.
Remedy    a sigmoid for two classes, or one unit a class (`binary-head`); for a regression the unit itself.
Limits    a softmax over one position inside a model (attention over one key, a mixture of one) is no head and passes.
References  Bridle (1990), Probabilistic interpretation of feedforward classification network outputs.
"""

from __future__ import annotations

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
from tightrope.tape.tape import Entry, softmax_dim

STAGE = "graph"
EXPLAINS = (
    "target-outside-head-range",
    "label-mismatch",
    "double-softmax",
    "unscaled-target",
    "detached-branch",
    *AFTERMATH,
)
REMEDIES = ("binary-head",)


def judge(study: Study) -> Iterator[Finding]:
    """A finding for each head that is a softmax of one unit, its own or the loss's."""
    made = producers(study.tape)
    done: set[int] = set()
    for term in loss_terms(study.tape):
        last = maker(study.tape, made, term.scores)
        entry = _constant(study, term, last)
        if entry is not None and entry.index not in done:
            done.add(entry.index)
            yield _finding(study, entry)


def _constant(study: Study, term: LossTerm, last: Entry | None) -> Entry | None:
    """The call that makes the loss independent of the scores."""
    shape = study.tape.values[term.scores].shape
    if last is not None and last.op in ("softmax", "log_softmax"):
        before = study.tape.values[last.outputs[0]].shape
        if before and before[softmax_dim(last.argument(1, "dim", -1), len(before))] == 1:
            return last
    one = len(shape) > 1 and shape[1] == 1
    return term.entry if term.kind == "cross_entropy" and term.entry.op == "cross_entropy" and one else None


def _finding(study: Study, entry: Entry) -> Finding:
    evidence = [Evidence("units that the softmax runs over", 1.0, 2.0)]
    gradient = study.measurement.gradients.get(entry.inputs[0])
    if gradient is not None:
        evidence.append(Evidence("gradient's rms at its input", gradient.rms))
    result = "a loss of 0" if entry.op == "cross_entropy" else "1" if entry.op == "softmax" else "0"
    return Finding(
        "constant-head", Severity.FAULT, entry.module, str(study.tape.location(entry)),
        f"{entry.op} over one unit is {result} for every input, with slope 0; level: 2 units, or a sigmoid",
        tuple(evidence), entry.index, modules=(entry.module,),
    )  # fmt: skip


def sick() -> Subject:
    """A softmax over the one unit of a binary classifier."""
    return _net(nn.Softmax(dim=1))


def healthy() -> Subject:
    """A sigmoid in its place."""
    return _net(nn.Sigmoid())


def _net(last: nn.Module) -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1), last)
    x = torch.randn(64, 8)
    return Subject(model, (x, (x[:, :1] > 0).float()), F.binary_cross_entropy)
