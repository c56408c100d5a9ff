"""`decayed-norm-or-bias`: weight decay on gains and biases, which it pulls to zero.

Law       decay shrinks a parameter by 1 - rate * decay a step, to a fraction exp(-rate * decay * T) after T steps when
          nothing opposes it. For weights before a normaliser only the effective rate changes; a gain of zero shuts its
          channel, and a bias of zero only forgets a mean.
Evidence  one-dimensional parameters in groups with decay, rate * decay * T, and the gains' rms then and now.
Verdict   `advice` from rate * decay * T = 0.1 on, at the end of the run; `warning` where it is above 1 and gains of
          normalisers have fallen below half their size at the first recorded step.
Remedy    decay weights alone (`decay-weights-alone`).
Limits    what the gradient does against the decay shows only in the gains.
References  Loshchilov, Hutter (2019), Decoupled weight decay regularization, ICLR; van Laarhoven (2017), L2
          regularization versus batch and weight normalization, arXiv:1706.05350.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from tightrope.checks.echoes import AFTERMATH
from tightrope.checks.trace import NORMS
from tightrope.finding import Evidence, Finding, Severity
from tightrope.measure.follower import rms
from tightrope.measure.updates import Row, Updates
from tightrope.study import History, Study
from tightrope.subject import Program
from tightrope.tape.source import UNKNOWN

STAGE = "run"
EXPLAINS = ("zero-gamma", *AFTERMATH)
REMEDIES = ("decay-weights-alone",)

FELT = 0.1
"""Of rate * decay * T: below, a parameter that nothing holds loses less than a tenth."""
SHRUNK = 0.5
"""Of a gain over its first size: half the signal of the normaliser."""


def judge(study: Study, updates: Updates, history: History) -> Iterator[Finding]:
    """A finding where decay reaches gains and biases and had time to act."""
    rows = [row for row in updates.rows if len(row.shape) == 1 and row.groups and _rate(row) > 0 and row.trained]
    if not rows:
        return
    spent = max(map(_rate, rows)) * history.steps
    if spent < FELT:
        return
    left = _gains(study, rows, history)
    group = rows[0].groups[0]
    evidence = [Evidence("rate × decay × steps", spent, FELT)]
    fact = f"a weight decay of {group.number('weight_decay'):.3g} reaches {len(rows)} gains and biases: {spent:.3g} in "
    fact += f"{history.steps} steps"
    severity = Severity.ADVICE
    if left is not None and left < SHRUNK and spent > 1:
        severity = Severity.WARNING
        evidence.append(Evidence("gains of the normalisers over their first size", left, 1.0))
        fact += f", and the normalisers' gains have fallen to {left:.3g} of their size"
    elif not history.ended:
        return  # the end of the run says how much it came to
    place = "" if group.location == UNKNOWN else str(group.location)
    yield Finding("decayed-norm-or-bias", severity, "", place, fact, tuple(evidence))


def _rate(row: Row) -> float:
    """Share of a parameter that decay takes in one step."""
    return row.groups[0].number("lr") * row.groups[0].number("weight_decay")


def _gains(study: Study, rows: list[Row], history: History) -> float | None:
    """Rms of the normalisers' gains now over that at the first recorded step."""
    read = {number for entry in study.tape.entries if entry.op in NORMS for number in entry.inputs}
    names = {row.name for row in rows if row.value in read and (row.name or "").endswith("weight")}
    first = next((s.updates for s in history.earlier if s.updates is not None), study.updates)
    if first is None or not names:
        return None
    before = [row.weight for row in first.rows if row.name in names]
    after = [rms(row.live) for row in rows if row.name in names and row.live is not None]
    size = math.hypot(*before)
    return math.hypot(*after) / size if size > 0 else None


def sick() -> Program:
    """A decay that pulls the gains of layer norms to zero."""
    return Program(lambda: _train(5.0))


def healthy() -> Program:
    """A decay of a hundredth."""
    return Program(lambda: _train(1e-2))


def _train(decay: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 16)
    y = (x[:, :4] @ torch.randn(4, 4)).argmax(1)
    model = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=decay)
    for _ in range(120):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
