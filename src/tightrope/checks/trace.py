"""Ways along a tape that several checks walk: past views, back to what made a value, forward to what reads it."""

from __future__ import annotations

from collections.abc import Iterator

from tightrope.tape.tape import Entry, Kind, Tape

VIEWS = frozenset((
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "transpose", "permute", "t", "T", "mT",
    "contiguous", "getitem", "select", "chunk", "split", "unbind", "narrow", "float", "half", "double", "bfloat16",
    "to", "type", "type_as", "clone", "detach", "expand", "expand_as", "alias", "view_as", "reshape_as", "movedim",
    "ravel", "cpu", "cuda", "repeat_interleave",
))  # fmt: skip
"""Calls whose result holds elements of their first argument, unchanged."""
JOINS = frozenset(("cat", "stack"))
"""Calls whose result holds the elements of several arguments."""
CONTRACTIONS = frozenset((
    "linear", "bilinear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "matmul", "mm", "bmm", "mv", "addmm", "baddbmm", "einsum", "lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell",
    "gru_cell", "rnn_tanh_cell", "rnn_relu_cell",
))  # fmt: skip
"""Calls that sum products of their arguments."""
NORMS = frozenset(("batch_norm", "instance_norm", "layer_norm", "group_norm", "rms_norm"))
"""Calls that normalise their first argument."""
CHANCE = frozenset(("dropout", "alpha_dropout", "feature_dropout", "dropout1d", "dropout2d", "dropout3d"))
"""Calls that drop elements at random."""


def producers(tape: Tape) -> dict[int, Entry]:
    """The entry that made each result."""
    return {number: entry for entry in tape.entries for number in entry.outputs}


def origin(made: dict[int, Entry], number: int, through: frozenset[str] = VIEWS) -> int:
    """The value that a chain of calls in `through` started from."""
    while number in made and made[number].op in through and made[number].inputs:
        number = made[number].inputs[0]
    return number


def reads(tape: Tape, number: int, through: frozenset[str] = VIEWS) -> Iterator[Entry]:
    """Entries that read a value, or what calls in `through` make of it."""
    seen: set[int] = set()
    waiting = [number]
    while waiting:
        for entry in tape.readers.get(waiting.pop(), []):
            if entry.index in seen:
                continue
            seen.add(entry.index)
            if entry.op in through:
                waiting.extend(entry.outputs)
            else:
                yield entry


def weight_of(tape: Tape, made: dict[int, Entry], entry: Entry) -> int | None:
    """The parameter matrix that a call contracts with its data; None when it has none."""
    if entry.op not in CONTRACTIONS:
        return None
    for number in entry.inputs:
        value = tape.values[origin(made, number)]
        if value.kind is Kind.PARAMETER and len(value.shape) >= 2:
            return value.id
    return None


def is_weighted(tape: Tape, entry: Entry) -> bool:
    """Whether a call contracts its data with a weight: a parameter, or what is made of parameters alone."""
    matrices = (i for i in entry.inputs if i in tape.parametric and len(tape.values[i].shape) >= 2)
    return entry.op in CONTRACTIONS and any(True for _ in matrices)


def learned(tape: Tape) -> frozenset[int]:
    """Ids of the values that depend on a parameter; all others are data, or fixed."""
    found = {value.id for value in tape.value_of(Kind.PARAMETER)}
    for entry in tape.entries:
        if found.intersection(entry.inputs):
            found.update(entry.outputs)
    return frozenset(found)


def feeds_weight(tape: Tape, number: int) -> bool:
    """Whether some weight reads what comes of a value, whatever stands between."""
    seen: set[int] = set()
    waiting = [number]
    while waiting:
        for entry in tape.readers.get(waiting.pop(), []):
            if entry.index not in seen:
                seen.add(entry.index)
                if is_weighted(tape, entry):
                    return True
                waiting.extend(entry.outputs)
    return False


def is_hidden(tape: Tape, number: int) -> bool:
    """Whether some weight reads a value (past views, dropout and joins): it is no output and no gate."""
    through = VIEWS | CHANCE | JOINS | NORMS | {"add", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "mean"}
    return any(is_weighted(tape, entry) for entry in reads(tape, number, through))


__all__ = [
    "CHANCE",
    "CONTRACTIONS",
    "JOINS",
    "NORMS",
    "VIEWS",
    "feeds_weight",
    "is_hidden",
    "is_weighted",
    "learned",
    "origin",
    "producers",
    "reads",
    "weight_of",
]
