"""`parameter-not-optimised`: parameters that get a gradient and that no optimizer updates.

Law       a parameter changes only through the optimizer that holds it. One that asks for a gradient, gets one, and
          stands in no optimizer keeps its initial value: the net trains as if it were a fixed random map there.
Evidence  the models' parameters and those that the step reads, the groups of all optimizers, the gradients at the
          update, whether the numbers move by other means between two recorded steps.
Verdict   `fault` where matrices among them are as an initialiser draws them, `warning` where there are only gains and
          biases, `advice` where the weights are trained already (a head on a kept backbone). Silent where no optimizer
          holds a parameter of a model, where something else moves them, and for frozen parameters. The cause is named:
          layers in a plain list, a module replaced after the optimizer was built, an optimizer that never steps, two
          optimizers over the same parameters.
Remedy    hand them to the optimizer (`optimise-parameters`): in memory by `add_param_group`.
Limits    a whole model beside others that are optimised is judged only once it is known that nothing else moves it, at
          the second recorded step. Random features that are kept on purpose look the same: freeze them with
          requires_grad_(False).
References  Humbatova et al. (2020), Taxonomy of real faults in deep learning systems, ICSE.
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
from tightrope.study import History, Study
from tightrope.subject import Program
from tightrope.tape.source import UNKNOWN

STAGE = "run"
EXPLAINS = ("unused-parameter", *AFTERMATH)
REMEDIES = ("optimise-parameters",)


def judge(study: Study, updates: Updates) -> Iterator[Finding]:
    """A finding for each model with parameters that are left out."""
    held = [row for row in updates.rows if row.groups and (row.registered or row.value is not None)]
    if not held:
        return
    missing = [row for row in updates.rows if left_out(row, updates)]
    owners: dict[str, list[Row]] = {}
    for row in missing:
        owners.setdefault(root_of(study, row), []).append(row)
    for owner, rows in owners.items():
        whole = not any(root_of(study, row) == owner for row in held)
        copied = bool({row.shape for row in updates.foreign} & {row.shape for row in rows})
        if (whole or copied) and any(row.moved is not False for row in rows):
            continue
        yield _finding(study, updates, owner, rows, whole)
    idle = [row for row in held if _idles(row, study.history)]
    if idle:
        yield _idle(study, idle)


def left_out(row: Row, updates: Updates) -> bool:
    """Whether a parameter has a gradient, no optimizer, and nothing else that is known to move it."""
    return row.trained and not row.groups and bool(row.gradient) and row.moved is not True


def root_of(study: Study, row: Row) -> str:
    """Name of the top-level model that owns or calls a parameter's module."""
    path = row.name or row.module
    roots = sorted(study.models.roots, key=len, reverse=True)
    return next((root for root in roots if path == root or path.startswith(f"{root}." if root else "")), "")


def _idles(row: Row, history: History | None) -> bool:
    """Whether the run has ended and no optimizer that holds a parameter with a gradient has ever stepped."""
    ended = history is not None and history.ended
    return ended and row.trained and bool(row.gradient) and all(not group.steps for group in row.groups)


def _finding(study: Study, updates: Updates, owner: str, rows: Sequence[Row], whole: bool) -> Finding:
    count = sum(row.numel for row in rows)
    optimised = sum(row.numel for row in updates.rows if row.groups and row.registered)
    cause = _cause(updates, rows, whole)
    location, index = _place(study, updates, rows)
    fact = f"{len(rows)} parameters ({count} numbers) get a gradient and stand in no optimizer{cause}"
    evidence = (
        Evidence("numbers that get a gradient and no update", count, 0.0),
        Evidence("numbers that are optimised", optimised),
    )
    modules = tuple(dict.fromkeys(row.module for row in rows))
    span = modules[0] if len(modules) == 1 else f"{modules[0]} … {modules[-1]}"
    return Finding("parameter-not-optimised", _severity(rows), span, location, fact, evidence, index, modules=modules)


def _severity(rows: Sequence[Row]) -> Severity:
    matrices = [row.live for row in rows if len(row.shape) > 1]
    if not matrices:
        return Severity.WARNING
    return Severity.FAULT if any(is_drawn(m) for m in matrices) else Severity.ADVICE


def _cause(updates: Updates, rows: Sequence[Row], whole: bool) -> str:
    """Why they are left out, as the end of a sentence."""
    if not any(row.registered for row in rows):
        return (
            ": their modules are kept outside the model's own attributes (a list or a dict), so that parameters() "
            "misses them"
        )
    if updates.foreign:
        old = len(updates.foreign)
        return f", which holds {old} parameters of no model: a module was replaced after the optimizer was built"
    twice = {g.optimizer for row in updates.rows if len({g.optimizer for g in row.groups}) > 1 for g in row.groups}
    if whole and twice:
        return f": {len(twice)} optimizers hold the same parameters of another model"
    return ""


def _place(study: Study, updates: Updates, rows: Sequence[Row]) -> tuple[str, int]:
    """The line that builds the modules of a list, else the optimizer; and the first call that reads a parameter."""
    numbers = {row.value for row in rows}
    entry = next((e for e in study.tape.entries if numbers.intersection(e.inputs)), None)
    index = entry.index if entry is not None else -1
    if entry is not None and not any(row.registered for row in rows):
        return str(study.tape.location(entry)), index
    places = (group.location for group in updates.groups if group.location != UNKNOWN)
    place = next(places, None)
    return str(place) if place is not None else "", index


def _idle(study: Study, rows: Sequence[Row]) -> Finding:
    group = rows[0].groups[0]
    count = sum(row.numel for row in rows)
    steps = study.history.steps if study.history is not None else 0
    evidence = (Evidence("updates by the optimizer", 0, steps), Evidence("numbers that it holds", count))
    modules = tuple(dict.fromkeys(row.module for row in rows))
    fact = f"{group.kind}, which holds {len(rows)} parameters ({count} numbers), has not stepped in {steps} steps"
    place = "" if group.location == UNKNOWN else str(group.location)
    return Finding("parameter-not-optimised", Severity.FAULT, modules[0], place, fact, evidence, modules=modules)


def sick() -> Program:
    """Hidden layers in a plain list, which parameters() does not know."""
    return Program(lambda: _train(registered=False))


def healthy() -> Program:
    """The same layers in a ModuleList."""
    return Program(lambda: _train(registered=True))


class _Net(nn.Module):
    def __init__(self, *, registered: bool) -> None:
        super().__init__()
        hidden = [nn.Linear(16, 32), nn.Linear(32, 32)]
        self.hidden = nn.ModuleList(hidden) if registered else hidden
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = F.relu(layer(x))
        scores: Tensor = self.head(x)
        return scores


def _train(*, registered: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 16)
    y = (x[:, :4] @ torch.randn(4, 4)).argmax(1)
    model = _Net(registered=registered)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(12):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
