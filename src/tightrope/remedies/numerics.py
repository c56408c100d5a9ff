"""Remedies for numbers that leave their range: `stable-softmax`, `stable-log`, `wider-dtype`."""

from __future__ import annotations

import math

from tightrope.finding import Finding, Remedy, Safety
from tightrope.remedies.registry import remedy
from tightrope.study import Study

_SOFTMAX = {
    "softmax": "torch.softmax(scores, dim)",
    "sigmoid": "torch.sigmoid(scores)",
    "logsumexp": "torch.logsumexp(scores, dim)",
    "softplus": "torch.nn.functional.softplus(scores)",
}


@remedy("stable-softmax")
def stable_softmax(study: Study, finding: Finding) -> Remedy | None:
    """Name the library's function of what is written out."""
    name = finding.summary.partition(" ")[0]
    patch = _SOFTMAX.get(name, _SOFTMAX["softmax"])
    return Remedy("stable-softmax", f"Use the {name} of the library", patch, "none", Safety.REVIEW)


@remedy("stable-log")
def stable_log(study: Study, finding: Finding) -> Remedy | None:
    """Take the logarithm of the scores, not of their probabilities."""
    patch, title = "torch.log(x.clamp(min=torch.finfo(x.dtype).tiny))", "Keep the logarithm's argument positive"
    if "softmax" in finding.summary:
        title, patch = "Take the logarithm inside the softmax", "torch.log_softmax(scores, dim)"
    elif "1 - sigmoid" in finding.summary:
        title, patch = "Take the logarithm inside the sigmoid", "torch.nn.functional.logsigmoid(-scores)"
    elif "sigmoid" in finding.summary:
        title, patch = "Take the logarithm inside the sigmoid", "torch.nn.functional.logsigmoid(scores)"
    return Remedy("stable-log", title, patch, "none", Safety.REVIEW)


@remedy("wider-dtype")
def wider_dtype(study: Study, finding: Finding) -> Remedy | None:
    """Bring the scale down before the cast, or hold the tensor in a dtype of wider range."""
    reached = finding.evidence[0].measured
    top = finding.evidence[0].expected or 1.0
    patch = "x = x.to(torch.bfloat16)"
    if math.isfinite(reached / top):  # what is infinite already has no size to divide by
        factor = 2 ** max(1, int(reached / top).bit_length())
        patch = f"x = x / {factor}  # before the cast, and undone behind it; or: torch.bfloat16"
    return Remedy(
        "wider-dtype", "Bring the scale down, or use bfloat16", patch, "bfloat16 has 8 bits of precision, float16 11",
        Safety.REVIEW,
    )  # fmt: skip


__all__ = ["stable_log", "stable_softmax", "wider_dtype"]
