"""`exploding-gradient`: the loss's gradient grows on its way back to the first layers.

Law       on the way back a layer multiplies the gradient's variance by n Var(w) E[f'(z)^2]; above 1, a stack of L
          layers by that to the L.
Evidence  norm of the gradient at the first tensor that the whole signal passes over its norm at the last; measured,
          beside the predicted ratio.
Verdict   `fault` above 1e3: a step that suits the last layer throws the first one away.
Remedy    solve every weight scale from the laws (`initialize`); skips; fewer normalisers on plain deep stacks.
Limits    batch normalisation after every layer of a plain net multiplies the gradient by 1.21 a layer whatever the
          weights: beyond 38 such layers this check fires and a skip is the remedy.
References  Yang et al. (2019), A mean field theory of batch normalization, ICLR; Pascanu, Mikolov, Bengio (2013), On
          the difficulty of training recurrent neural networks, ICML.
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
EXPLAINS = ("clipping-always", "non-finite", *PROGRESS)
REMEDIES = ("initialize",)

RATIO = 1e3  # healthy nets of trials: 4.7 and less; sick ones: 1.1e3 and more


def judge(study: Study) -> Iterator[Finding]:
    """One finding for the whole way."""
    found = way(study)
    if found is None or found.ratio <= RATIO:
        return
    yield finding("exploding-gradient", found, study, f"fault above {RATIO:g}")


def sick() -> Subject:
    """Twelve layers of soft slopes whose weights are twice too large."""
    return _net(2.0)


def healthy() -> Subject:
    """The same net at the law of its activation."""
    return _net(1.0)


def _net(factor: float) -> Subject:
    torch.manual_seed(0)
    stack: list[nn.Module] = []
    for _ in range(12):
        layer = nn.Linear(64, 64)
        nn.init.normal_(layer.weight, std=factor * (2 / 64) ** 0.5)
        stack += [layer, nn.LeakyReLU(0.2)]
    return Subject(
        nn.Sequential(*stack, nn.Linear(64, 4)),
        (torch.randn(64, 64), torch.arange(64) % 4),
        nn.functional.cross_entropy,
    )
