"""What a weight's own numbers say: whether it stands as an initialiser drew it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from tightrope.checks.trace import NORMS, VIEWS, weight_of
from tightrope.tape.tape import Entry, Tape

DRAWN = 1.5
"""Spread of rows' or columns' mean squares over what independent draws give; trained matrices have 3 and more."""


def is_drawn(weight: Tensor | None) -> bool:
    """Whether a matrix is as an initialiser draws it: its rows and columns differ as independent draws do.

    The mean square of a row of n independent entries of one law has variance Var(w^2) / n; the ratio of the observed
    to this variance has standard error sqrt(2 / (rows - 1)). Columns likewise. An unknown weight counts as drawn.
    """
    if weight is None or weight.is_meta:
        return True
    squares = weight.detach().flatten(1).double().square()
    if float(squares.sum()) == 0:
        return True
    return all(_alike(side) for side in (squares, squares.T) if side.shape[0] > 1)


def _alike(squares: Tensor) -> bool:
    """Whether the rows' means differ no more than those of independent entries."""
    rows, columns = squares.shape
    noise = float(squares.var() / columns)
    return float(squares.mean(1).var()) <= noise * (DRAWN + 4 * math.sqrt(2 / (rows - 1)))


def weights_before(tape: Tape, made: dict[int, Entry], number: int) -> Iterator[Tensor]:
    """Contents of the weights whose products, summed or normalised, make a value."""
    waiting, seen = [number], set()
    while waiting:
        entry = made.get(waiting.pop())
        if entry is None or entry.index in seen:
            continue
        seen.add(entry.index)
        weight = weight_of(tape, made, entry)
        content = tape.values[weight].content if weight is not None else None
        if content is not None:
            yield content
        elif entry.op in VIEWS | NORMS | {"add"}:
            waiting.extend(entry.inputs)


__all__ = ["is_drawn", "weights_before"]
