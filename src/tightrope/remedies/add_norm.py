"""`add-norm`: a normaliser in front of a layer whose input moves."""

from __future__ import annotations

from tightrope.finding import Finding, Remedy, Safety
from tightrope.remedies.registry import remedy
from tightrope.study import Study


@remedy("add-norm")
def add_norm(study: Study, finding: Finding) -> Remedy:
    """Fix the mean and the scale of what the layer reads."""
    patch = f"nn.Sequential(nn.LayerNorm(features), layer)  # layer: {finding.module or 'the one on this line'}"
    cost = "one normalisation a layer; the scale that came before is lost"
    return Remedy("add-norm", "Normalise what the layer reads", patch, cost, Safety.ADVICE)


__all__ = ["add_norm"]
