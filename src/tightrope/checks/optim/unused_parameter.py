"""`unused-parameter`: parameters in an optimizer that no loss of the run depends on.

Law       a parameter that no call on the way to a loss reads has a derivative of exactly zero. Weight decay may shrink
          it; nothing teaches it. The model computes less than its definition says.
Evidence  the optimizers' parameters that had no gradient at any recorded update and that no recorded tape of a loss
          reads, and their share of all numbers that are optimised.
Verdict   looked for from the second recorded step or the end of the run on. `warning` where they are a tenth of the
          numbers or more and belong to a module that the user's own class holds by name; `advice` otherwise: parts of
          library models (a pooler, a tower) often lie idle, and lists of modules (experts, paths, stages) are taken
          from by turns.
Remedy    use the module, or delete it (`use-or-delete`).
Limits    paths that are drawn at random in each step may have been missed by all recorded ones.
References  Humbatova et al. (2020), Taxonomy of real faults in deep learning systems, ICSE.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.checks.optim.detached_branch import is_waiting
from tightrope.finding import Evidence, Finding, Severity
from tightrope.measure.updates import Row, Updates
from tightrope.study import History, Study
from tightrope.subject import Program
from tightrope.tape.source import is_library

STAGE = "run"
EXPLAINS = ()
REMEDIES = ("use-or-delete",)

SHARE = 0.1
"""Of all optimised numbers: below, it is a part that the net does without, such as a pooler or an auxiliary head."""
_LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential, nn.ParameterList, nn.ParameterDict)


def judge(study: Study, updates: Updates, history: History) -> Iterator[Finding]:
    """One finding for all parameters that are never used."""
    earlier = [s for s in history.earlier if s.updates is not None and s.updates.step < updates.step]
    if not earlier and not history.ended:
        return
    used = {id(row.live) for s in earlier if s.updates is not None for row in s.updates.rows if row.gradient}
    tapes = [study.tape, *(s.tape for s in history.earlier)]
    read = {value.name for tape in tapes for value in tape.values.values() if value.name is not None}
    rows = [
        row for row in updates.rows
        if is_waiting(row) and row.registered and id(row.live) not in used and row.name not in read
    ]  # fmt: skip
    optimised = sum(row.numel for row in updates.rows if row.groups and row.registered)
    if not rows or not optimised:
        return
    count = sum(row.numel for row in rows)
    called = [row for row in rows if row.value is not None]
    own = sum(row.numel for row in rows if _by_name(study, row, {id(row.live) for row in rows}))
    severity = Severity.WARNING if own >= SHARE * optimised else Severity.ADVICE
    evidence = (
        Evidence("share of the optimised numbers that no loss depends on", count / optimised, 0.0),
        Evidence("parameters without a gradient", len(rows), 0.0),
    )
    how = "their results reach no loss" if called else "no call reads them"
    fact = f"{len(rows)} parameters, {count / optimised:.1%} of the optimised numbers, never get a gradient: {how}"
    modules = tuple(dict.fromkeys(row.module for row in rows))
    span = modules[0] if len(modules) == 1 else f"{modules[0]} … {modules[-1]}"
    yield Finding("unused-parameter", severity, span, _place(study, modules[0]), fact, evidence, modules=modules)


def _by_name(study: Study, row: Row, idle: set[int]) -> bool:
    """Whether the user's own class holds, by a name, the largest idle module around a parameter."""
    path = row.module
    while path:
        parent = study.models.find(path.rpartition(".")[0])
        if parent is None:
            return False
        if any(id(p) not in idle for p in parent.parameters()):
            return not isinstance(parent, _LISTS) and not is_library(type(parent))
        path = path.rpartition(".")[0]
    return False


def _place(study: Study, path: str) -> str:
    """Where a module was built."""
    from tightrope.tape.modules import built

    module = study.models.find(path)
    location = built(module) if module is not None else None
    return str(location) if location is not None else ""


def sick() -> Program:
    """A second hidden layer that forward never calls."""
    return Program(lambda: _train(slip=True))


def healthy() -> Program:
    """The same net that calls it."""
    return Program(lambda: _train(slip=False))


class _Net(nn.Module):
    def __init__(self, *, slip: bool) -> None:
        super().__init__()
        self.slip = slip
        self.first, self.second, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.first(x) if self.slip else self.second(x))
        scores: Tensor = self.head(x)
        return scores


def _train(*, slip: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 16)
    y = (x[:, :4] @ torch.randn(4, 4)).argmax(1)
    model = _Net(slip=slip)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(12):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
