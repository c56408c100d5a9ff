"""The wire as geometry: paths, ticks, brackets and flags that a template turns into SVG.

Curves live in a nested SVG whose x unit is one point of the wire (0 to n), stretched to the plot's width;
labels and flags stand over it at pixel positions. So a zoom only changes a view box and moves labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tightrope.report.story import Group
from tightrope.report.wire import FAR, Block, Flag, Point, Reading, Wire

CHARACTER = 6.4  # pixels of a label's character
LANE = 22.0  # pixels between stacked flags
BRACKET = 24.0  # pixels of one level of brackets
_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


@dataclass(frozen=True)
class Tick:
    """A level of the y axis: pixel position and label."""

    y: float
    label: str


@dataclass(frozen=True)
class Panel:
    """One course on a log10 axis.

    Attributes:
        name: "signal" or "gradient".
        top, height: in pixels.
        ticks: decades.
        band, predicted, trunk, carried, measured, errors, outside, simulated, broken: path data; x in points, y
            in pixels from `top`. `trunk` joins the outputs of the outermost blocks; `carried` is the part
            that differs between samples.
    """

    name: str
    top: float
    height: float
    ticks: tuple[Tick, ...]
    band: str = ""
    predicted: str = ""
    trunk: str = ""
    carried: str = ""
    measured: str = ""
    errors: str = ""
    outside: str = ""
    simulated: str = ""
    broken: str = ""

    @property
    def empty(self) -> bool:
        """Whether no finite number is to be shown."""
        return not (self.predicted or self.errors)


@dataclass(frozen=True)
class Label:
    """A module's name under the wire: `x`, `width` in points; `shown` is what fits before any zoom."""

    x: float
    width: float
    pixel: float
    y: float
    long: str
    short: str
    shown: str


@dataclass(frozen=True)
class Bracket:
    """A module's extent under the wire, in points; `y` in pixels from the strip's top."""

    x: float
    width: float
    y: float
    name: str


@dataclass(frozen=True)
class Pennant:
    """A flag: `x` in points, the rest in pixels; `tip` is where its pole ends."""

    x: float
    pixel: float
    y: float
    tip: float
    number: int
    check: str
    severity: str
    place: str


@dataclass(frozen=True)
class Picture:
    """Everything that the template draws.

    Attributes:
        width, height: of the whole, in pixels.
        left, plot: where the plot begins and how wide it is, in pixels.
        start, span: first x and extent of the view, in points.
        strip, strip_height: the brackets' place, in pixels.
    """

    width: float
    height: float
    left: float
    plot: float
    start: float
    span: float
    strip: float
    strip_height: float
    signal: Panel
    gradient: Panel
    brackets: tuple[Bracket, ...]
    labels: tuple[Label, ...]
    pennants: tuple[Pennant, ...]

    def pixel(self, x: float) -> float:
        """Where a point's x stands, in pixels."""
        return self.left + (x - self.start) / self.span * self.plot


def draw(wire: Wire, told: Sequence[Group], simulated: frozenset[int], *, narrow: bool = False) -> Picture:
    """The picture of a wire.

    Args:
        wire: the points.
        told: the causes that get a numbered flag.
        simulated: rows whose prediction was simulated.
        narrow: draw for a phone.
    """
    width, left, right = (400.0, 56.0, 6.0) if narrow else (1120.0, 68.0, 10.0)
    heights = (190.0, 150.0) if narrow else (250.0, 200.0)
    margin = max(0.6, 0.015 * len(wire.points))
    levels = max((block.level for block in wire.blocks), default=0) + 1
    blank = Panel("", 0, 0, ())
    picture = Picture(
        width, 0, left, width - left - right, -margin, len(wire.points) + 2 * margin, 0, levels * BRACKET + 8,
        blank, blank, (), (), (),
    )  # fmt: skip
    above = _pennants(wire, told, picture, "signal")
    below = _pennants(wire, told, picture, "gradient")
    top = 6 + LANE * (1 + max((p.y for p in above), default=-1))
    carried = list(wire.signal.heights) if wire.signal.unit != "std" else []
    scale = Scale.over([*carried, *(r for p in wire.points for r in (p.predicted, p.measured))], heights[0])
    signal = _panel("signal", wire.points, simulated, top, scale)
    if carried:
        signal = replace(signal, carried=_line(carried, scale))
    elif len(wire.trunk) < len(wire.points):
        signal = replace(signal, trunk=_joined(wire.trunk, wire.signal.heights, scale))
    strip = top + heights[0] + 6
    under = strip + picture.strip_height + 6
    backward = [r for p in wire.points for r in (p.gradient_predicted, p.gradient_measured)]
    back = Scale.over(backward, heights[1] if any(backward) else 56.0, down=True)
    gradient = _panel("gradient", wire.points, simulated, under, back)
    if len(wire.trunk) < len(wire.points):
        gradient = replace(gradient, trunk=_joined(wire.trunk, wire.gradient.heights, back))
    end = under + back.height
    height = end + 8 + LANE * (1 + max((p.y for p in below), default=-1))
    flags = [replace(p, y=top - 14 - LANE * p.y, tip=top + _at(wire, p, scale, False)) for p in above]
    flags += [replace(p, y=end + 14 + LANE * p.y, tip=under + _at(wire, p, back, True)) for p in below]
    return replace(
        picture, height=height, strip=strip, signal=signal, gradient=gradient, pennants=tuple(flags),
        brackets=tuple(_bracket(block) for block in wire.blocks), labels=tuple(_labels(wire.blocks, picture)),
    )  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """A log10 axis: exponents `low` to `high` over `height` pixels, growing upward, or `down`."""

    low: float
    high: float
    height: float
    down: bool

    @classmethod
    def over(cls, readings: Sequence[Reading | None], height: float, *, down: bool = False) -> Scale:
        """The axis that holds these readings: at least two decades, some room at both ends."""
        logs = [math.log10(reading.value) for reading in readings if reading is not None]
        if not logs:
            return cls(0.1, 0.9, height, down)
        low, high = min(logs), max(logs)
        room = max(0.08 * (high - low), (2 - (high - low)) / 2, 0.12)
        return cls(low - room, high + room, height, down)

    def y(self, value: float) -> float:
        """Pixels from the panel's top, held inside the panel."""
        share = (math.log10(max(value, 1e-320)) - self.low) / (self.high - self.low)
        share = min(max(share, 0.0), 1.0)
        return self.height * (share if self.down else 1 - share)

    def ticks(self) -> tuple[Tick, ...]:
        """Up to seven decades with their labels."""
        span = self.high - self.low
        step = next(step for step in (1, 2, 3, 5, 10, 20, 50, 100, 1000) if span / step <= 7)
        first = math.ceil(self.low / step) * step
        exponents = range(first, math.floor(self.high) + 1, step)
        return tuple(Tick(round(self.y(10.0**e), 1), f"10{str(e).translate(_SUPERSCRIPT)}") for e in exponents)


def _panel(name: str, points: Sequence[Point], simulated: frozenset[int], top: float, scale: Scale) -> Panel:
    if name == "gradient":
        sides = [(p.gradient_predicted, p.gradient_measured, p.gradient_finite) for p in points]
    else:
        sides = [(p.predicted, p.measured, p.finite) for p in points]
    dots: dict[str, list[str]] = {"measured": [], "outside": [], "simulated": [], "errors": [], "broken": []}
    for n, (point, (predicted, measured, finite)) in enumerate(zip(points, sides, strict=True)):
        x = n + 0.5
        if measured is not None:
            kind = "simulated" if point.row in simulated else "measured" if _meets(predicted, measured) else "outside"
            dots[kind].append(f"M{x} {scale.y(measured.value):.1f}h.001")
            dots["errors"].append(f"M{x} {scale.y(measured.low):.1f}V{scale.y(measured.high):.1f}")
        elif not finite:
            dots["broken"].append(f"M{x} 0V{scale.height:.0f}")
    forecast = [predicted for predicted, _, _ in sides]
    paths = {kind: "".join(parts) for kind, parts in dots.items()}
    return Panel(
        name, top, scale.height, scale.ticks(), band=_band(forecast, scale), predicted=_line(forecast, scale), **paths
    )


def _meets(predicted: Reading | None, measured: Reading) -> bool:
    """Whether measured lies within `FAR` standard errors of predicted, or within 1 % of it."""
    if predicted is None:
        return True
    distance = abs(math.log(measured.value / predicted.value))
    return distance <= max(FAR * math.hypot(predicted.error, measured.error), 0.01)


def _runs(readings: Sequence[Reading | None]) -> Iterator[list[tuple[float, Reading]]]:
    run: list[tuple[float, Reading]] = []
    for n, reading in enumerate(readings):
        if reading is not None:
            run.append((n + 0.5, reading))
        elif run:
            yield run
            run = []
    if run:
        yield run


def _band(readings: Sequence[Reading | None], scale: Scale) -> str:
    path = ""
    for run in _runs(readings):
        if len(run) == 1:
            run = [(run[0][0] - 0.3, run[0][1]), (run[0][0] + 0.3, run[0][1])]
        there = [f"{x:g} {scale.y(r.high):.1f}" for x, r in run]
        back = [f"{x:g} {scale.y(r.low):.1f}" for x, r in reversed(run)]
        path += f"M{'L'.join(there + back)}Z"
    return path


def _line(readings: Sequence[Reading | None], scale: Scale) -> str:
    return "".join("M" + "L".join(f"{x:g} {scale.y(r.value):.1f}" for x, r in run) for run in _runs(readings))


def _joined(positions: Sequence[int], readings: Sequence[Reading | None], scale: Scale) -> str:
    known = [(n + 0.5, reading) for n in positions if (reading := readings[n]) is not None]
    return "M" + "L".join(f"{x:g} {scale.y(reading.value):.1f}" for x, reading in known) if known else ""


def _bracket(block: Block) -> Bracket:
    return Bracket(block.first + 0.08, block.last - block.first + 0.84, 4 + block.level * BRACKET, block.name)


def _labels(blocks: Sequence[Block], picture: Picture) -> Iterator[Label]:
    """Names that fit their bracket; a trailing number, or nothing, where they do not."""
    scale = picture.plot / picture.span
    ends: dict[int, float] = {}
    for block in sorted(blocks, key=lambda b: (b.level, b.first)):
        x, wide = (block.first + block.last + 1) / 2, block.last - block.first + 1
        steps = block.name.split(".")
        tail = steps[-1]
        long = ".".join(steps[-2:]) if tail.isdigit() and len(steps) > 1 else tail
        pixel = picture.pixel(x)
        shown = next((text for text in (long, tail) if len(text) * CHARACTER <= wide * scale - 4), "")
        if not shown and tail.isdigit() and pixel - len(tail) * CHARACTER / 2 > ends.get(block.level, -1.0) + 6:
            shown = tail
        if shown:
            ends[block.level] = pixel + len(shown) * CHARACTER / 2
        yield Label(x, wide, round(pixel, 1), 20 + block.level * BRACKET, long, tail, shown)


def _pennants(wire: Wire, told: Sequence[Group], picture: Picture, side: str) -> list[Pennant]:
    """Flags of one side; `y` is the lane, 0 next to the panel."""
    flags = {id(group): _flags_of(wire, group, side) for group in told}
    found: list[Pennant] = []
    lanes: list[list[float]] = []
    for group in told:
        last = -math.inf
        for flag in flags[id(group)]:
            x = 0.0 if flag.position < 0 else flag.position + 0.5
            pixel = picture.pixel(x)
            if pixel - last < 30:
                continue
            last = pixel
            lane = next((n for n, taken in enumerate(lanes) if all(abs(pixel - p) > 30 for p in taken)), len(lanes))
            if lane == len(lanes):
                lanes.append([])
            lanes[lane].append(pixel)
            place = group.finding.module or "top level"
            found.append(Pennant(x, round(pixel, 1), lane, 0.0, group.number, flag.check, flag.severity.value, place))
    return found


def _flags_of(wire: Wire, group: Group, side: str) -> list[Flag]:
    names = {(f.check, f.module, f.index) for f in (group.finding, *group.alike)}
    chosen = [flag for flag in wire.flags if flag.side == side and flag.key in names]
    return sorted(chosen, key=lambda flag: flag.position)


def _at(wire: Wire, pennant: Pennant, scale: Scale, backward: bool) -> float:
    """Pixels from the panel's top to the point that a flag marks."""
    point = wire.points[min(int(pennant.x), len(wire.points) - 1)]
    readings = (point.gradient_measured, point.gradient_predicted) if backward else (point.measured, point.predicted)
    reading = next((reading for reading in readings if reading is not None), None)
    return round(scale.y(reading.value), 1) if reading is not None else scale.height if backward else 0.0
