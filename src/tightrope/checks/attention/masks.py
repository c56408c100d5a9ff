"""What masks hide from the rows of attention weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tightrope.checks.trace import CHANCE, VIEWS, producers
from tightrope.study import Study
from tightrope.tape.tape import Entry, Kind, Ref, Tape, Value

HIDDEN = -1e4
"""A number this low, added to a logit, hides its key: exp(-1e4) is zero in every precision."""
LARGEST = 1 << 24
"""Most logits of one attention whose mask is looked at."""
_SHAPING = frozenset(("view", "reshape", "unflatten", "flatten"))


@dataclass(frozen=True)
class Mask:
    """What one attention cannot see.

    Attributes:
        entry: the softmax, or the fused call.
        source: the call that laid the mask on; the fused call itself when it took it as an argument.
        hidden: True where a key is hidden from a query, (..., queries, keys).
        infinite: whether some of the hidden logits are minus infinity.
    """

    entry: Entry
    source: Entry
    hidden: Tensor
    infinite: bool


@dataclass(frozen=True)
class _Layer:
    """One mask on the way to a softmax: where it was laid on, what it hides there, how the logits are shaped after."""

    entry: Entry
    hidden: Tensor
    infinite: bool
    shape: tuple[int, ...]


def masks(tape: Tape) -> Iterator[Mask]:
    """The attentions of a step that some mask restricts, as far as the masks' content is known."""
    made = producers(tape)
    for entry in tape.entries:
        if entry.op == "scaled_dot_product_attention":
            found = _fused(tape, entry)
        elif entry.op == "softmax" and len(tape.values[entry.outputs[0]].shape) >= 2:
            found = _composed(tape, made, entry)
        else:
            continue
        if found is not None:
            yield found


def _fused(tape: Tape, entry: Entry) -> Mask | None:
    q, k = (tape.values[i].shape for i in entry.inputs[:2])
    shape = (*q[:-1], k[-2])
    if math.prod(shape) > LARGEST or len(entry.inputs) < 3:
        return None
    reference = entry.argument(3, "attn_mask")
    layers = []
    if isinstance(reference, Ref):
        content = _content(tape.values[reference.id])
        if content is None:
            return None
        hidden = ~content if content.dtype is torch.bool else content <= HIDDEN
        layers.append(hidden)
    if entry.argument(5, "is_causal", False):
        layers.append(torch.ones(shape[-2:], dtype=torch.bool).triu(1))
    whole = _union(layers, shape)
    return Mask(entry, entry, whole, True) if whole is not None else None


def _composed(tape: Tape, made: dict[int, Entry], entry: Entry) -> Mask | None:
    """The masks between a product and its softmax, as one on the softmax's own shape."""
    dim = entry.argument(1, "dim", -1)
    shape = tape.values[entry.inputs[0]].shape
    if not isinstance(dim, int) or math.prod(shape) > LARGEST:
        return None
    layers = list(_way(tape, made, entry.inputs[0]))
    fitting = [layer for layer in layers if layer.shape == shape or math.prod(layer.shape) == math.prod(shape)]
    whole = _union([layer.hidden.expand(layer.shape).reshape(shape) for layer in fitting], shape)
    if whole is None:
        return None
    infinite = any(layer.infinite for layer in fitting)
    return Mask(entry, fitting[0].entry, whole.movedim(dim, -1), infinite)


def _way(tape: Tape, made: dict[int, Entry], number: int) -> Iterator[_Layer]:
    """Masks laid on a value, latest first, as far back as its shape is that of the logits."""
    while number in made:
        entry = made[number]
        shape = tape.values[number].shape
        found = _laid(tape, entry)
        if found is not None:
            yield _Layer(entry, found[0], found[1], shape)
        elif entry.op not in _SHAPING | CHANCE | (VIEWS & {"float", "to", "contiguous", "clone", "type", "double"}):
            arithmetic = entry.op in ("mul", "div", "add", "sub", "baddbmm")
            if not arithmetic:
                return
        signal = [i for i in entry.inputs if tape.values[i].kind is Kind.RESULT]
        if len(signal) != 1:
            return
        number = signal[0]


def _laid(tape: Tape, entry: Entry) -> tuple[Tensor, bool] | None:
    """What a call hides of its result, and whether by infinity; None for a call that hides nothing."""
    if entry.op == "masked_fill" and len(entry.args) > 2:
        level = _number(tape, entry.args[2])
        content = _content(tape.values[entry.args[1].id]) if isinstance(entry.args[1], Ref) else None
        if content is None or level is None or level > HIDDEN:
            return None
        return content, math.isinf(level)
    if entry.op == "where" and len(entry.args) == 3 and isinstance(entry.args[0], Ref):
        content = _content(tape.values[entry.args[0].id])
        for position, where in ((2, False), (1, True)):
            level = _number(tape, entry.args[position])
            if content is not None and level is not None and level <= HIDDEN:
                return content == where, math.isinf(level)
    if entry.op in ("add", "baddbmm"):
        for number in entry.inputs:
            content = _content(tape.values[number])
            if content is not None and content.is_floating_point() and bool((content <= HIDDEN).any()):
                return content <= HIDDEN, bool(torch.isinf(content).any())
    return None


def _number(tape: Tape, argument: object) -> float | None:
    """A number, or the content of a tensor that holds one."""
    if isinstance(argument, (int, float)):
        return float(argument)
    content = _content(tape.values[argument.id]) if isinstance(argument, Ref) else None
    return float(content) if content is not None and content.numel() == 1 else None


def _content(value: Value) -> Tensor | None:
    """What a tensor that is fixed before the weights holds; None for any other."""
    if value.kind in (Kind.RESULT, Kind.PARAMETER) or value.content is None or value.content.is_meta:
        return None
    return value.content.detach().cpu()


def _union(layers: list[Tensor], shape: tuple[int, ...]) -> Tensor | None:
    """What any of several masks hides, on one shape; None without a mask."""
    if not layers:
        return None
    whole = torch.zeros(shape, dtype=torch.bool)
    for layer in layers:
        whole = whole | layer.bool()
    return whole


def tokens(study: Study, samples: int, length: int) -> Iterator[Tensor]:
    """What the step read at each position of each sample: numbers of classes (N, T, 1) or features (N, T, K)."""
    tape = study.tape
    for value in tape.values.values():
        content = _content(value)
        if content is None or value.producer is not None:
            continue
        if value.id in tape.time_first and content.ndim >= 2:
            content = content.transpose(0, 1)
        if content.shape[:2] != (samples, length):
            continue
        if content.ndim == 2 and not content.is_floating_point() and _is_index(tape, value):
            yield content.unsqueeze(-1)
        elif content.ndim == 3 and content.is_floating_point():
            yield content


def _is_index(tape: Tape, value: Value) -> bool:
    """Whether an embedding looks these numbers up."""
    return any(entry.op == "embedding" for entry in tape.readers.get(value.id, []))


__all__ = ["Mask", "masks", "tokens"]
