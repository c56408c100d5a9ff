"""Attention that is written out as two products with a softmax between: what the products do not see apart.

Keys and values are maps of the same tokens. A row weighs a token more the better its key fits, and with the key comes
its value: to first order the output moves by c Cov(v, k) q, whose energy is the scores' variance over the number of
channels that tokens have. The gradient of a query has a mean of the same origin.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tightrope.roles import Role
from tightrope.rules.registry import Call
from tightrope.rules.state import State
from tightrope.tape.tape import Entry, Tape, softmax_dim

PRODUCTS = frozenset(("matmul", "bmm", "baddbmm"))
AFTER = frozenset(("dropout", "to", "type_as", "float", "half", "bfloat16", "view", "reshape", "contiguous", "clone"))
"""Operations between the softmax and the product with the values."""
BEFORE = AFTER - {"dropout"} | {"mul", "div", "add", "sub", "masked_fill", "where", "clamp"}
"""Operations between the product of queries and keys and the softmax."""


def tilt(call: Call) -> Tensor | None:
    """What the rows of weights that a product reads add to its output, as a share of the values' own energy.

    Returns:
        By row, (row or 1, 1); None where the product is not that of attention weights with values.
    """
    softmax = _behind(call.tape, call.entry.inputs[0], AFTER, ("softmax",))
    if softmax is None or not _over_keys(call.tape, softmax):
        return None
    scores = _behind(call.tape, softmax.inputs[0], BEFORE, PRODUCTS)
    if scores is None or any(n not in call.states for n in (scores.inputs[0], softmax.inputs[0], softmax.outputs[0])):
        return None
    asked, before = call.states[scores.inputs[0]], call.states[softmax.inputs[0]]
    weights = call.states[softmax.outputs[0]]
    mean, second = _spread(weights.mean, weights), _spread(weights.second_moment, weights)
    variance = _spread(before.residual + before.site, before)
    share = second.sum(-1, keepdim=True).clamp(max=1.0)
    channels = max(asked.axes.count(Role.CHANNEL), 1)
    return (variance * mean).sum(-1, keepdim=True) * (1 - share).square() / channels


def lean(call: Call, upstream: State, keys: State) -> Tensor | None:
    """Energy of the mean that the gradient of queries has, for the product of queries and keys.

    Args:
        call: the product.
        upstream: gradient of the scores.
        keys: the second operand, (..., channel, key).

    Returns:
        By row and channel; None where no softmax weighs values with these scores.
    """
    softmax = _before(call.tape, call.entry.outputs[0], BEFORE, ("softmax",))
    if softmax is None or not _over_keys(call.tape, softmax) or softmax.outputs[0] not in call.states:
        return None
    if _before(call.tape, softmax.outputs[0], AFTER, PRODUCTS) is None:
        return None
    weights, asked = call.states[softmax.outputs[0]], call.states[call.entry.inputs[0]]
    mean, second = _spread(weights.mean, weights), _spread(weights.second_moment, weights)
    energy = _spread(upstream.variance, upstream) / second.clamp(min=1e-300)
    energy = torch.where(mean > 0, energy * mean, torch.zeros_like(mean))
    share = second.sum(-1, keepdim=True).clamp(max=1.0)
    even = (1 - share).square() / max(asked.axes.count(Role.CHANNEL), 1)
    loose = keys.map(lambda f: f.expand(*f.shape[:-1], keys.shape[-1]))
    return even * energy.sum(-1, keepdim=True) * (mean @ (loose.residual + loose.site).transpose(-1, -2))


def _spread(field: Tensor, state: State) -> Tensor:
    """A field over (row, key), the mean over what leads."""
    full = field.expand(*field.shape[:-1], state.shape[-1])
    return full.reshape(-1, *full.shape[-2:]).mean(0)


def _over_keys(tape: Tape, softmax: Entry) -> bool:
    rank = len(tape.values[softmax.outputs[0]].shape)
    return rank > 2 and softmax_dim(softmax.argument(1, "dim"), rank) == rank - 1


def _behind(tape: Tape, number: int, through: frozenset[str], wanted: tuple[str, ...] | frozenset[str]) -> Entry | None:
    """The nearest wanted entry that a value was made by, through operations that keep rows as they are."""
    for entry in _makers(tape, number, through):
        if entry.op in wanted:
            return entry
    return None


def _makers(tape: Tape, number: int, through: frozenset[str]) -> Iterator[Entry]:
    entry = tape.makers.get(number)
    while entry is not None:
        yield entry
        if entry.op not in through:
            return
        entry = next((tape.makers[n] for n in entry.inputs if n in tape.makers and _moves(tape, n)), None)


def _moves(tape: Tape, number: int) -> bool:
    """Whether a value depends on data: neither a mask nor a position bias."""
    return number not in tape.parametric and tape.values[number].content is None


def _before(tape: Tape, number: int, through: frozenset[str], wanted: tuple[str, ...] | frozenset[str]) -> Entry | None:
    """The nearest wanted entry that reads what becomes of a value."""
    waiting = [number]
    while waiting:
        for entry in tape.readers.get(waiting.pop(), ()):
            if entry.op in wanted:
                return entry
            if entry.op in through:
                waiting.extend(entry.outputs)
    return None


__all__ = ["lean", "tilt"]
