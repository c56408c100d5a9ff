"""Makes the calls of a tape again, on other numbers or in another way; none of the script's own code runs.

A tape is a program without side effects: its sources are at hand, its calls are in order. Run again, it shows what a
change of one sample, or of one call, does to everything behind it. Whatever is drawn is drawn from a seed of the call's
own, so that two runs differ by the change alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from tightrope.errors import RecordError
from tightrope.isolation import undisturbed
from tightrope.tape.names import RANDOM
from tightrope.tape.tape import Entry, Ref, Tape

Made = tuple[Entry, tuple[Tensor, ...]]
Call = Callable[[Entry, tuple[Any, ...], dict[str, Any]], Any]
DRAWING = RANDOM | {
    "dropout", "alpha_dropout", "feature_alpha_dropout", "feature_dropout", "dropout1d", "dropout2d", "dropout3d",
    "rrelu", "scaled_dot_product_attention", "lstm", "gru", "rnn_tanh", "rnn_relu", "gumbel_softmax",
}  # fmt: skip
"""Calls that may draw random numbers."""
_ALIASES = frozenset((
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "transpose", "permute", "t", "T", "mT",
    "contiguous", "getitem", "select", "chunk", "split", "unbind", "narrow", "expand", "alias", "detach", "movedim",
    "to", "float", "view_as", "expand_as", "data", "write_through",
))  # fmt: skip


class Unplayable(RecordError):
    """A tape whose calls cannot be made again."""


def rerun(
    tape: Tape, sources: Mapping[int, Tensor] | None = None, call: Call | None = None, *, wanted: set[int] | None = None
) -> Iterator[Made]:
    """Make the calls again, in order, without gradient; to be used inside `isolation.undisturbed`.

    Args:
        tape: a complete tape, while its parameters are as they were.
        sources: other numbers for values from outside, by id; of the same shape.
        call: makes a call in another way: is given the entry and its arguments, returns the result or
            `NotImplemented` to leave it as it was.
        wanted: values that are asked for: calls that none of them depends on are left out; None makes all calls.

    Yields:
        Each entry with what it made.

    Raises:
        Unplayable: a source is no longer known, or a call does not work again.
    """
    overwritten = _overwritten(tape)
    held: dict[int, Tensor] = {}
    needed = tape.ancestors(*wanted) if wanted is not None else tape.values.keys()
    entries = [entry for entry in tape.entries if any(number in needed for number in entry.outputs)]
    waiting = Counter(number for entry in entries for number in set(entry.inputs))
    for entry in entries:
        for number in set(entry.inputs) - held.keys():
            held[number] = _source(tape, number, sources or {}, overwritten)
        made = _make(entry, held, call)
        if [tuple(t.shape) for t in made] != [tape.values[n].shape for n in entry.outputs]:
            raise _unplayable(entry, "its result has another shape")
        held.update(zip(entry.outputs, made, strict=True))
        for number in set(entry.inputs):
            waiting[number] -= 1
            if not waiting[number]:
                held.pop(number, None)
        for number in entry.outputs:
            if not waiting[number]:
                held.pop(number, None)
        yield entry, made


def values(tape: Tape, wanted: set[int], **changes: Any) -> dict[int, Tensor]:
    """The wanted results of a run; the other arguments are those of `rerun`.

    Raises:
        Unplayable: the tape cannot be run again.
    """
    found: dict[int, Tensor] = {}
    with undisturbed():
        for entry, made in rerun(tape, wanted=wanted, **changes):
            found.update({n: t.clone() for n, t in zip(entry.outputs, made, strict=True) if n in wanted})
    return found


def _make(entry: Entry, held: dict[int, Tensor], call: Call | None) -> tuple[Tensor, ...]:
    """The tensors that one call makes."""
    if entry.op == "write_through":  # the view was overwritten in place, and so was what lies behind it
        return (held[entry.inputs[0]],)
    args, kwargs = tree_map(lambda x: held[x.id] if isinstance(x, Ref) else x, (entry.args, entry.kwargs))
    args, kwargs = _guarded(entry, args, kwargs)
    try:
        with torch.no_grad():
            if entry.op in DRAWING:
                torch.manual_seed(entry.index)
            result = call(entry, args, kwargs) if call is not None else NotImplemented
            if result is NotImplemented:
                result = entry.function(*args, **kwargs)
    except Exception as error:
        raise _unplayable(entry, f"{type(error).__name__}: {error}") from error
    return tuple(
        t for t in tree_flatten(args[0] if entry.op == "setitem" else result)[0] if isinstance(t, torch.Tensor)
    )


def _guarded(entry: Entry, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments that may be overwritten: running statistics are those of the model."""
    if entry.op in ("batch_norm", "instance_norm"):
        args = (args[0], *(t.clone() if isinstance(t, torch.Tensor) else t for t in args[1:3]), *args[3:])
        running = ("running_mean", "running_var")
        kwargs = {k: v.clone() if k in running and v is not None else v for k, v in kwargs.items()}
    elif entry.op == "embedding" and entry.argument(3, "max_norm") is not None:
        raise _unplayable(entry, "it rescales its weights")
    return args, kwargs


def _overwritten(tape: Tape) -> set[int]:
    """Values from outside that the step itself has overwritten: what they were is lost."""
    found = set()
    for entry in tape.entries:
        if entry.inplace and entry.op != "write_through" and entry.inputs:
            number = entry.inputs[0]
            while number in tape.makers and tape.makers[number].op in _ALIASES:
                number = tape.makers[number].inputs[0]
            if number not in tape.makers:
                found.add(number)
    return found


def _source(tape: Tape, number: int, sources: Mapping[int, Tensor], overwritten: set[int]) -> Tensor:
    value = tape.values[number]
    if value.content is None or value.content.is_meta or number in overwritten:
        raise Unplayable("make the calls of a step again", f"value {number} is no longer known", "Record the step")
    return sources.get(number, value.content)


def _unplayable(entry: Entry, found: str) -> Unplayable:
    return Unplayable(f"make {entry.op} again", f"{found} ({entry.location})", "Record the step in another mode")


__all__ = ["DRAWING", "Call", "Unplayable", "rerun", "values"]
