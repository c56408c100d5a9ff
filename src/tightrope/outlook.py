"""What a forecast means for training, in plain words: whether signal and gradient stay in range over depth."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from tightrope.precision import Precision, precision
from tightrope.predict import Forecast
from tightrope.report.model import LawRow, Report
from tightrope.report.wire import Reading, build
from tightrope.scaling import Scaling
from tightrope.version import VERSION

RANGE = 1e3
"""A course that changes more than this over the depth is out of range: beyond it the smallest terms of a sum over
layers fall under half precision's ten bits."""

MODES = {"conditioned": ", from the weights at hand", "ensemble": ", from the laws of the weights"}


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
        trouble: the layer at which it leaves its range first, "" when it never does.
        kind: which layers are followed, with # for their numbers; "" for all.
    """

    name: str
    unit: str
    first: float
    last: float
    factor: float
    span: float
    layers: int
    trouble: str = ""
    kind: str = ""

    @property
    def in_range(self) -> bool:
        """Whether it neither dies nor explodes."""
        return self.span <= RANGE

    def __str__(self) -> str:
        way = f"{self.unit} {self.first:.3g} → {self.last:.3g} over {self.layers} layers"
        way += f" ({self.kind})" if self.kind.strip("#") else ""
        way += f", × {self.factor:.3g} a layer"
        verb = "stays in range" if self.in_range else "dies out" if self.last < self.first else "explodes"
        return f"the {self.name} {verb}: {way}" + (f"\n  first trouble: {self.trouble}" if self.trouble else "")


@dataclass(frozen=True)
class Outlook:
    """Signal and gradient over depth, with what could not be predicted.

    Attributes:
        courses: of the signal and of the gradient.
        counts: of tensors, by how they are known.
        unknown: what could not be predicted, and why.
        seconds: wall time.
        mode: of the forecast; "" where the courses were measured.
        precision: what half precision does to the step; None where it was not asked for.
        scalings: how it changes with width and depth.
    """

    courses: tuple[Course, ...]
    counts: dict[str, int]
    unknown: tuple[str, ...] = ()
    seconds: float = 0.0
    mode: str = ""
    precision: Precision | None = None
    scalings: tuple[Scaling, ...] = ()

    @property
    def in_range(self) -> bool:
        """Whether every course stays in range."""
        return all(course.in_range for course in self.courses)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "in_range": self.in_range,
            "mode": self.mode,
            "courses": [asdict(course) for course in self.courses],
            "counts": self.counts,
            "unknown": list(self.unknown),
            "precision": self.precision.to_dict() if self.precision else None,
            "scalings": [scaling.to_dict() for scaling in self.scalings],
        }

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        lines = [f"{counts} tensors in {self.seconds:.1f} s{MODES.get(self.mode, '')}", *map(str, self.courses)]
        if not self.courses:
            lines.append("no layer could be predicted")
        if self.precision is not None:
            lines += ["", *self.precision.lines()]
        for scaling in self.scalings:
            lines += ["", str(scaling)]
        if self.unknown:
            lines += ["", "not known from theory:", *(f"  {line}" for line in dict.fromkeys(self.unknown))]
        return "\n".join(lines)


def outlook(report: Report, forecast: Forecast | None = None, scalings: Sequence[Scaling] = ()) -> Outlook:
    """Read the courses of signal and gradient from a report, measured where they were measured, else predicted.

    Args:
        report: of a forecast or of measured steps.
        forecast: what the report was made from, to say what half precision does to it.
        scalings: to tell as well.
    """
    wire = build(report)
    layers = [n for n, point in enumerate(wire.points) if point.layer] or list(range(len(wire.points)))
    places = [wire.points[n].module or wire.points[n].op for n in layers]
    signal = _course("signal", wire.signal.unit, [wire.signal.heights[n] for n in layers], places)
    back = [wire.gradient.heights[n] for n in reversed(layers)]
    gradient = _course("gradient", wire.gradient.unit, back, places[::-1])
    courses = tuple(course for course in (signal, gradient) if course is not None)
    mode, held = ("", None) if forecast is None else (forecast.mode, precision(forecast))
    return Outlook(courses, report.tensors, report.unknown, report.seconds, mode, held, tuple(scalings))


def _course(name: str, unit: str, readings: list[Reading | None], places: list[str]) -> Course | None:
    """The course of layers that are alike: of all repeated ones, those whose values span the most."""
    known = [(item.value, place) for item, place in zip(readings, places, strict=True) if item is not None]
    if not known:
        return None
    groups: dict[str, list[tuple[float, str]]] = {}
    for value, place in known:
        groups.setdefault(re.sub(r"\d+", "#", place), []).append((value, place))
    repeated = {kind: group for kind, group in groups.items() if len(group) > 1} or {"": known}
    kind, worst = max(repeated.items(), key=lambda pair: _span(pair[1]))
    first, last = worst[0][0], worst[-1][0]
    troubles = {_trouble(group) for group in repeated.values()}
    trouble = next((place for _, place in known if place in troubles), "")
    steps = max(len(worst) - 1, 1)
    named = kind if len(worst) < len(known) else ""
    return Course(name, unit, first, last, (last / first) ** (1 / steps), _span(worst), len(worst), trouble, named)


def _span(known: list[tuple[float, str]]) -> float:
    values = [value for value, _ in known]
    return max(values) / min(values)


def _trouble(known: list[tuple[float, str]]) -> str:
    """The first place at which the values so far span more than their range."""
    low = high = known[0][0]
    for value, place in known:
        low, high = min(low, value), max(high, value)
        if high / low > RANGE:
            return place
    return ""


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
