"""Expected largest values of a predicted law over all elements of a tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from tightrope.rules.state import State
from tightrope.tape.tape import Entry, Tape


def largest(tape: Tape, states: Mapping[int, State], entry: Entry, number: int) -> float:
    """Expected largest absolute value of a result over all of its elements.

    Args:
        tape: the recorded step.
        states: predicted laws by value id; those of the result and of the call's input are read.
        entry: the call that made it.
        number: its id.
    """
    count = math.prod(tape.values[number].shape)
    before = states.get(entry.inputs[0]) if entry.inputs else None
    if before is not None and _squares(entry):
        return peak(before, count) ** 2
    return peak(states[number], count)


def _squares(entry: Entry) -> bool:
    """x ** 2, x.square(), x * x."""
    if entry.op == "mul":
        return len(entry.inputs) == 2 and entry.inputs[0] == entry.inputs[1]
    return entry.op == "square" or (entry.op == "pow" and entry.argument(1, "exponent") == 2)


def peak(state: State, count: int) -> float:
    """At the site and channel where the law is widest, or of all where it is the same."""
    variance = state.variance.clamp(min=0)
    mean, variance = torch.broadcast_tensors(state.mean.abs(), variance)
    if not variance.numel():
        return 0.0
    return float((mean + variance.sqrt() * extreme(count // max(variance.numel(), 1))).max())


def highest(state: State, count: int) -> float:
    """Expected largest value, signs counted, at the site and channel where that is largest."""
    mean, variance = torch.broadcast_tensors(state.mean, state.variance.clamp(min=0))
    if not variance.numel():
        return 0.0
    return float((mean + variance.sqrt() * extreme(count // max(variance.numel(), 1))).max())


def extreme(count: int) -> float:
    """Expected largest absolute value of `count` standard normal draws (Gumbel's asymptotic form)."""
    if count <= 1:
        return math.sqrt(2 / math.pi)
    a = math.sqrt(2 * math.log(2 * count))
    return a - (math.log(math.log(2 * count)) + math.log(4 * math.pi)) / (2 * a) + 0.5772 / a


__all__ = ["extreme", "highest", "largest", "peak"]
