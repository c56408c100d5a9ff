"""The rule for operations without one: run the real operation on Gaussian channels of the predicted law."""

from __future__ import annotations

from tightrope.rules.registry import Call, Gradients
from tightrope.rules.state import State


def forward(call: Call) -> list[State]:
    """States of the outputs, estimated."""
    raise NotImplementedError(f"no rule for {call.entry.op}")


def backward(call: Call, upstream: list[State | None]) -> Gradients:
    """Gradient states of the inputs, estimated on the same draws."""
    raise NotImplementedError(f"no rule for {call.entry.op}")
