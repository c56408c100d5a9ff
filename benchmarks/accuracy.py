"""How well the laws of theory agree with measured ones.

    python benchmarks/accuracy.py [--seeds 3] [--size 224] [--rows] [--json FILE] [part of a group or a model ...]

For each model one row: relative errors of the standard deviation of every non-trivial result, of the rms of the loss's
gradient with respect to it, and of the rms of each parameter's gradient, pooled over the seeds; the share of results
that finite width leaves inside a 90 % band; rows that were simulated or not predicted; seconds per forecast. A goal
that is missed is marked with !.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from models import GOALS, Case, Goal, cases

import tightrope as tr
from tightrope.compare import Row
from tightrope.tape.tape import Kind

BAND = 1.645
"""Standard errors to either side that hold 90 % of a normal law."""
PARAMETERS = 0.15
"""Goal of the median error of parameters' gradients."""


@dataclass
class Errors:
    """Relative errors (predicted / measured - 1) of one case over its seeds."""

    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)
    parameters: list[float] = field(default_factory=list)
    z: list[float] = field(default_factory=list)
    rows: int = 0
    simulated: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    seconds: float = 0.0
    steps: float = 0.0


def judge(case: Case, seeds: int, *, show: bool = False) -> Errors:
    """Forecast and measurement of the same model and batch, for each seed."""
    errors = Errors()
    for seed in range(seeds):
        torch.manual_seed(seed)
        model, inputs = case.build()
        begin = time.perf_counter()
        forecast = tr.predict(model, inputs)
        errors.seconds += (time.perf_counter() - begin) / seeds
        begin = time.perf_counter()
        measured = tr.measure(model, inputs)
        errors.steps += (time.perf_counter() - begin) / seeds
        comparison = tr.compare(forecast, measured)
        rows = [row for row in comparison.rows if not row.trivial]
        for row in rows:
            forward = error(row.predicted_std, row.measured_std)
            backward = error(row.predicted_grad_rms, row.measured_grad_rms)
            errors.forward += [] if forward is None else [forward]
            errors.backward += [] if backward is None else [backward]
            errors.z += [] if row.z is None else [row.z]
            if show and seed == 0:
                print_row(row, forward, backward)
        known = {v.name: measured.gradients.get(v.id) for v in measured.tape.value_of(Kind.PARAMETER)}
        for value in forecast.tape.value_of(Kind.PARAMETER):
            mine, theirs = forecast.gradients.get(value.id), known.get(value.name)
            found = error(mine.rms if mine else None, theirs.rms if theirs else None)
            found = None if theirs and theirs.rms <= rounding(measured, value.name) else found
            errors.parameters += [] if found is None else [found]
            if show and seed == 0 and found is not None:
                print(f"      grad of {value.name:50} {found:+8.3f}")
        errors.rows += len(rows)
        errors.simulated += [row.op for row in rows if row.simulated]
        errors.unknown += comparison.unknown
    return errors


def error(predicted: float | None, measured: float | None) -> float | None:
    """Relative error, if both numbers exist."""
    if predicted is None or not measured or not math.isfinite(measured) or not math.isfinite(predicted):
        return None
    return predicted / measured - 1


def rounding(measured: tr.Measurement, name: str) -> float:
    """What rounding alone can make of the rms of a vector parameter's gradient: n eps times the rms of its n terms.

    A bias in front of a normaliser over samples has no gradient; what is measured there is the error of a sum.
    """
    tape = measured.tape
    bound = 0.0
    for value in tape.value_of(Kind.PARAMETER):
        if value.name != name or len(value.shape) != 1:
            continue
        for entry in tape.entries:
            if value.id in entry.inputs and (law := measured.gradients.get(entry.outputs[0])) is not None:
                made = tape.values[entry.outputs[0]]
                terms = math.prod(made.shape) / math.prod(value.shape)
                bound += torch.finfo(made.dtype).eps * terms * law.rms
    return bound


def print_row(row: Row, forward: float | None, backward: float | None) -> None:
    def text(value: float | None) -> str:
        return "       -" if value is None else f"{value:+8.3f}"

    std = row.measured_std or math.nan
    print(f"{row.index:5} {row.op:24} {row.module:44} {std:10.3g} {text(forward)} {text(backward)}")


def line(case: Case, errors: Errors) -> str:
    """One row of the table."""
    goal = GOALS[case.group]
    cells = [f"{case.name:28}", f"{errors.rows:6}"]
    for found, bars in ((errors.forward, goal.forward), (errors.backward, goal.backward)):
        cells += [cell(value, bar) for value, bar in zip(quantiles(found), (*bars, math.inf), strict=True)]
    cells.append(cell(quantiles(errors.parameters)[0], PARAMETERS))
    inside = np.mean(np.abs(errors.z) < BAND) if errors.z else math.nan
    cells.append(f"{100 * inside:5.0f}")
    cells.append(f"{100 * len(errors.simulated) / max(errors.rows, 1):5.1f} {len(errors.unknown):4}")
    cells.append(f"{errors.seconds:6.1f} {errors.steps:6.1f}")
    return " ".join(cells)


def quantiles(found: list[float]) -> tuple[float, float, float]:
    if not found:
        return math.nan, math.nan, math.nan
    sizes = np.abs(found)
    return float(np.median(sizes)), float(np.quantile(sizes, 0.9)), float(max(sizes))


def cell(value: float, bar: float) -> str:
    return f"{100 * value:7.2f}{'!' if value > bar else ' '}"


HEADER = (
    f"{'model':28} {'rows':>6} {'std %':>8} {'p90':>8} {'max':>8} {'grad %':>8} {'p90':>8} {'max':>8} {'param %':>8} "
    f"{'band':>5} {'sim %':>5} {'none':>4} {'s':>6} {'step':>6}"
)


def wanted(case: Case, parts: list[str]) -> bool:
    return not parts or any(part in f"{case.group}: {case.name}" for part in parts)


def goals(goal: Goal) -> str:
    forward, backward = (f"{100 * a:g} / {100 * b:g} %" for a, b in (goal.forward, goal.backward))
    return f"std {forward}, gradient {backward}, parameters {100 * PARAMETERS:g} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of 'group: model'; all when none is given")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=224, help="edge of the convolutional nets' pictures")
    parser.add_argument("--rows", action="store_true", help="print every row of the first seed")
    parser.add_argument("--json", type=Path, help="write the errors to this file")
    options = parser.parse_args()
    found, group = {}, ""
    for case in cases(options.size):
        if not wanted(case, options.names):
            continue
        if case.group != group:
            group = case.group
            print(f"\n{group}: goals {goals(GOALS[group])}\n{HEADER}", flush=True)
        try:
            errors = judge(case, options.seeds, show=options.rows)
        except (tr.TightropeError, RuntimeError) as trouble:
            print(f"{case.name:28} {str(trouble).splitlines()[0]}", file=sys.stderr, flush=True)
            continue
        found[f"{case.group}: {case.name}"] = asdict(errors)
        print(line(case, errors), flush=True)
    if options.json:
        options.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
