"""`clipping-always`: gradients that are cut by a large factor in every step.

Law       clipping to a norm c multiplies the gradient g by min(1, c / |g|). Where it acts now and then it bounds the
          rare large step. Where |g| is far above c in every step, gradient descent moves a fixed distance rate * c,
          whatever the slope: the rate is divided by |g| / c.
Evidence  the norm before clipping over the largest allowed, of every call of the run; the mean loss of the first and
          the last quarter; whether the optimizer's updates follow the gradient's size.
Verdict   of 20 steps or more, nineteen in twenty cut and the median cut tenfold or more: `warning` where the updates
          follow the gradient's size and the loss stands still, `advice` otherwise. Recurrent nets, transformers and
          policies are often clipped in every step by small factors; adaptive optimizers divide the factor out.
Remedy    clip at the usual norm, not below it (`relax-clipping`).
Limits    only clip_grad_norm_ is seen. What makes the gradients large has its own findings.
References  Pascanu, Mikolov, Bengio (2013), On the difficulty of training recurrent neural networks, ICML; Zhang, He,
          Sra, Jadbabaie (2020), Why gradient clipping accelerates training, ICLR.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from tightrope.checks.echoes import PROGRESS
from tightrope.checks.optim.progress import follows_gradient, progress, stands
from tightrope.finding import Evidence, Finding, Severity
from tightrope.measure.updates import Updates
from tightrope.study import Study
from tightrope.subject import Program

STAGE = "run"
EXPLAINS = PROGRESS
REMEDIES = ("relax-clipping",)

CALLS = 20
"""Fewer calls say nothing of "always"."""
ALWAYS = 0.95
"""Share of the calls that cut."""
FACTOR = 10.0
"""Of the median cut: an order of magnitude of the learning rate."""


def judge(study: Study, updates: Updates) -> Iterator[Finding]:
    """A finding where the clipping sets the length of every step."""
    clips = updates.clips
    if clips is None or clips.calls < CALLS:
        return
    share = sum(ratio > 1 for ratio in clips.ratios) / clips.calls
    factor = statistics.median(clips.ratios)
    if share < ALWAYS or not factor >= FACTOR:
        return
    run = progress(study.history)
    hurt = run is not None and stands(run) and follows_gradient(updates)
    if not hurt and study.history is not None and not study.history.ended:
        return  # the end of the run says whether it hurts
    evidence = (
        Evidence("gradient's norm over the largest allowed, median", factor, 1.0),
        Evidence("share of steps that are clipped", share),
    )
    fact = (
        f"{share:.0%} of {clips.calls} gradients are clipped, by a factor of {factor:.3g} in the median, "
        f"to a norm of {clips.limit:.3g}"
    )
    severity = Severity.WARNING if hurt else Severity.ADVICE
    yield Finding("clipping-always", severity, "", str(clips.location), fact, evidence)


def sick() -> Program:
    """Descent whose gradients are cut a thousandfold."""
    return Program(lambda: _train(1e-4))


def healthy() -> Program:
    """The same loop, clipped at the usual norm."""
    return Program(lambda: _train(1.0))


def _train(limit: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 16)
    y = (x[:, :4] @ torch.randn(4, 4)).argmax(1)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), limit)
        optimizer.step()
