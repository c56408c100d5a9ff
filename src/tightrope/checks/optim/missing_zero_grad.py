"""`missing-zero-grad`: updates that follow gradients which earlier updates have followed already.

Law       backward adds to the gradients that are there. Without clearing, update t follows g_1 + ... + g_t: gradient
          descent becomes a second-order recurrence without friction, w_{t+1} - 2 w_t + w_{t-1} = -r g(w_t), which
          oscillates about every minimum with an amplitude that does not shrink; in Adam the sum of old gradients hides
          the new one, whose share falls like 1/t.
Evidence  for every parameter whether a backward pass added to a gradient that its optimizer's last update had read,
          with no pass in between that found it cleared; the old gradient's norm beside that of the sum.
Verdict   `fault` when most parameters of an optimizer keep a gradient of a tenth of the sum or more, `warning` when
          some do. Gradients of several passes before one update (accumulation) and gradients that another loss
          left and the next step clears are no such thing.
Remedy    clear the gradients before the backward pass (`clear-gradients`); in memory, after each update.
Limits    looked for in the first two steps, the recorded steps and the ones before them. Sparse gradients count as
          cleared.
References  Paszke et al. (2019), PyTorch: an imperative style, high-performance deep learning library, NeurIPS;
          Polyak (1964), Some methods of speeding up the convergence of iteration methods.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from tightrope.checks.echoes import AFTERMATH
from tightrope.finding import Evidence, Finding, Severity
from tightrope.measure.updates import Updates
from tightrope.subject import Program

STAGE = "run"
EXPLAINS = AFTERMATH
REMEDIES = ("clear-gradients",)

SHARE = 0.1
"""Of the gradient that is read: below, the old one turns the step by less than 6 degrees."""
MOST = 0.5
"""Share of an optimizer's parameters from which it is the loop, not a single tensor, that does not clear."""


def judge(updates: Updates) -> Iterator[Finding]:
    """A finding for each optimizer that reads gradients which it has used."""
    seen = set()
    for left in updates.leftovers:
        if left.share < SHARE or left.group.optimizer in seen:
            continue
        seen.add(left.group.optimizer)
        severity = Severity.FAULT if left.parameters >= MOST * left.of else Severity.WARNING
        evidence = (
            Evidence("old gradient's norm over that of the gradient that is read", left.share, 0.0),
            Evidence("parameters that keep their gradient", left.parameters, 0.0),
        )
        fact = (
            f"{left.parameters} of {left.of} gradients that {left.group.kind} reads at step {left.step} still hold "
            f"what earlier steps left, {left.share:.3g} of their norm; cleared gradients hold 0"
        )
        yield Finding("missing-zero-grad", severity, "", str(left.location), fact, evidence)


def sick() -> Program:
    """A loop that never clears its gradients."""
    return Program(lambda: _train(clear=False))


def healthy() -> Program:
    """The same loop that clears them."""
    return Program(lambda: _train(clear=True))


def _train(*, clear: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 16)
    y = (x[:, :4] @ torch.randn(4, 4)).argmax(1)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(12):
        if clear:
            optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
