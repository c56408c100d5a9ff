"""`frozen-by-accident`: weights that are still as the initialiser drew them and do not ask for a gradient.

Law       a frozen layer is a fixed map. With trained weights it hands features on; with weights as drawn it is a random
          projection: of d inputs on k features it keeps distances only for k of order d or more, so a narrow one loses
          what the layers above would need.
Evidence  the weight matrices on the tape that ask for no gradient and got no update, whether they are as an initialiser
          draws them, whether an optimizer holds them, and how many features the first trained layer reads per sample.
Verdict   `fault` where an optimizer holds drawn matrices that are frozen and that no update changed, a fresh head among
          them, or where everything before the last layers is frozen as drawn and hands on fewer features than it read.
          Trained weights that are frozen, frozen gains and biases, and wide random features are no fault.
Remedy    unfreeze them (`unfreeze`): in memory by requires_grad_() and the optimizer's group; or load trained weights.
Limits    whether a weight is as drawn is judged by the spread of its rows and columns: trained weights that look drawn
          exist. What runs under no_grad is not judged.
References  Yosinski, Clune, Bengio, Lipson (2014), How transferable are features in deep neural networks?, NIPS;
          Rahimi, Recht (2007), Random features for large-scale kernel machines, NIPS.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from tightrope.checks.echoes import PROGRESS
from tightrope.checks.trace import producers, weight_of
from tightrope.checks.weights import is_drawn
from tightrope.finding import Evidence, Finding, Severity
from tightrope.measure.updates import Row, Updates
from tightrope.study import History, Study
from tightrope.subject import Program
from tightrope.tape.tape import Kind

STAGE = "run"
EXPLAINS = ("unused-parameter", "parameter-not-optimised", *PROGRESS)
REMEDIES = ("unfreeze",)

MOST = 0.5
"""Share of the frozen matrices that are as drawn: a loaded backbone has few, a fresh net all."""


def judge(study: Study, updates: Updates, history: History) -> Iterator[Finding]:
    """A finding where weights stand still that nobody has trained."""
    frozen = [row for row in updates.rows if _stands(row, history) and row.value in study.tape.values]
    drawn = [row for row in frozen if is_drawn(row.live)]
    if not drawn:
        return
    held = [row for row in drawn if row.groups]
    alive = [row for row in updates.rows if row.gradient and row.registered]
    if held and len(drawn) >= MOST * len(frozen):
        yield _finding(study, held, f"{len(held)} of them in an optimizer", len(held), 0.0, "frozen weights it holds")
        return
    features = _features(study, drawn)
    if features is None or not alive or len(drawn) < MOST * len(frozen):
        return
    given, handed = features
    if handed < given:
        fact = f"which hand on {handed} features of {given} inputs"
        yield _finding(study, drawn, fact, handed, float(given), "features that the first trained layer reads")


def _stands(row: Row, history: History) -> bool:
    """Whether a weight matrix is frozen and no recorded step gave it a gradient or an update."""
    earlier = (r for s in history.earlier if s.updates is not None for r in s.updates.rows if r.live is row.live)
    still = not row.trained and not row.gradient and not row.change and row.registered and len(row.shape) > 1
    return still and not any(r.trained or r.gradient or r.change for r in earlier)


def _features(study: Study, drawn: Sequence[Row]) -> tuple[int, int] | None:
    """Numbers per sample that the frozen part reads and that the first trained weight reads behind it."""
    tape, made = study.tape, producers(study.tape)
    samples, frozen = tape.samples, {row.value for row in drawn}
    if not samples:
        return None
    given = 0
    behind: set[int] = set()
    for entry in tape.entries:
        weight = weight_of(tape, made, entry)
        data = [i for i in entry.inputs if tape.values[i].kind is not Kind.PARAMETER]
        if weight in frozen and data:
            given = given or torch.Size(tape.values[data[0]].shape).numel() // samples
            behind.update(entry.outputs)
        elif weight is not None and tape.values[weight].trained:
            if not behind.intersection(data) or len(data) != 1:
                return None  # trained weights read what no frozen one has seen
            return given, torch.Size(tape.values[data[0]].shape).numel() // samples
        elif behind.intersection(entry.inputs):
            behind.update(entry.outputs)
    return None


def _finding(study: Study, rows: Sequence[Row], detail: str, measured: float, level: float, quantity: str) -> Finding:
    count = sum(row.numel for row in rows)
    numbers = {row.value for row in rows}
    entry = next(e for e in study.tape.entries if numbers.intersection(e.inputs))
    evidence = (Evidence(quantity, measured, level), Evidence("numbers that stand as they were drawn", count, 0.0))
    fact = f"{len(rows)} weight matrices ({count} numbers) are frozen as they were drawn, {detail}"
    modules = tuple(dict.fromkeys(row.module for row in rows))
    span = modules[0] if len(modules) == 1 else f"{modules[0]} … {modules[-1]}"
    return Finding(
        "frozen-by-accident", Severity.FAULT, span, str(study.tape.location(entry)), fact, evidence, entry.index,
        modules=modules,
    )  # fmt: skip


def sick() -> Program:
    """A fresh, narrow trunk that is frozen."""
    return Program(lambda: _train(frozen=True))


def healthy() -> Program:
    """The same net, all of it trained."""
    return Program(lambda: _train(frozen=False))


def _train(*, frozen: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 16)
    y = (x[:, :4] @ torch.randn(4, 4)).argmax(1)
    trunk = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 6), nn.ReLU()).requires_grad_(not frozen)
    model = nn.Sequential(trunk, nn.Linear(6, 4))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(12):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
