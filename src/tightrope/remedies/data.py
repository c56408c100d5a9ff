"""Remedies in words for what reaches the model: `share-transform`, `drop-constant`."""

from __future__ import annotations

from tightrope.finding import Finding, Remedy, Safety
from tightrope.remedies.registry import remedy
from tightrope.study import Study


@remedy("share-transform")
def share_transform(study: Study, finding: Finding) -> Remedy | None:
    """One transformation for training and evaluation data, inside the model."""
    patch = (
        "standardize = tightrope.nn.Standardize().fit(train_loader)\n"
        "model = torch.nn.Sequential(standardize, model)  # and no other scaling of either set"
    )
    title = "Send training and evaluation data through one transformation, fitted on the training data"
    return Remedy("share-transform", title, patch, "the model is trained anew on its inputs", Safety.ADVICE)


@remedy("drop-constant")
def drop_constant(study: Study, finding: Finding) -> Remedy | None:
    """Leave constant columns out."""
    patch = "varies = train_x.std(0) > 0\ntrain_x, test_x = train_x[:, varies], test_x[:, varies]"
    return Remedy("drop-constant", "Leave out what never varies", patch, "none", Safety.ADVICE)


__all__ = ["drop_constant", "share_transform"]
