"""`learning-rate-too-high`: updates of the size of the weights that drive the loss up.

Law       along an update d the loss is L - a + b / 2 with a = -g.d and b = d.H.d: it falls only while b < 2 a, which
          for gradient descent is rate < 2 / lambda. Beyond it each step is longer than the last one. An update whose
          ratio to the weights is of order 1 leaves nothing of the function that the gradient was taken of.
Evidence  median over the weight matrices of rms(update) / rms(weight), with the scale of a fresh layer,
          1 / sqrt(3 n_in), as floor for weights near zero; the losses of the run; in `check`, the loss on the same
          batch after the update.
Verdict   both are asked: a ratio above 0.1 in some recorded step, and a loss that became twice its first value, or no
          number, and that does not come back below its first value. `fault`; within the first steps only with a ratio
          above 0.3 and a loss that is still twice the first. A spike that training comes back from is no finding, save
          where the ratio is above 1, or above 0.3 with a loss that rose tenfold: the initial weights are lost in it.
Remedy    scale the learning rate so that the ratio begins at 0.02 (`scale-learning-rate`).
Limits    losses that may be negative are judged only when they are no numbers in the end. A rate that is merely too
          large to settle shows in the curve, not here.
References  LeCun, Simard, Pearlmutter (1993), Automatic learning rate maximization by on-line estimation of the
          Hessian's eigenvectors, NIPS; Cohen, Kaur, Li, Kolter, Talwalkar (2021), Gradient descent on neural networks
          typically occurs at the edge of stability, ICLR.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from tightrope.checks.echoes import AFTERMATH
from tightrope.checks.optim.progress import progress, ratios
from tightrope.checks.optim.ratios import typical
from tightrope.finding import Evidence, Finding, Severity
from tightrope.measure.updates import Updates
from tightrope.study import Study
from tightrope.subject import Program
from tightrope.tape.source import UNKNOWN

STAGE = "run"
EXPLAINS = tuple(name for name in AFTERMATH if name != "learning-rate-too-high")
REMEDIES = ("scale-learning-rate",)

HIGH = 0.1
"""Of the ratio: ten such steps replace a weight. Healthy runs had medians over steps below 0.05 in trials; the first
steps of Adam reach 0.1 where weights are small, with a falling loss."""
EXTREME = 0.3
"""Of the ratio, for a verdict on the first steps: a third of the weights in one step."""
WHOLE = 1.0
"""Of the ratio: the update is larger than the weights, so the initialisation is gone whatever comes after."""
RUIN = 10.0
"""Of the loss over its first value, beside an extreme ratio: what was learnt or initialised is gone."""
TWICE = 2.0
"""Of the loss over its first value: more than the b = 4 a of a step of twice the largest stable length costs near the
minimum, and beyond the spread of batches of one task."""
EARLY = 30
"""Steps before which a spike may be a transient."""
LEVEL = 1e-2
"""Largest ratio of usual training: a hundred steps to replace a weight."""


def judge(study: Study, updates: Updates) -> Iterator[Finding]:
    """A finding where updates are large and the loss goes up for it."""
    now = typical(updates)
    if updates.retried is not None and now is not None:
        before, after = updates.retried
        if now > HIGH and before > 0 and not after < TWICE * before:
            yield _finding(updates, now, before, after, "on the same batch")
        return
    run, found = progress(study.history), ratios(updates, study.history)
    if run is None or not found or max(found) <= HIGH:
        return
    broken = math.isinf(run.worst)
    positive = min(x for x in run.losses if math.isfinite(x)) >= 0 and run.first > 0
    late = run.losses[-1]
    if broken and not math.isfinite(late):
        yield _finding(updates, max(found), run.first, run.worst, f"in {run.steps} steps")
    elif not positive or run.worst < TWICE * run.first:
        return
    elif max(found) > WHOLE or (max(found) > EXTREME and run.worst > RUIN * run.first):
        yield _finding(updates, max(found), run.first, run.worst, "at its worst")
    elif run.steps < EARLY and not (study.history is not None and study.history.ended):
        if max(found) > EXTREME and min(late, run.end) >= TWICE * run.first:
            yield _finding(updates, max(found), run.first, late, f"at step {run.steps}")
    elif run.end >= run.first:
        yield _finding(updates, max(found), run.first, run.end, f"over the last of {run.steps} steps")


def _finding(updates: Updates, ratio: float, first: float, after: float, when: str) -> Finding:
    groups = [group for group in updates.groups if group.steps] or list(updates.groups)
    group = max(groups, key=lambda g: g.number("lr"))
    evidence = (
        Evidence("rms of the update over that of the weights, median", ratio, LEVEL),
        Evidence("loss after such updates", after, first),
        Evidence("learning rate", group.number("lr")),
    )
    fact = (
        f"{group.kind} at a rate of {group.number('lr'):.3g} changes the weights by {ratio:.3g} of their rms in a step "
        f"(usual: below {LEVEL:.3g}); the loss goes from {first:.3g} to {after:.3g} {when}"
    )
    place = "" if group.location == UNKNOWN else str(group.location)
    return Finding("learning-rate-too-high", Severity.FAULT, "", place, fact, evidence)


def sick() -> Program:
    """Adam at a rate of one half."""
    return Program(lambda: _train(0.5))


def healthy() -> Program:
    """Adam at a rate of 0.001."""
    return Program(lambda: _train(1e-3))


def _train(rate: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 16)
    y = (x[:, :4] @ torch.randn(4, 4)).argmax(1)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
