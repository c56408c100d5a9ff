"""`vanishing-gradient`: the first layers receive almost none of the loss's gradient.

Law       on the way back a layer multiplies the gradient's variance by n Var(w) E[f'(z)^2]; a stack of L layers by that
          to the L. For the sigmoid E[f'^2] is at most 1/16.
Evidence  norm of the gradient at the first tensor that the whole signal passes over its norm at the last; measured,
          beside the predicted ratio.
Verdict   `fault` below 1e-3: the first layer then moves a thousand times slower than the last.
Remedy    solve every weight scale from the laws (`initialize`); an activation with slopes near 1; a skip.
Limits    a net whose last weights are zero passes no gradient at its first step by design and is not judged. The way
          back through time is not judged: recurrences that forget are usual, those that explode have a check.
References  Hochreiter (1991); Glorot, Bengio (2010), Understanding the difficulty of training deep feedforward neural
          networks, AISTATS.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from tightrope.checks.echoes import PROGRESS
from tightrope.checks.gradient.path import finding, way
from tightrope.finding import Finding
from tightrope.study import Study
from tightrope.subject import Subject

STAGE = "batch"
EXPLAINS = PROGRESS
REMEDIES = ("initialize",)

RATIO = 1e-3  # healthy nets of trials: 6e-3 and more, torch's default at six layers 1.4e-2; sick ones: 1e-3 and less


def judge(study: Study) -> Iterator[Finding]:
    """One finding for the whole way."""
    found = way(study)
    if found is None or found.ratio >= RATIO:
        return
    yield finding("vanishing-gradient", found, study, f"fault below {RATIO:g}")


def sick() -> Subject:
    """Eight sigmoid layers as torch initialises them."""
    return _net(nn.Sigmoid, 8)


def healthy() -> Subject:
    """The same net with GELU behind layer normalisation."""
    return _net(nn.GELU, 8)


def _net(activation: type[nn.Module], depth: int) -> Subject:
    torch.manual_seed(0)
    stack: list[nn.Module] = []
    for _ in range(depth):
        stack += [nn.Linear(64, 64), *([nn.LayerNorm(64)] if activation is nn.GELU else []), activation()]
    return Subject(
        nn.Sequential(*stack, nn.Linear(64, 4)),
        (torch.randn(64, 64), torch.arange(64) % 4),
        nn.functional.cross_entropy,
    )
