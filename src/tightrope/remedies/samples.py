"""`separate-samples`: keep the samples of a batch apart."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from tightrope.checks.trace import VIEWS
from tightrope.finding import Finding, Remedy, Safety
from tightrope.remedies.registry import remedy
from tightrope.study import Study


@remedy("separate-samples")
def separate_samples(study: Study, finding: Finding) -> Remedy | None:
    """Say which dimension is the batch, where it was mistaken for another."""
    entry = next((e for e in study.tape.entries if e.index == finding.index), None)
    if entry is None:
        return None
    module = study.models.find(entry.module)
    if entry.op in VIEWS:
        patch = f"x.transpose(0, 1).{entry.op}(...)  # the batch first, then the view"
        return Remedy("separate-samples", "Move the batch to the front", patch, "a copy", Safety.REVIEW)
    if getattr(module, "batch_first", None) is False:
        patch = f"{type(module).__name__}(..., batch_first=True)"
        action = _action(module)
        return Remedy(
            "separate-samples", "Tell the layer that the batch comes first", patch, "none", Safety.REVIEW, action
        )
    patch = "x.mean(-1, keepdim=True)  # over the features, or torch.nn.BatchNorm1d, which has running statistics"
    return Remedy("separate-samples", "Take statistics of each sample by itself", patch, "none", Safety.ADVICE)


def _action(module: nn.Module | None) -> Callable[[], None]:
    def act() -> None:
        for part in module.modules() if module is not None else ():
            if getattr(part, "batch_first", None) is False:
                part.__dict__["batch_first"] = True

    return act


__all__ = ["separate_samples"]
