"""`detached-branch`: parameters whose way to the loss passes no gradient.

Law       a derivative runs along operations that autograd records. detach, .data, what is computed under no_grad, whole
          numbers (argmax, comparisons, rounding to integers) and tensors that are built anew from Python numbers or
          arrays end it: d loss / d w = 0 for every w whose effect on the loss passes only through them.
Evidence  the tape: parameters that the loss depends on and that got no gradient; the first call after them whose result
          has none. For parameters whose results left torch, a tensor that was built of Python numbers on the way to
          the loss.
Verdict   `fault` where an optimizer that stepped holds matrices of the branch that are as an initialiser draws them,
          `advice` for trained ones. Targets, teachers and discriminators that get their gradient in another pass, or
          stand in no optimizer, are meant.
Remedy    hand the tensor itself on (`keep-gradient`); a straight-through or score-function estimator for decisions.
Limits    what is computed under no_grad at top level is not on the tape: `unused-parameter` speaks of it.
References  Bengio, Leonard, Courville (2013), Estimating or propagating gradients through stochastic neurons,
          arXiv:1308.3432.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.checks.echoes import AFTERMATH
from tightrope.checks.weights import is_drawn
from tightrope.finding import Evidence, Finding, Severity
from tightrope.measure.updates import Row, Updates
from tightrope.study import Study
from tightrope.subject import Program
from tightrope.tape.tape import Entry

STAGE = "run"
EXPLAINS = ("unused-parameter", "parameter-not-optimised", *AFTERMATH)
REMEDIES = ("keep-gradient",)

BUILT = frozenset(("tensor", "as_tensor", "from_numpy", "asarray", "FloatTensor", "new_tensor"))
"""Calls that make a tensor of numbers that are no tensors."""


def judge(study: Study, updates: Updates) -> Iterator[Finding]:
    """A finding for each call that ends the gradient of parameters which an optimizer holds."""
    found: dict[int, tuple[Entry, list[Row]]] = {}
    outside = []
    for row in updates.rows:
        if not is_waiting(row) or row.value is None:
            continue
        if row.value not in study.tape.values:
            outside.append(row)
            continue
        cut = _cut(study, row.value) if row.value not in study.measurement.gradients else None
        if cut is not None:
            found.setdefault(cut.index, (cut, []))[1].append(row)
    rebuilt = _rebuilt(study) if outside else None
    if rebuilt is not None:
        found.setdefault(rebuilt.index, (rebuilt, []))[1].extend(outside)
    for cut, rows in found.values():
        if any(len(row.shape) > 1 for row in rows):
            yield _finding(cut, rows)


def is_waiting(row: Row) -> bool:
    """Whether an optimizer has stepped with a parameter that asks for a gradient and had none."""
    return row.trained and bool(row.groups) and row.change is not None and not row.gradient


def _cut(study: Study, number: int) -> Entry | None:
    """The first call on the way from a parameter whose result has no gradient."""
    waiting, seen = [number], set()
    ends = []
    while waiting:
        for entry in study.tape.readers.get(waiting.pop(), []):
            if entry.index in seen:
                continue
            seen.add(entry.index)
            results = [study.tape.values[i] for i in entry.outputs]
            ended = entry.op in ("detach", "data") or not entry.grad or not any(v.is_float for v in results)
            if ended:
                ends.append(entry)
            else:
                waiting.extend(entry.outputs)
    return min(ends, key=lambda entry: entry.index, default=None)


def _rebuilt(study: Study) -> Entry | None:
    """A tensor of a batch's length that a model built of numbers on its way to the loss."""
    tape = study.tape
    for entry in tape.entries:
        value = tape.values[entry.outputs[0]]
        long = bool(value.shape) and value.shape[0] == tape.samples and len(value.shape) > 1
        if entry.op in BUILT and not entry.inputs and value.is_float and long:
            return entry
    return None


def _finding(cut: Entry, rows: Sequence[Row]) -> Finding:
    count = sum(row.numel for row in rows)
    drawn = any(is_drawn(row.live) for row in rows if len(row.shape) > 1)
    why = "under no_grad" if not cut.grad else f"through {cut.op}"
    modules = tuple(dict.fromkeys(row.module for row in rows))
    span = modules[0] if len(modules) == 1 else f"{modules[0]} … {modules[-1]}"
    evidence = (
        Evidence("numbers in the optimizer that get no gradient", count, 0.0),
        Evidence("parameters behind the call", len(rows), 0.0),
    )
    fact = (
        f"{len(rows)} parameters ({count} numbers) in the optimizer reach the loss only {why}, which passes no gradient"
    )
    severity = Severity.FAULT if drawn else Severity.ADVICE
    return Finding("detached-branch", severity, span, str(cut.location), fact, evidence, cut.index, modules=modules)


def sick() -> Program:
    """One of two branches is detached before they meet."""
    return Program(lambda: _train(cut=True))


def healthy() -> Program:
    """Both branches get their gradient."""
    return Program(lambda: _train(cut=False))


class _Branches(nn.Module):
    def __init__(self, *, cut: bool) -> None:
        super().__init__()
        self.cut = cut
        self.left, self.right, self.head = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        right = torch.relu(self.right(x))
        both = [torch.relu(self.left(x)), right.detach() if self.cut else right]
        scores: Tensor = self.head(torch.cat(both, 1))
        return scores


def _train(*, cut: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    y = (x @ torch.randn(8, 4)).argmax(1)
    model = _Branches(cut=cut)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(12):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


__all__ = ["is_waiting"]
