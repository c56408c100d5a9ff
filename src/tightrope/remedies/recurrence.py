"""`orthogonal-recurrence`, `clip-gradient` and `per-step-norm`: recurrences that keep their scale over time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from tightrope.checks.sequence.chain import Recurrence, recurrences
from tightrope.finding import Finding, Remedy, Safety
from tightrope.remedies.live import parameter
from tightrope.remedies.registry import remedy
from tightrope.study import Study


@remedy("orthogonal-recurrence")
def orthogonal_recurrence(study: Study, finding: Finding) -> Remedy | None:
    """Draw the square blocks of the recurrent weights orthogonal."""
    found = next((r for r in recurrences(study) if r.entry.index == finding.index), None)
    if found is None:
        return None
    names = [study.tape.values[n].name for n in found.weights]
    patch = "\n".join(f"nn.init.orthogonal_({name})" for name in names)
    title = "Draw the recurrent weights orthogonal: spectral radius 1"
    if not names:
        each = finding.evidence[1].measured
        patch = f"with torch.no_grad(): cell.weight[:, inputs:] /= {each:.3g}  # the columns that read the state"
        return Remedy("orthogonal-recurrence", "Scale the weights of the state down", patch, "none", Safety.ADVICE)
    return Remedy("orthogonal-recurrence", title, patch, "none", Safety.SAFE, _action(study, found))


def _action(study: Study, found: Recurrence) -> Callable[[], None] | None:
    live = [parameter(study, study.tape.values[n].name) for n in found.weights]
    weights = [p for p in live if p is not None]
    if len(weights) != len(live):
        return None

    def act() -> None:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in weights:
                blocks = [torch.empty(weight.shape[1], weight.shape[1]) for _ in weight.split(weight.shape[1])]
                for block in blocks:
                    nn.init.orthogonal_(block, generator=generator)
                weight.copy_(torch.cat(blocks))

    return act


@remedy("clip-gradient")
def clip_gradient(study: Study, finding: Finding) -> Remedy:
    """Bound the length of a step, whatever the gradient's norm."""
    patch = "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # between loss.backward() and optimizer.step()"
    cost = "bounds the step, not its direction: the first time steps still outweigh the last"
    return Remedy("clip-gradient", "Clip the gradient's norm", patch, cost, Safety.ADVICE)


@remedy("per-step-norm")
def per_step_norm(study: Study, finding: Finding) -> Remedy:
    """Give every time step statistics of its own, or every sample."""
    patch = (
        "self.norm = tightrope.nn.TimeStepBatchNorm(features, steps)  # of stacked states (N, T, features)\n"
        "self.norm = nn.LayerNorm(features)  # or statistics over the features of one sample and step"
    )
    cost = "running statistics for every step; LayerNorm: mixes the features"
    return Remedy("per-step-norm", "Normalise each time step by itself", patch, cost, Safety.REVIEW)


__all__ = ["clip_gradient", "orthogonal_recurrence", "per_step_norm"]
