"""The report as one offline HTML file: no request leaves it, and it reads without JavaScript."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tightrope.checks.registry import Check, get
from tightrope.errors import InputError
from tightrope.finding import Evidence, Finding
from tightrope.law import COMPONENTS, Law
from tightrope.report import pages, picture, story
from tightrope.report.model import LawRow, Report
from tightrope.report.wire import FAR, Point, Reading, Wire, build, reading

CONTEXT = 3  # lines of source shown on either side
MOST = 1200  # rows beyond which views and copies are left out of the table, so that the file stays small


@dataclass(frozen=True)
class Gauge:
    """An evidence as marks between 0 and 100: measured with its error bar, and where it should be."""

    zero: float
    measured: float
    low: float
    high: float
    expected: float
    logarithmic: bool


@dataclass(frozen=True)
class Card:
    """One cause with everything that its card shows."""

    group: story.Group
    evidence: tuple[tuple[Evidence, Gauge | None], ...]
    law: Markup
    page: tuple[tuple[str, Markup], ...]
    source: tuple[tuple[int, str, bool], ...]
    row: int | None


@dataclass(frozen=True)
class Line:
    """One row of the layer table; `bar` is (low, high, predicted, measured) between 0 and 100."""

    number: int
    row: LawRow
    flags: tuple[int, ...]
    bar: tuple[float | None, float | None, float | None]
    mix: tuple[tuple[str, float], ...]


def render(report: Report) -> str:
    """The report as the text of one HTML file."""
    wire = build(report)
    told = story.groups(report.findings)
    simulated = frozenset(n for n, row in enumerate(report.laws) if row.simulated)
    pictures = [picture.draw(wire, told, simulated, narrow=narrow) for narrow in (False, True)] if wire.points else []
    return (
        _environment()
        .get_template("report.html")
        .render(
            report=report,
            wire=wire,
            pictures=pictures,
            verdict=story.verdict(report, wire),
            tally=story.tally(report),
            tensors=story.tensors(report),
            steps=story.steps(report),
            agreement=story.agreement(wire),
            cards=[_card(group, wire) for group in told],
            lines=_lines(report, told),
            gaps=story.gaps(report),
            data=_data(wire),
            far=int(FAR),
            style=_asset("report.css"),
            script=_asset("report.js"),
        )
    )


def notebook(report: Report) -> str:
    """The report for a notebook cell, in a frame of its own, so that no style leaks."""
    page = html.escape(render(report), quote=True)
    return f'<iframe srcdoc="{page}" style="width:100%;height:820px;border:0" title="tightrope report"></iframe>'


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tightrope.report", "assets"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "number": lambda value: "" if value is None else story.pretty(story.number(value)),
        "value": lambda value, error: story.pretty(story.with_error(value, error)),
        "sentence": story.sentence,
        "prose": lambda text: Markup(pages.inline(story.pretty(text))),
        "file": story.place,
        "short": lambda value: f"{value:.4g}",
        "score": lambda z: story.pretty(story.score(z)),
        "dimensions": lambda shape: "×".join(str(size) for size in shape),
    }
    environment.globals |= {"safety": {key.value: text for key, text in story.SAFETY.items()}}
    return environment


def _asset(name: str) -> Markup:
    return Markup((Path(__file__).parent / "assets" / name).read_text("utf-8"))


def _check(name: str) -> Check | None:
    try:
        return get(name)
    except InputError:
        return None  # a report written by a version with other checks


def _card(group: story.Group, wire: Wire) -> Card:
    check = _check(group.finding.check)
    behind = [point.row for point in wire.points if point.index >= group.finding.index >= 0]
    return Card(
        group, tuple((item, gauge(item)) for item in group.finding.evidence),
        Markup(pages.inline(story.sentence(pages.law(check)))) if check else Markup(""),
        tuple((name, Markup(text)) for name, text in pages.sections(check)) if check else (),
        source(group.finding), behind[0] if behind else None,
    )  # fmt: skip


def gauge(item: Evidence) -> Gauge | None:
    """Where the marks of an evidence stand; on a log axis where the numbers are a factor of eight apart or more."""
    if item.expected is None or not (math.isfinite(item.measured) and math.isfinite(item.expected)):
        return None
    error = item.error if item.error is not None and math.isfinite(item.error) else 0.0
    low, high, small, large = item.measured - error, item.measured + error, *sorted((item.measured, item.expected))
    if small > 0 and large / small >= 8:
        first, last = math.log10(small) - 0.6, math.log10(large) + 0.3
        marks = [math.log10(max(value, 10**first)) for value in (item.measured, low, high, item.expected)]
        return _gauge([first, *marks], first, last, logarithmic=True)
    first, last = min(0.0, low, small), max(0.0, high, large)
    room = 0.08 * (last - first) or 1.0
    first, last = first - (room if first < 0 else 0.0), last + room
    return _gauge([0.0, item.measured, low, high, item.expected], first, last, logarithmic=False)


def _gauge(values: Sequence[float], first: float, last: float, *, logarithmic: bool) -> Gauge:
    zero, measured, low, high, expected = (_share(value, first, last) for value in values)
    return Gauge(zero, measured, low, high, expected, logarithmic)


def source(finding: Finding) -> tuple[tuple[int, str, bool], ...]:
    """The user's line with its surroundings as (number, text, whether it is the line); empty when it cannot be read."""
    path, _, line = finding.location.rpartition(":")
    try:
        lines = Path(path).read_text("utf-8").splitlines() if path and line.isdigit() else []
    except (OSError, ValueError):
        return ()
    at = int(line) if lines else 0
    if not 1 <= at <= len(lines):
        return ()
    around = range(max(1, at - CONTEXT), min(len(lines), at + CONTEXT) + 1)
    return tuple((n, lines[n - 1], n == at) for n in around)


def _lines(report: Report, told: Sequence[story.Group]) -> list[Line]:
    readings = [(reading(row.predicted), reading(row.measured)) for row in report.laws]
    logs = [math.log10(r.value) for pair in readings for r in pair if r is not None]
    low, high = (min(logs), max(logs)) if logs else (0.0, 1.0)
    low, high = (low - 0.1, high + 0.1) if high - low > 2 else ((low + high) / 2 - 1, (low + high) / 2 + 1)
    flags: dict[int, list[int]] = {}
    for group in told:
        for finding in (group.finding, *group.alike):
            flags.setdefault(finding.index, []).append(group.number)
    lines = []
    for n, (row, (predicted, measured)) in enumerate(zip(report.laws, readings, strict=True)):
        if row.trivial and len(report.laws) > MOST:
            continue
        band = [_on(value, low, high) for value in (predicted.low, predicted.high)] if predicted else [None, None]
        bar = (band[0], band[1], _on(measured.value, low, high) if measured else None)
        standing = tuple(dict.fromkeys(flags.get(row.index, ())))
        lines.append(Line(n, row, standing, bar, _mix(row.measured or row.predicted)))
    return lines


def _on(value: float, low: float, high: float) -> float:
    return _share(math.log10(max(value, 1e-320)), low, high)


def _share(value: float, low: float, high: float) -> float:
    return round(100 * min(max((value - low) / (high - low), 0.0), 1.0), 1)


def _mix(law: Law | None) -> tuple[tuple[str, float], ...]:
    """Shares of the variance components in percent, those below half a percent left out."""
    if law is None or not law.finite or law.variance <= 0:
        return ()
    shares = ((name, 100 * getattr(law, name) / law.variance) for name in COMPONENTS)
    return tuple((name, round(share, 1)) for name, share in shares if share >= 0.5)


def _data(wire: Wire) -> Markup:
    """What the script shows on hover, as JSON that cannot leave its element."""
    table = [_facts(point) for point in wire.points]
    return Markup(json.dumps(table, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))


def _facts(point: Point) -> list[Any]:
    readings = (point.predicted, point.measured, point.gradient_predicted, point.gradient_measured)
    z = "" if point.z is None else story.pretty(story.score(point.z))
    return [point.row, point.module or "top level", point.op, *map(_text, readings), z]


def _text(value: Reading | None) -> str:
    return "" if value is None else story.pretty(story.number(value.value))
