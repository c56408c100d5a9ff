"""`l2-in-adam`: weight decay that Adam takes for gradient.

Law       Adam divides the gradient by its own root mean square. Decay that is added to the gradient is divided, too:
          weights with small gradients are pulled to zero by up to a full step, those with large gradients hardly, and
          the decay bends the second moments. Decoupled decay shrinks all weights by the same factor 1 - rate * decay.
Evidence  decay * rms(w) / rms(g), the share of the decay in what Adam reads, over the weight matrices; the smallest of
          the recorded steps.
Verdict   `warning` from a median share of a tenth on, in every recorded step.
Remedy    decoupled decay (`decouple-decay`): in memory, or AdamW in the source.
Limits    near the end of training gradients are small and any decay counts; the first steps decide.
References  Loshchilov, Hutter (2019), Decoupled weight decay regularization, ICLR.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from tightrope.checks.echoes import PROGRESS
from tightrope.finding import Evidence, Finding, Severity
from tightrope.measure.updates import MOMENTS, Group, Updates
from tightrope.study import Study
from tightrope.subject import Program
from tightrope.tape.source import UNKNOWN

STAGE = "run"
EXPLAINS = ("vanishing-signal", "vanishing-gradient", "dead-units", *PROGRESS)
REMEDIES = ("decouple-decay",)

SHARE = 0.1
"""Of the decay in what Adam reads: healthy runs had 2e-5 in trials, runs that suffered 0.15 and more."""


def judge(study: Study, updates: Updates) -> Iterator[Finding]:
    """A finding where decay makes a good part of the gradient that is divided."""
    every = [updates]
    if study.history is not None:
        every += [s.updates for s in study.history.earlier if s.updates is not None]
    shares = [share for share in map(_share, every) if share is not None]
    group = next((group for group in updates.groups if is_coupled(group)), None)
    if not shares or group is None or min(shares) < SHARE:
        return
    decay = group.number("weight_decay")
    evidence = (
        Evidence("decay over gradient, median over the weights", min(shares), SHARE),
        Evidence("weight decay", decay),
    )
    fact = (
        f"{group.kind} takes a weight decay of {decay:.3g} as part of the gradient, {min(shares):.3g} of its rms; "
        f"level: below {SHARE:.3g}"
    )
    place = "" if group.location == UNKNOWN else str(group.location)
    yield Finding("l2-in-adam", Severity.WARNING, "", place, fact, evidence)


def is_coupled(group: Group) -> bool:
    """Whether an adaptive optimizer adds the decay to the gradient."""
    adaptive = group.kind in MOMENTS and group.kind != "AdamW"
    return adaptive and group.number("weight_decay") > 0 and not group.settings.get("decoupled_weight_decay", False)


def _share(updates: Updates) -> float | None:
    """Median of the decay's share over the weight matrices of a step."""
    found = [
        row.groups[0].number("weight_decay") * row.weight / row.gradient
        for row in updates.rows
        if row.groups and is_coupled(row.groups[0]) and len(row.shape) > 1 and row.gradient
    ]
    return statistics.median(found) if found else None


def sick() -> Program:
    """Adam with a weight decay of 0.1."""
    return Program(lambda: _train(0.1))


def healthy() -> Program:
    """Adam with a weight decay of 1e-5."""
    return Program(lambda: _train(1e-5))


def _train(decay: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 16)
    y = (x[:, :4] @ torch.randn(4, 4)).argmax(1)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=decay)
    for _ in range(12):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
