"""Updates measured against the weights that they change."""

from __future__ import annotations

import math
import statistics

from tightrope.measure.updates import Row, Updates


def is_weight(row: Row) -> bool:
    """Whether a row is a matrix that was updated; gains and biases may start anywhere, so their ratio says little."""
    return len(row.shape) > 1 and row.change is not None and row.numel > 1


def ratio(row: Row) -> float:
    """The update's root mean square over that of the weight, the weight of a fresh layer taken where it is smaller.

    A fresh layer has Var(w) = 1 / (3 n_in); weights that begin at zero are on the way there.
    """
    assert row.change is not None
    fan = math.prod(row.shape[1:])
    return row.change / max(row.weight, math.sqrt(1 / (3 * fan)))


def typical(updates: Updates) -> float | None:
    """Median of the ratio over the weight matrices that were updated; None where there are none."""
    found = [ratio(row) for row in updates.rows if is_weight(row) and row.groups]
    return statistics.median(found) if found else None


def largest(updates: Updates) -> float | None:
    """Largest ratio over the weight matrices that were updated; None where there are none."""
    return max((ratio(row) for row in updates.rows if is_weight(row) and row.groups), default=None)
