"""`add-skip`: a way for the signal past what takes means of it."""

from __future__ import annotations

from tightrope.finding import Finding, Remedy, Safety
from tightrope.remedies.registry import remedy
from tightrope.study import Study


@remedy("add-skip")
def add_skip(study: Study, finding: Finding) -> Remedy:
    """Add the input of each attention to its output."""
    patch = "x = x + self.attention(norm(x))  # where it reads: x = self.attention(x)"
    cost = "none; the stream's variance adds up over depth, which the norm in front of each branch takes off"
    return Remedy("add-skip", "Add a skip around every attention", patch, cost, Safety.ADVICE)


__all__ = ["add_skip"]
