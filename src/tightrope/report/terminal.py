"""The report on one terminal screen; it reads the same without colour and in ASCII."""

from __future__ import annotations

import io
import math
import os
import shutil
import sys
from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from tightrope.finding import Remedy, Severity
from tightrope.report import story
from tightrope.report.model import Report
from tightrope.report.wire import Reading, Wire, build

NARROW, WIDE = 80, 120  # columns
LINES = 40  # of one screen
BLOCKS, MARKS = "▁▂▃▄▅▆▇█", "_.:-=+*#"
STYLES = {Severity.FAULT: "bold red", Severity.WARNING: "yellow", Severity.ADVICE: "cyan"}
_ASCII = str.maketrans(
    {"·": "|", "×": "x", "±": "+-", "→": "->", "←": "<-", "…": "..", "√": "sqrt", "≤": "<=", "≥": ">=", "²": "^2"}
    | {"’": "'", "“": '"', "”": '"', "–": "-", "−": "-", "μ": "mu", "σ": "sigma", "ρ": "rho", "ε": "eps", "Δ": "D"}
    | dict(zip(BLOCKS, MARKS, strict=True))
)


def render(
    report: Report,
    *,
    width: int | None = None,
    colour: bool | None = None,
    encoding: str | None = None,
    saved: str = "",
) -> str:
    """The report as text for a terminal.

    Args:
        report: what to show.
        width: in columns, held between 80 and 120; that of the terminal when None.
        colour: whether to write ANSI colours; when None, whether standard output is a terminal and NO_COLOR is unset.
        encoding: of the stream that will take the text; that of standard output when None. What it cannot
            hold is written in ASCII.
        saved: where the full report was written.
    """
    if width is None:
        width = shutil.get_terminal_size((100, 40)).columns
    if colour is None:
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    stream = io.StringIO()
    plain = not encodable(encoding or getattr(sys.stdout, "encoding", None) or "utf-8")
    console = Console(
        file=stream, width=min(max(width, NARROW), WIDE), force_terminal=colour, no_color=not colour,
        color_system="standard" if colour else None, highlight=False, legacy_windows=False, force_jupyter=False,
    )  # fmt: skip
    console.print(Screen(report, plain=plain, saved=saved))
    return stream.getvalue()


def encodable(encoding: str) -> bool:
    """Whether an encoding holds the signs that the screen uses."""
    try:
        (BLOCKS + "·×±→←…").encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


class Screen:
    """A report as something that rich can print.

    Args:
        report: what to show.
        plain: write ASCII only.
        saved: where the full report was written.
    """

    def __init__(self, report: Report, *, plain: bool = False, saved: str = "") -> None:
        self.report, self.plain, self.saved = report, plain, saved

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(options.max_width, WIDE)
        for line in screen(self.report, width - 4 if self.plain else width, saved=self.saved):
            if self.plain:
                line = _ascii(line)
            line.truncate(width, overflow="crop" if self.plain else "ellipsis")
            line.rstrip()
            yield line


def screen(report: Report, width: int, *, saved: str = "") -> list[Text]:
    """The lines of the screen."""
    wire = build(report)
    told = story.groups(report.findings)
    head = [_header(report, width), Text()]
    head += [*_courses(wire, width), Text()] if wire.points else []
    tail = _closing(report, told, saved, width)
    if not told:
        return [*head, *_wrapped(story.verdict(report, wire), " ", width, most=4), *tail]
    room = LINES - len(head) - len(tail)
    return [*head, *_findings(told, width, room), *tail]


def sparkline(readings: Sequence[Reading | str | None], columns: int) -> str:
    """Heights on a log scale of at least two decades; a text in place of a reading is shown as it is."""
    logs = [math.log10(item.value) for item in readings if isinstance(item, Reading)]
    low, high = (min(logs), max(logs)) if logs else (0.0, 0.0)
    if high - low < 2:
        low, high = (low + high) / 2 - 1, (low + high) / 2 + 1
    signs = ""
    columns = min(columns, len(readings))
    for column in range(columns):
        part = readings[column * len(readings) // columns : (column + 1) * len(readings) // columns]
        marks = [item for item in part if isinstance(item, str)]
        here = [math.log10(item.value) for item in part if isinstance(item, Reading)]
        if marks or not here:
            signs += marks[0] if marks else " "
        else:
            signs += BLOCKS[min(7, int(8 * (sum(here) / len(here) - low) / (high - low)))]
    return signs


def _header(report: Report, width: int) -> Text:
    facts = f"{story.steps(report)} · {story.tensors(report)}"
    seconds = f"{story.number(round(report.seconds, 2), 2)} s"
    line = Text.assemble(("tightrope", "bold"), " · ", (report.title, "bold"), " · ", facts)
    line.truncate(width - len(seconds) - 2, overflow="ellipsis")
    return line.append(seconds.rjust(width - line.cell_len), "dim")


def _courses(wire: Wire, width: int) -> list[Text]:
    columns = 20 if width < 100 else 28
    finite = [point.finite for point in wire.points], [point.gradient_finite for point in wire.points]
    lines = []
    shown = wire.trunk if len(wire.trunk) >= columns // 2 and all(finite[0]) else range(len(wire.points))
    for name, course, arrow, hue, whole in (
        ("signal", wire.signal, "→", "cyan", finite[0]),
        ("gradient", wire.gradient, "←", "magenta", finite[1]),
    ):
        heights = [course.heights[n] or (None if whole[n] else "!") for n in shown]
        if course.start is None or course.end is None:
            if not all(whole):
                lines.append(Text(f" {name:<9} x {'!' * min(columns, len(heights))} loss  not finite"))
            continue
        ends = f"{course.unit} {story.number(course.start)} {arrow} {story.number(course.end)}"
        line = Text.assemble(f" {name:<9} x ", (sparkline(heights, columns), hue), " loss  ", ends)
        factor = _factor(course.trend.measured, course.trend.predicted, course.trend.error)
        lines.append(line)
        if line.cell_len + 2 + len(factor) <= width:
            line.append(f"  {factor}")
        elif factor:
            lines.append(Text(" " * 13 + factor))
    return lines


def _factor(measured: float | None, predicted: float | None, error: float | None) -> str:
    if measured is None and predicted is None:
        return ""
    law = f"× {story.with_error(predicted, error)}" if predicted is not None else ""
    if measured is None:
        return f"{law} a layer (predicted)"
    return f"× {story.number(measured)} a layer" + (f" (predicted {law})" if law else "")


def _findings(told: Sequence[story.Group], width: int, room: int) -> list[Text]:
    names = min(max(len(group.finding.check) for group in told), 24)
    lines: list[Text] = []
    for shown, group in enumerate(told):
        block = _finding(group, names, width)
        rest = len(told) - shown
        if shown and len(lines) + len(block) > room - (rest > 1):
            others = ", ".join(dict.fromkeys(other.finding.check for other in told[shown:]))
            return [*lines, Text(f"   and {rest} more: {others}")]
        lines += block
    return lines


def _finding(group: story.Group, names: int, width: int) -> list[Text]:
    finding = group.finding
    start = f" {group.number:>2} "
    head = Text.assemble(
        start, (f"{finding.severity.value:<8}", STYLES[finding.severity]), (f"{finding.check:<{names}}", "bold"), "  "
    )
    place = story.place(finding.location)
    head.append(group.places)
    if place:
        room = width - head.cell_len - 2
        head.append(place.rjust(max(room, len(place))) if room >= len(place) else f"  {place}", "dim")
    indent = " " * (len(start) + 8)
    lines = [head, *_wrapped(story.sentence(finding.summary), indent, width)]
    if group.echo_names:
        echoes = len(group.echoes) or len(group.echo_names)
        folded = f"so {' · '.join(group.echo_names)} ({echoes} {'echo' if echoes == 1 else 'echoes'})"
        lines += _wrapped(folded, indent, width, "dim")
    if finding.remedy:
        lines += _remedy(finding.remedy, indent, width)
    return lines


def _remedy(remedy: Remedy, indent: str, width: int) -> list[Text]:
    """A one-line patch as it is; a longer one under its title, three lines of it at most."""
    patch = remedy.change
    label = f"remedy ({remedy.safety.value})  "
    if len(patch) == 1 and len(patch[0]) <= width - len(indent) - len(label):
        return [Text.assemble(indent, (label, "green"), patch[0])]
    lines = _wrapped(f"{label}{remedy.title}", indent, width, "green")
    lines += [Text(f"{indent}  {line}") for line in patch[:3]]
    return [*lines, Text(f"{indent}  … {len(patch) - 3} more lines in the report")] if len(patch) > 3 else lines


def _closing(report: Report, told: Sequence[story.Group], saved: str, width: int) -> list[Text]:
    lines = [Text()] if report.notes or told or saved else []
    lines += [line for note in report.notes[:3] for line in _wrapped(f"note: {note}", " ", width)]
    if len(report.notes) > 3:
        lines.append(Text(f" and {len(report.notes) - 3} more notes in the full report"))
    steps = []
    if told:
        steps.append(("why:", f"tightrope explain {told[0].finding.check}"))
        fixing = story.fixing(report)
        steps += [("apply the safe remedies:", fixing)] if fixing else []
    steps += [("full report:", saved)] if saved else []
    column = max((len(name) for name, _ in steps), default=0)
    return lines + [Text.assemble((f" {name:<{column}}  ", "dim"), words) for name, words in steps]


def _wrapped(text: str, indent: str, width: int, style: str = "", most: int = 2) -> list[Text]:
    """At most `most` lines of running text."""
    lines = Text(text, style).wrap(
        Console(width=width, file=io.StringIO(), force_jupyter=False), width - len(indent) - 2
    )
    shown = [Text(indent).append_text(line) for line in lines[:most]]
    if len(lines) > most:
        shown[-1].append(" …")
    return shown


def _ascii(line: Text) -> Text:
    result = Text()
    for segment in line.split("\n")[0].divide(sorted({i for span in line.spans for i in (span.start, span.end)})):
        style = segment.spans[-1].style if segment.spans else segment.style
        result.append(segment.plain.translate(_ASCII).encode("ascii", "replace").decode(), style)
    return result
