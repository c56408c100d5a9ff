"""Predicted beside measured, entry by entry."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from tightrope.law import Law
from tightrope.measure.measurement import Measurement
from tightrope.predict import Forecast
from tightrope.tape.tape import Tape

RULE_ERROR = 0.005
"""Standard error of ln(std) that the rules leave by their approximations (see `benchmarks/bands.py`)."""
BAND = 1.645
"""Standard errors to either side that hold 90 % of a normal law."""
WIDEST = 300.0
"""Half of a band, as a logarithm, from which on it says no more."""


@dataclass(frozen=True)
class Row:
    """One floating-point result of the step.

    Attributes:
        op, module, index: which call made it.
        trivial: its law equals its input's by construction (a view, a copy), or it is a single number, which has
            no spread over its elements.
        predicted_std, measured_std: over all elements of the tensor, in its own unit.
        predicted_grad_rms, measured_grad_rms: of the loss's gradient with respect to it; None without one.
        z: ln(measured / predicted std) over its standard error (band and sampling together).
        simulated: the operation had no rule and was evaluated numerically.
        grad_z: the same for the gradient's rms.
        band, grad_band: lowest and highest std, and gradient rms, that 90 % of all batches (and, where the weights are
            known by law only, of all draws of the weights) lead to.
    """

    op: str
    module: str
    index: int
    trivial: bool
    predicted_std: float | None
    measured_std: float | None
    predicted_grad_rms: float | None
    measured_grad_rms: float | None
    z: float | None
    simulated: bool = False
    grad_z: float | None = None
    band: tuple[float, float] | None = None
    grad_band: tuple[float, float] | None = None


@dataclass(frozen=True)
class Summary:
    """Relative errors over the non-trivial rows: median, 90th percentile, maximum.

    Attributes:
        forward: of the standard deviation.
        backward: of the gradient's rms.
        rows: number of non-trivial rows.
        without_rule: operations without a rule, by name.
        unknown: operations that were not predicted, with the reason.
    """

    forward: tuple[float, float, float]
    backward: tuple[float, float, float]
    rows: int
    without_rule: tuple[str, ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """All rows of a step, in the order of the tape."""

    rows: Sequence[Row]
    unknown: tuple[str, ...] = ()

    def summary(self) -> Summary:
        """Relative errors over non-trivial rows."""
        rows = [row for row in self.rows if not row.trivial]
        forward = [_error(row.predicted_std, row.measured_std) for row in rows]
        backward = [_error(row.predicted_grad_rms, row.measured_grad_rms) for row in rows]
        names = tuple(sorted({row.op for row in self.rows if row.simulated}))
        return Summary(_quantiles(forward), _quantiles(backward), len(rows), names, self.unknown)


def compare(forecast: Forecast, measurement: Measurement) -> Comparison:
    """Put a forecast beside a measurement of the same step.

    Args:
        forecast, measurement: from the same tape, or from two recordings of the same model; where the
            calls differ, those that both made in the same order are compared.
    """
    simulated = {entry.index for entry in forecast.simulated}
    rows = []
    for index, mine, theirs, op, module in _pairs(forecast.tape, measurement.tape):
        predicted, measured = forecast.laws.get(mine), measurement.laws.get(theirs)
        if predicted is None and measured is None:
            continue
        grad_predicted, grad_measured = forecast.gradients.get(mine), measurement.gradients.get(theirs)
        lone = math.prod(forecast.tape.values[mine].shape) == 1
        row = Row(
            op, module, index, lone or index in forecast.trivial,
            None if lone or predicted is None else predicted.std, None if lone or measured is None else measured.std,
            grad_predicted.rms if grad_predicted else None, grad_measured.rms if grad_measured else None,
            None if lone else z_score(predicted, measured), index in simulated,
            None if lone else grad_z_score(grad_predicted, grad_measured),
            None if lone or predicted is None else band(predicted.std, predicted.error),
            None if lone or grad_predicted is None else band(grad_predicted.rms, grad_predicted.error),
        )  # fmt: skip
        rows.append(row)
    unknown = tuple(f"{entry.op} ({entry.module or 'top level'}): {why}" for entry, why in forecast.unknown)
    return Comparison(rows, unknown)


def z_score(predicted: Law | None, measured: Law | None) -> float | None:
    """ln(measured / predicted std) in units of its standard error; None when one is missing or zero.

    The prediction's error is what a batch of this size, and a draw of the weights where they are not known, makes of
    the std. The measured error estimates the former again, from the batch itself: the larger one counts.
    """
    if predicted is None or measured is None:
        return None
    return _distance(predicted.std, measured.std, predicted.error, measured.error)


def grad_z_score(predicted: Law | None, measured: Law | None) -> float | None:
    """`z_score` of the rms of a gradient."""
    if predicted is None or measured is None:
        return None
    return _distance(predicted.rms, measured.rms, predicted.error, measured.error)


def band(value: float, error: float) -> tuple[float, float] | None:
    """Where 90 % of the measured values lie; None when the prediction is zero or not finite."""
    if not 0 < value < math.inf or not math.isfinite(error):
        return None
    reach = min(BAND * math.hypot(error, RULE_ERROR), WIDEST)
    return value * math.exp(-reach), value * math.exp(reach)


def _distance(predicted: float, measured: float, *errors: float) -> float | None:
    if not (0 < predicted < math.inf and 0 < measured < math.inf):
        return None
    error = math.hypot(max(errors), RULE_ERROR)
    return math.log(measured / predicted) / error if math.isfinite(error) else None


def _pairs(first: Tape, second: Tape) -> Iterator[tuple[int, int, int, str, str]]:
    """(index, id on the first tape, id on the second, op, module) of results both tapes have."""
    if first is second:
        matched: list[tuple[Any, Any]] = [(entry, entry) for entry in first.entries]
    else:
        keys = [
            [(e.op, e.module, tuple(t.values[o].shape for o in e.outputs)) for e in t.entries] for t in (first, second)
        ]
        blocks = SequenceMatcher(None, keys[0], keys[1], autojunk=False).get_matching_blocks()
        matched = [(first.entries[b.a + i], second.entries[b.b + i]) for b in blocks for i in range(b.size)]
    for mine, theirs in matched:
        for left, right in zip(mine.outputs, theirs.outputs, strict=True):
            if first.values[left].is_float:
                yield mine.index, left, right, mine.op, mine.module


def _error(predicted: float | None, measured: float | None) -> float | None:
    if predicted is None or measured is None or not measured or not math.isfinite(measured):
        return None
    return abs(predicted / measured - 1)


def _quantiles(errors: list[float | None]) -> tuple[float, float, float]:
    found = [error for error in errors if error is not None and math.isfinite(error)]
    if not found:
        return (math.nan, math.nan, math.nan)
    return float(np.median(found)), float(np.quantile(found, 0.9)), float(max(found))
