"""`heavy-tailed-gradient`: a few samples make up the gradient of the first layers.

Law       on its way back a sample's gradient is multiplied by one random factor a layer, the mean over n units of
          f'(z)^2 times its weights; the logarithm of the product adds up, with a variance of about sum_l (kappa_l - 1)
          / n_l for kappa = E[f'^4] / E[f'^2]^2. kappa is 2 for ReLU, at most 2.3 for tanh, GELU, SiLU, 3 for z^2, 6
          for a squared ReLU, 11.7 for z^3, e^(4 sigma^2) for exp: slopes without bound make products whose mean is
          that of their largest.
Evidence  effective share of the samples in the gradient's energy e, (sum e)^2 / (N sum e^2), at the first and at the
          last tensor that the whole signal passes; kappa of the activation, by quadrature of its own slope under the
          measured law of its input.
Verdict   where three of four samples that count at the end no longer count at the start, and an activation between has
          a kappa above 2.5: `advice`; `warning` where less than one sample in sixteen counts.
Remedy    an activation with a light-tailed slope (`bounded-slope`), or a normaliser before this one.
Limits    needs 16 samples and one gradient a sample. A net that is deep and narrow loses samples with light slopes,
          too; that is its width's doing and not judged here.
References  Hanin, Nica (2020), Products of many large random matrices and gradients in deep neural networks, Commun.
          Math. Phys. 376; Simsekli, Sagun, Gurbuzbalaban (2019), A tail-index analysis of stochastic gradient noise
          in deep neural networks, ICML.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tightrope.checks.echoes import PROGRESS
from tightrope.checks.gradient.path import Way, way
from tightrope.checks.layers import evaluate, layers
from tightrope.finding import Evidence, Finding, Severity
from tightrope.law import Law
from tightrope.study import Study
from tightrope.subject import Subject
from tightrope.tape.tape import Entry

STAGE = "batch"
EXPLAINS = ("exploding-gradient", "vanishing-gradient", "clipping-always", *PROGRESS)
REMEDIES = ("bounded-slope",)

SAMPLES = 16  # fewer say nothing of a tail
LOST = 0.25  # of the share at the end: a light-tailed net of ten layers of width 32 keeps half
FEW = 1 / 16  # of the samples: a batch of 64 is then one of 4
HEAVY = 2.5  # of kappa: above every bounded slope in use, below that of z^2


def judge(study: Study) -> Iterator[Finding]:
    """A finding at the activation with the heaviest slope, where the gradient's samples thin out."""
    found, samples = way(study), study.tape.samples or 0
    if found is None or samples < SAMPLES:
        return
    share, last = (study.measurement.effective.get(cut.value) for cut in (found.first, found.last))
    if share is None or last is None or share >= LOST * last:
        return
    heavy = [(entry, kappa) for entry, kappa in _slopes(study) if kappa > HEAVY]
    if heavy:
        yield _finding(study, found, share, last, heavy)


def _slopes(study: Study) -> Iterator[tuple[Entry, float]]:
    """The activations of the weight layers with the kurtosis of their slopes."""
    laws = study.measurement.laws
    for layer in layers(study.tape, laws):
        entry = layer.activation
        law = laws.get(entry.inputs[0]) if entry is not None else None
        kappa = slope_kurtosis(entry, law) if entry is not None and law is not None else None
        if entry is not None and kappa is not None:
            yield entry, kappa


def slope_kurtosis(entry: Entry, law: Law) -> float | None:
    """E[f'(z)^4] / E[f'(z)^2]^2 for z ~ N(mean, std^2); None where the function cannot be evaluated there."""
    if not law.finite or not law.std:
        return None
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    weight = torch.exp(-grid.square() / 2)
    with torch.enable_grad():
        z = (law.mean + law.std * grid).requires_grad_()
        try:
            (slope,) = torch.autograd.grad(evaluate(entry, z).sum(), z)
        except (RuntimeError, TypeError):
            return None
    energy = slope.square()
    mean = float((weight * energy).sum() / weight.sum())
    fourth = float((weight * energy.square()).sum() / weight.sum())
    return fourth / mean**2 if 0 < mean < math.inf and math.isfinite(fourth) else None


def _finding(study: Study, found: Way, share: float, last: float, heavy: list[tuple[Entry, float]]) -> Finding:
    samples, (entry, kappa) = study.tape.samples or 0, max(heavy, key=lambda pair: pair[1])
    start = found.first.entry.module or "the start"
    severity = Severity.WARNING if share < FEW else Severity.ADVICE
    return Finding(
        "heavy-tailed-gradient", severity, entry.module, str(study.tape.location(entry)),
        f"{share * samples:.3g} of {samples} samples make up the gradient at {start}, "
        f"{last * samples:.3g} at the end; E[f'^4] / E[f'^2]^2 of {entry.op} is {kappa:.3g} (ReLU: 2)",
        (
            Evidence("effective share of the samples, first layer", share, last),
            Evidence("kurtosis of the slope", kappa, 2.0),
        ),
        entry.index, modules=tuple(dict.fromkeys(e.module for e, _ in heavy)),
    )  # fmt: skip


class Cube(nn.Module):
    """The third power, whose slope has the kurtosis 35 / 3."""

    def forward(self, z: Tensor) -> Tensor:
        """z^3 of any shape."""
        return z**3


def sick() -> Subject:
    """Eight narrow layers of third powers behind layer normalisation."""
    return _net(Cube)


def healthy() -> Subject:
    """The same with GELU."""
    return _net(nn.GELU)


def _net(activation: type[nn.Module]) -> Subject:
    torch.manual_seed(0)
    stack: list[nn.Module] = []
    for _ in range(8):
        stack += [nn.Linear(16, 16), nn.LayerNorm(16), activation()]
    model = nn.Sequential(*stack, nn.LayerNorm(16), nn.Linear(16, 4))
    return Subject(model, (torch.randn(128, 16), torch.arange(128) % 4), nn.functional.cross_entropy)
