"""`invert-mask` and `leave-a-key`: masks that hide what attention should see."""

from __future__ import annotations

from tightrope.finding import Finding, Remedy, Safety
from tightrope.remedies.registry import remedy
from tightrope.study import Study

EMPTY = "rows without a visible key"


@remedy("leave-a-key")
def leave_a_key(study: Study, finding: Finding) -> Remedy | None:
    """Give every row of attention a key, or leave out the sequence that has none."""
    if finding.evidence[0].quantity != EMPTY:
        return None
    every = finding.evidence[1].measured == 1
    patch = "mask = mask & ~mask.all(-1, keepdim=True)  # a row that would see nothing sees all; then drop its output"
    if every:
        patch = (
            "mask = ~mask  # masked_fill and key_padding_mask hide where True, scaled_dot_product_attention where False"
        )
    title = "Turn the mask round" if every else "Leave every row of attention a key, or drop empty sequences"
    return Remedy("leave-a-key", title, patch, "none", Safety.ADVICE)


@remedy("invert-mask")
def invert_mask(study: Study, finding: Finding) -> Remedy | None:
    """Turn the sense of a mask round, or its direction."""
    quantity = finding.evidence[0].quantity
    if quantity == EMPTY:
        return None
    if quantity == "visible keys before the query":
        title = "Hide the keys after the query, not those before"
        patch = "hidden = torch.ones(T, T, dtype=torch.bool).triu(1)  # scaled_dot_product_attention takes ~hidden"
    else:
        title = "Turn the mask round"
        patch = (
            "mask = ~mask  # masked_fill and key_padding_mask hide where True, scaled_dot_product_attention where False"
        )
    return Remedy("invert-mask", title, patch, "none", Safety.ADVICE)


__all__ = ["invert_mask", "leave_a_key"]
