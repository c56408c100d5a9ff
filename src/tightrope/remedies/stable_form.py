"""`stable-form`: how to write an operation that overflows so that it does not."""

from __future__ import annotations

from tightrope.finding import Finding, Remedy, Safety
from tightrope.remedies.registry import remedy
from tightrope.study import Study

FORMS = {
    "exp": ("Bound the exponent", "torch.exp(x - x.amax(-1, keepdim=True)), or torch.logsumexp for its logarithm"),
    "log": ("Keep the logarithm's argument positive", "torch.log(x.clamp(min=torch.finfo(x.dtype).tiny))"),
    "sqrt": ("Keep the root's argument positive", "torch.sqrt(x + 1e-12)"),
    "rsqrt": ("Keep the root's argument positive", "torch.rsqrt(x + 1e-12)"),
    "div": ("Keep the divisor away from zero", "x / (y + 1e-12)"),
    "reciprocal": ("Keep the divisor away from zero", "1 / (x + 1e-12)"),
    "pow": ("Keep the base positive or the exponent whole", "x.clamp(min=1e-12) ** p"),
    "acos": ("Keep the cosine inside its range", "torch.acos(x.clamp(-1 + 1e-7, 1 - 1e-7))"),
    "norm": ("Keep the norm's gradient defined at zero", "torch.sqrt(x.square().sum(-1) + 1e-12)"),
    "softmax": ("Leave at least one position of every row unmasked", "mask with torch.finfo(x.dtype).min, not -inf"),
}
OTHER = (
    "Bring the operands to unit scale, or compute in a wider dtype",
    "torch.autocast(dtype=torch.bfloat16), x.float()",
)


@remedy("stable-form")
def stable_form(study: Study, finding: Finding) -> Remedy | None:
    """Name the stable form of the operation that lost a finite number."""
    entry = next((e for e in study.tape.entries if e.index == finding.index), None)
    if entry is None:
        title, patch = "Remove non-finite numbers before the step", "assert torch.isfinite(x).all()"
    else:
        title, patch = FORMS.get(entry.op, OTHER)
    return Remedy("stable-form", title, patch, "none", Safety.ADVICE)


__all__ = ["stable_form"]
