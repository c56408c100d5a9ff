"""`set-mode`: bring a model into the mode that its use asks for."""

from __future__ import annotations

from tightrope.finding import Finding, Remedy, Safety
from tightrope.remedies.registry import remedy
from tightrope.study import Study
from tightrope.tape.modules import unwrap


@remedy("set-mode")
def set_mode(study: Study, finding: Finding) -> Remedy | None:
    """Call `train()` before training goes on, or `eval()` before an evaluation."""
    if finding.evidence[0].unit == EVALUATION:
        patch = "model.eval()\nwith torch.no_grad():\n    ...\nmodel.train()"
        cost = "none; of Monte Carlo dropout, put only the dropout layers into training mode"
        return Remedy("set-mode", "Evaluate in evaluation mode", patch, cost, Safety.ADVICE)
    roots = [unwrap(root) for root in study.models.roots.values() if not root.training]

    def act() -> None:
        for root in roots:
            root.train()

    return Remedy(
        "set-mode", "Train in training mode", "model.train()  # before the loop, and after every evaluation",
        "none; a part that is frozen on purpose is to be put into eval mode again after it",
        Safety.REVIEW, act if roots else None,
    )  # fmt: skip


EVALUATION = "layers"
"""Unit of the evidence of an evaluation: the number of layers that ran as in training."""

__all__ = ["EVALUATION", "set_mode"]
