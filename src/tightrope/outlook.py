"""What a forecast means for training, in plain words: whether signal and gradient stay in range over depth."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any

import torch

from tightrope.predict import Forecast
from tightrope.report.model import LawRow, Report
from tightrope.report.wire import Reading, build
from tightrope.version import VERSION

RANGE = 1e3
"""A course that changes more than this over the depth is out of range: beyond it the smallest terms of a sum over
layers fall under half precision's ten bits."""


@dataclass(frozen=True)
class Course:
    """How a quantity goes over the layers.

    Attributes:
        name: "signal" or "gradient".
        unit: what is followed, "std" or "rms".
        first, last: at the first and the last layer, in the order in which it travels.
        factor: by which it changes a layer, on average.
        span: largest over smallest value on the way.
        layers: how many layers there are.
    """

    name: str
    unit: str
    first: float
    last: float
    factor: float
    span: float
    layers: int

    @property
    def in_range(self) -> bool:
        """Whether it neither dies nor explodes."""
        return self.span <= RANGE

    def __str__(self) -> str:
        way = f"{self.unit} {self.first:.3g} → {self.last:.3g} over {self.layers} layers, × {self.factor:.3g} a layer"
        verb = "stays in range" if self.in_range else "dies out" if self.last < self.first else "explodes"
        return f"the {self.name} {verb}: {way}"


@dataclass(frozen=True)
class Outlook:
    """Signal and gradient over depth, with what could not be predicted."""

    courses: tuple[Course, ...]
    counts: dict[str, int]
    unknown: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def in_range(self) -> bool:
        """Whether every course stays in range."""
        return all(course.in_range for course in self.courses)

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        lines = [f"{counts} tensors in {self.seconds:.1f} s", *map(str, self.courses)]
        if not self.courses:
            lines.append("no layer could be predicted")
        if self.unknown:
            lines += ["not known from theory:", *(f"  {line}" for line in dict.fromkeys(self.unknown))]
        return "\n".join(lines)


def outlook(report: Report) -> Outlook:
    """Read the courses of signal and gradient from a report, measured where they were measured, else predicted."""
    wire = build(report)
    layers = [n for n, point in enumerate(wire.points) if point.layer] or list(range(len(wire.points)))
    signal = _course("signal", wire.signal.unit, [wire.signal.heights[n] for n in layers])
    gradient = _course("gradient", wire.gradient.unit, [wire.gradient.heights[n] for n in reversed(layers)])
    courses = tuple(course for course in (signal, gradient) if course is not None)
    return Outlook(courses, report.tensors, report.unknown, report.seconds)


def _course(name: str, unit: str, readings: list[Reading | None]) -> Course | None:
    values = [item.value for item in readings if item is not None]
    if not values:
        return None
    steps = max(len(values) - 1, 1)
    factor = (values[-1] / values[0]) ** (1 / steps)
    return Course(name, unit, values[0], values[-1], factor, max(values) / min(values), len(values))


def forecast_report(forecast: Forecast, **facts: Any) -> Report:
    """A report of predicted laws alone."""
    tape, simulated = forecast.tape, {entry.index for entry in forecast.simulated}
    rows = [
        LawRow(
            entry.index, entry.op, entry.module, str(tape.location(entry)), tape.values[number].shape,
            entry.index in forecast.trivial, forecast.laws.get(number), None, forecast.gradients.get(number), None,
            None, entry.index in simulated,
        )
        for entry in tape.entries for number in entry.outputs if tape.values[number].is_float
    ]  # fmt: skip
    predicted = sum(row.predicted is not None and not row.simulated for row in rows)
    tensors = {
        "predicted": predicted, "simulated": sum(row.simulated for row in rows),
        "unknown": sum(row.predicted is None for row in rows),
    }  # fmt: skip
    unknown = tuple(f"{e.op} in {e.module or 'the model'} ({e.location}): {why}" for e, why in forecast.unknown)
    versions = {"python": platform.python_version(), "torch": torch.__version__, "tightrope": VERSION}
    return Report((), tuple(rows), tensors=tensors, unknown=unknown, versions=versions, **facts)
