"""Random masks: dropout."""

from __future__ import annotations

from dataclasses import replace

from tightrope.rules.registry import Call, Gradients, rule
from tightrope.rules.state import State


@rule("dropout", "alpha_dropout", "feature_dropout")
def dropout(call: Call) -> State:
    """Inverted dropout keeps the mean and every covariance; E[x^2] grows by 1 / (1 - p)."""
    return _masked(call, call.input)


@dropout.gradient
def _(call: Call, upstream: State) -> Gradients:
    number = call.id(0, "input")
    assert number is not None
    return {number: _masked(call, upstream)}


def _masked(call: Call, state: State) -> State:
    p = float(call.argument(1, "p", 0.5)) if call.argument(2, "training", True) else 0.0
    if p <= 0.0 or p >= 1.0:
        return replace(state.scaled(0.0) if p >= 1.0 else state, axes=state.axes)
    return replace(
        state, residual=state.residual + p / (1 - p) * state.second_moment, latent=None, nodes=None, covariance=None
    )
