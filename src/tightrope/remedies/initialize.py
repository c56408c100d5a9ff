"""`initialize` as a remedy: the weight scales of the recorded step, solved and set in place."""

from __future__ import annotations

import math

import torch

from tightrope.checks.layers import evaluate
from tightrope.finding import Finding, Remedy, Safety
from tightrope.initialize import solve
from tightrope.initialize.ways import series
from tightrope.remedies.registry import remedy
from tightrope.study import Study

EARLY = 1
"""Last step at which drawing the weights anew loses nothing: they have not been trained yet."""

SIMILAR = 0.8
"""Cosine behind a stack, of two samples that were orthogonal before it, up to which scale alone is set (six rectifiers
are there). The biases that keep samples apart in deeper stacks make plain gradient descent slow."""
NODES, SPAN = 121, 6.0
"""Grid of each of two normal variables; expectations of smooth activations are exact to 1e-6 on it."""


@remedy("initialize")
def initialize(study: Study, finding: Finding) -> Remedy:
    """Solve every weight scale along the recorded step; in deep stacks biases too, so that samples stay apart."""

    def act() -> None:
        solve(study.tape, criterion="both" if _cosine(study) > SIMILAR else "forward")

    return Remedy(
        "initialize", "Solve every weight scale from the laws of the step", "tightrope.initialize(model, inputs)",
        "none before training; learned weights would be lost",
        Safety.SAFE if study.step <= EARLY else Safety.REVIEW, act, whole=True,
    )  # fmt: skip


def _cosine(study: Study) -> float:
    """Cosine of two samples, orthogonal before it, behind the longest stack of activations at unit variance."""
    depths = series(study.tape)
    entry = max((e for e in study.tape.entries if e.index in depths), key=lambda e: depths[e.index], default=None)
    cosine = 0.0
    if entry is None:
        return cosine
    grid = torch.linspace(-SPAN, SPAN, NODES, dtype=torch.float64)
    share = torch.exp(-(grid.square()) / 2)
    share /= share.sum()
    one, other = torch.meshgrid(grid, grid, indexing="ij")
    joint = torch.outer(share, share)
    try:
        energy = float(share @ evaluate(entry, grid).square())
        for _ in range(depths[entry.index]):
            turned = cosine * one + math.sqrt(max(1 - cosine**2, 0.0)) * other
            product = evaluate(entry, one.flatten()) * evaluate(entry, turned.flatten())
            cosine = min(float(joint.flatten() @ product) / energy, 1.0)
    except (RuntimeError, TypeError, ZeroDivisionError):  # no function of each number by itself
        return 1.0
    return cosine
