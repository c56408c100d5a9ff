"""`weigh-divergence`: what a latent variable costs beside what it saves."""

from __future__ import annotations

from tightrope.finding import Finding, Remedy, Safety
from tightrope.remedies.registry import remedy
from tightrope.study import Study


@remedy("weigh-divergence")
def weigh_divergence(study: Study, finding: Finding) -> Remedy | None:
    """Say how both terms of an evidence bound are brought to one unit, and how the divergence comes in slowly."""
    patch = (
        "error = F.mse_loss(output, x, reduction='sum') / (2 * noise**2) / len(x)  # noise: std of a number given z\n"
        "loss = error + min(1.0, step / 1000) * divergence  # divergence: summed over dimensions, averaged over samples"
    )
    cost = "the noise of the data is one more number to choose or to learn; the loss is no bound during the warm-up"
    return Remedy("weigh-divergence", "Give both terms of the bound one unit, the divergence a warm-up", patch, cost,
                  Safety.ADVICE)  # fmt: skip


__all__ = ["weigh_divergence"]
