"""The wire: the way of the signal and of the gradient through the network, as data to draw.

The points stand in the order of the tape, one for each result that is more than a view of another. Their
heights are standard deviations (signal) and root mean squares (gradient), predicted with a band and
measured with an error; both errors are standard deviations of the logarithm. The part of the signal that
differs between samples is kept beside the whole: a bias holds the whole up where the data has long faded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tightrope.finding import Finding, Severity
from tightrope.law import Law
from tightrope.report.model import LawRow, Report

BAND = 2.0  # the drawn half-widths, in standard deviations of ln(std)
FAR = 3.0  # standard errors beyond which a measured tensor is told to be off its prediction
WEIGHTED = ("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "addmm")
PRODUCTS = ("matmul", "mm", "bmm", "einsum")  # counted as layers where a network has no other


@dataclass(frozen=True)
class Reading:
    """A positive number and the ends of its band or error bar."""

    value: float
    low: float
    high: float

    @property
    def error(self) -> float:
        """Standard error of the logarithm."""
        return math.log(self.high / self.value) / BAND


@dataclass(frozen=True)
class Point:
    """One tensor on the wire.

    Attributes:
        row: position in `report.laws`.
        index, op, module, location: as in `LawRow`.
        layer: whether the operation carries weights, so that depth advances by one.
        predicted, measured: standard deviation over all elements.
        carried_predicted, carried_measured: standard deviation of what differs between samples.
        gradient_predicted, gradient_measured: rms of the loss's gradient.
        z: distance of measured from predicted std in standard errors.
        finite, gradient_finite: whether what was measured is finite.
    """

    row: int
    index: int
    op: str
    module: str
    location: str
    layer: bool
    predicted: Reading | None
    measured: Reading | None
    carried_predicted: Reading | None
    carried_measured: Reading | None
    gradient_predicted: Reading | None
    gradient_measured: Reading | None
    z: float | None
    finite: bool = True
    gradient_finite: bool = True


@dataclass(frozen=True)
class Trend:
    """Factor per layer of a course: the median slope of its logarithm over depth, exponentiated.

    Attributes:
        predicted, measured: the factors; None where there are too few points.
        error: half-width of the predicted factor's band.

    References:
        Theil (1950), Sen (1968), for the slope as the median over pairs.
    """

    predicted: float | None = None
    measured: float | None = None
    error: float | None = None


@dataclass(frozen=True)
class Course:
    """The signal from input to loss, or the gradient from loss to input.

    Attributes:
        trend: factor per layer, in the direction of travel.
        unit: what the values are.
        start, end: first and last measured (else predicted) value in the order of the tape.
        heights: measured, else predicted, at every point.
    """

    trend: Trend
    unit: str
    start: float | None
    end: float | None
    heights: tuple[Reading | None, ...]


@dataclass(frozen=True)
class Block:
    """A run of points that one module made: points `first` to `last`, `level` 0 is outermost."""

    name: str
    first: int
    last: int
    level: int


@dataclass(frozen=True)
class Flag:
    """A finding where it stands on the wire.

    Attributes:
        key: check, module and index of the finding.
        check, severity: of the finding.
        position: of the point it stands at; -1 for what comes before all points.
        first, last: the points of its modules.
        side: "signal" or "gradient".
    """

    key: tuple[str, str, int]
    check: str
    severity: Severity
    position: int
    first: int
    last: int
    side: str


@dataclass(frozen=True)
class Wire:
    """Everything that a picture of the step needs; `trunk` are the points that leave an outermost block."""

    points: tuple[Point, ...]
    blocks: tuple[Block, ...]
    trunk: tuple[int, ...]
    flags: tuple[Flag, ...]
    layers: int
    signal: Course
    gradient: Course

    @property
    def measured(self) -> bool:
        """Whether anything was measured."""
        return any(point.measured is not None or not point.finite for point in self.points)


def build(report: Report) -> Wire:
    """The wire of a report."""
    products = not any(row.op in WEIGHTED for row in report.laws)
    weighted = WEIGHTED + (PRODUCTS if products else ())
    points = tuple(_point(i, row, row.op in weighted) for i, row in enumerate(report.laws) if _shown(row))
    flags = tuple(_flag(finding, points) for finding in report.findings)
    layers = sum(point.layer for point in points)
    carried = _course(points, "carried_predicted", "carried_measured", 1, "std between samples")
    whole = _course(points, "predicted", "measured", 1, "std")
    signal = carried if _fades(carried, whole) else whole
    gradient = _course(points, "gradient_predicted", "gradient_measured", -1, "rms")
    blocks = _blocks([point.module for point in points])
    return Wire(points, blocks, _trunk(blocks, len(points)), flags, layers, signal, gradient)


def reading(law: Law | None, quantity: str = "std") -> Reading | None:
    """A quantity of a law ("std", "signal", "rms") with the ends of its band; None when zero, missing or not finite."""
    value: float = 0.0 if law is None else getattr(law, quantity)
    if law is None or not math.isfinite(value) or value <= 0:
        return None
    spread = math.exp(min(BAND * law.error, 700.0)) if math.isfinite(law.error) else 1.0
    return Reading(value, value / spread, min(value * spread, 1e308))


def _shown(row: LawRow) -> bool:
    return not row.trivial and row.shape != () and (row.predicted is not None or row.measured is not None)


def _point(i: int, row: LawRow, layer: bool) -> Point:
    return Point(
        i, row.index, row.op, row.module, row.location, layer,
        reading(row.predicted), reading(row.measured),
        reading(row.predicted, "signal"), reading(row.measured, "signal"),
        reading(row.predicted_gradient, "rms"), reading(row.measured_gradient, "rms"),
        row.z, _finite(row.measured), _finite(row.measured_gradient),
    )  # fmt: skip


def _finite(law: Law | None) -> bool:
    return law is None or law.finite


def _fades(carried: Course, whole: Course) -> bool:
    """Whether the part between samples is below half of the whole in most of the last quarter."""
    pairs = zip(carried.heights, whole.heights, strict=True)
    shares = [part.value / total.value for part, total in pairs if part is not None and total is not None]
    return bool(shares) and float(np.median(shares[-max(len(shares) // 4, 1) :])) < 0.5


def _course(points: Sequence[Point], predicted: str, measured: str, direction: int, unit: str) -> Course:
    factors: dict[str, float | None] = {}
    errors: list[float] = []
    for name in (predicted, measured):
        found = [(n, value) for n, p in enumerate(p for p in points if p.layer) if (value := getattr(p, name))]
        depth = np.array([n for n, _ in found], dtype=float)
        logs = np.log([value.value for _, value in found])
        factors[name] = math.exp(direction * _slope(depth, logs)) if len(found) > 2 else None
        if name == predicted and len(found) > 2:
            widths = [value.error for _, value in found if value.high < 1e308]
            errors = [max(widths, default=0.0) / (depth[-1] - depth[0])]
    factor = factors[predicted]
    trend = Trend(factor, factors[measured], factor * errors[0] if factor is not None and errors else None)
    heights = tuple(getattr(point, measured) or getattr(point, predicted) for point in points)
    ends = [height.value for height in heights if height is not None]
    return Course(trend, unit, ends[0] if ends else None, ends[-1] if ends else None, heights)


def _slope(depth: np.ndarray, logs: np.ndarray) -> float:
    first, second = np.triu_indices(len(depth), 1)
    return float(np.median((logs[second] - logs[first]) / (depth[second] - depth[first])))


def _flag(finding: Finding, points: Sequence[Point]) -> Flag:
    inside = [n for n, point in enumerate(points) if any(_within(point.module, name) for name in finding.modules)]
    behind = [n for n, point in enumerate(points) if point.index >= finding.index >= 0]
    if finding.index < 0 and not inside:
        position = -1
    else:
        position = behind[0] if behind else inside[0] if inside else len(points) - 1
    first, last = (inside[0], inside[-1]) if inside else (position, position)
    side = "gradient" if "gradient" in finding.check else "signal"
    key = (finding.check, finding.module, finding.index)
    return Flag(key, finding.check, finding.severity, position, first, last, side)


def _within(module: str, name: str) -> bool:
    return name != "" and (module == name or module.startswith(f"{name}."))


def _trunk(blocks: Sequence[Block], points: int) -> tuple[int, ...]:
    inside = {n for block in blocks if block.level == 0 for n in range(block.first, block.last)}
    return tuple(n for n in range(points) if n not in inside)


def _steps(path: str) -> list[str]:
    """A module path by its named parts, each with the numbers that follow it: ["layers.3", "attention"]."""
    steps: list[str] = []
    for part in path.split(".") if path else []:
        if part.isdigit() and steps:
            steps[-1] += f".{part}"
        else:
            steps.append(part)
    return steps


def _blocks(modules: Sequence[str]) -> tuple[Block, ...]:
    """Runs of points with a common module path, at up to two levels that tell points apart."""
    paths = [_steps(module) for module in modules]
    blocks: list[Block] = []
    deepest: list[Block] = []
    level = 0
    for depth in range(1, 1 + max((len(path) for path in paths), default=0)):
        runs: list[Block] = []
        start = 0
        for n in range(1, len(paths) + 1):
            if n == len(paths) or paths[n][:depth] != paths[start][:depth]:
                if len(paths[start]) >= depth:
                    runs.append(Block(".".join(paths[start][:depth]), start, n - 1, level))
                start = n
        longest = max((run.last - run.first + 1 for run in runs), default=0)
        telling = 1 < longest < 0.8 * len(paths)
        if telling and level < 2:
            blocks += runs
            level += 1
        if runs:
            deepest = runs
    return tuple(blocks or deepest)
