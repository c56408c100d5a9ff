"""Remedies of modes: `set-mode`, `dropout-by-mode`, `move-dropout`, `rescale-mask`, `bn-momentum`."""

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


@remedy("dropout-by-mode")
def dropout_by_mode(study: Study, finding: Finding) -> Remedy | None:
    """Let dropout follow the module's mode."""
    fused = finding.summary.startswith("scaled_dot_product_attention")
    patch = "dropout_p=self.p if self.training else 0.0" if fused else "F.dropout(x, p, training=self.training)"
    return Remedy("dropout-by-mode", "Let dropout follow the module's mode", patch, "none", Safety.REVIEW)


@remedy("move-dropout")
def move_dropout(study: Study, finding: Finding) -> Remedy | None:
    """Put dropout where no batch norm reads its noise."""
    patch = (
        "put torch.nn.Dropout behind the last norm, just before the head\n"
        "torch.optim.swa_utils.update_bn(loader, model)  # of a trained model, with its dropout layers in eval mode"
    )
    return Remedy(
        "move-dropout", "Put dropout behind the last batch norm", patch, "less noise in the layers before it",
        Safety.ADVICE,
    )  # fmt: skip


@remedy("rescale-mask")
def rescale_mask(study: Study, finding: Finding) -> Remedy | None:
    """Divide what a mask keeps by its share."""
    if _op(study, finding) != "mul":
        return None
    kept = finding.evidence[0].measured
    return Remedy(
        "rescale-mask", "Divide by the share that is kept", f"x * mask / {kept:.3g}  # or torch.nn.Dropout(p)",
        "none; evaluation stays as it is", Safety.ADVICE,
    )  # fmt: skip


def _op(study: Study, finding: Finding) -> str:
    """The operation that a finding stands at."""
    return next((entry.op for entry in study.tape.entries if entry.index == finding.index), "")


@remedy("bn-momentum")
def bn_momentum(study: Study, finding: Finding) -> Remedy | None:
    """Let running statistics arrive within the run."""
    if _op(study, finding) != "batch_norm":
        return None
    modules = [module for path in finding.modules if (module := study.models.find(path)) is not None]

    def act() -> None:
        for module in modules:
            module.__dict__["momentum"] = MOMENTUM
            module.get_buffer("num_batches_tracked").zero_()

    return Remedy(
        "bn-momentum", f"Give the running statistics a momentum of {MOMENTUM}",
        f"torch.nn.BatchNorm2d(channels, momentum={MOMENTUM})", "none; statistics follow the last ten batches",
        Safety.SAFE if modules else Safety.REVIEW, act if modules else None, anytime=True,
    )  # fmt: skip


MOMENTUM = 0.1
"""Torch's own: running statistics are those of the last ten batches."""
EVALUATION = "layers"
"""Unit of the evidence of an evaluation: the number of layers that ran as in training."""

__all__ = ["EVALUATION", "bn_momentum", "dropout_by_mode", "move_dropout", "rescale_mask", "set_mode"]
