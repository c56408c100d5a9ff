"""The words that terminal and HTML share: numbers, the verdict in one sentence, causes with their echoes."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from tightrope.finding import Finding, Safety, Severity
from tightrope.report.model import Report
from tightrope.report.wire import FAR, Wire

PLURALS = {Severity.FAULT: "faults", Severity.WARNING: "warnings", Severity.ADVICE: "pieces of advice"}
SINGULARS = {Severity.FAULT: "fault", Severity.WARNING: "warning", Severity.ADVICE: "piece of advice"}
SAFETY = {
    Safety.SAFE: "safe: may be applied unasked",
    Safety.REVIEW: "needs review before it is applied",
    Safety.ADVICE: "advice: to be done by hand",
}
_EXPONENT = re.compile(r"(?<![\w.])(-?\d+(?:\.\d+)?)e([+-]?\d+)\b")
_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


@dataclass(frozen=True)
class Group:
    """One cause as it is told: the finding, those like it elsewhere, and what follows from it.

    Attributes:
        number: position in the telling, from 1.
        finding: the worst and earliest of its kind.
        alike: findings of the same check and severity in other modules.
        echoes: findings that this cause explains.
    """

    number: int
    finding: Finding
    alike: tuple[Finding, ...] = ()
    echoes: tuple[Finding, ...] = ()

    @property
    def echo_names(self) -> tuple[str, ...]:
        """Checks that echo this cause, each once."""
        names = [echo.check for echo in self.echoes] or self.finding.cause_of
        return tuple(dict.fromkeys(names))

    @property
    def places(self) -> str:
        """The module span, and how many further modules show the same."""
        first = self.finding.module or "top level"
        return f"{first} and {len(self.alike)} more" if self.alike else first


def number(value: float, digits: int = 3) -> str:
    """A number with `digits` significant digits: plain from 0.001 to 99 999, else with an exponent."""
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if value == int(value) and abs(value) < 1e5:
        return str(int(value))
    rounded = float(f"{value:.{digits - 1}e}")
    if 1e-3 <= abs(rounded) < 1e5:
        return f"{rounded:.{max(digits - 1 - math.floor(math.log10(abs(rounded))), 0)}f}"
    return f"{value:.{digits - 1}e}"


def score(z: float) -> str:
    """A distance in standard errors, signed, to a tenth."""
    if abs(z) >= 1000:
        return number(z)
    return "0.0" if abs(z) < 0.05 else f"{z:+.1f}"


def pretty(text: str) -> str:
    """Exponents as powers of ten: "3.1e-07" becomes "3.1 × 10⁻⁷"."""
    return _EXPONENT.sub(lambda found: f"{found[1]} × 10{str(int(found[2])).translate(_SUPERSCRIPT)}", text)


def with_error(value: float, error: float | None) -> str:
    """`value ± error`: the error with one digit (two after a leading 1), the value as far as the error reaches."""
    if error is None or not math.isfinite(error) or not math.isfinite(value) or error <= 1e-5 * abs(value):
        return number(value)
    if not 1e-3 <= abs(value) < 1e5 or error < 1e-5:
        return f"{number(value)} ± {error:.1e}"
    leading = math.floor(math.log10(error))
    places = max(0, -leading + (error < 2 * 10.0**leading))
    return f"{value:.{places}f} ± {error:.{places}f}"


def groups(findings: Sequence[Finding]) -> list[Group]:
    """Causes in their order, each with the findings like it and those that it explains."""
    causes: dict[tuple[str, Severity], list[Finding]] = {}
    for finding in findings:
        if finding.caused_by is None:
            causes.setdefault((finding.check, finding.severity), []).append(finding)
    echoes: dict[tuple[str, Severity], list[Finding]] = {key: [] for key in causes}
    orphans = []
    for echo in (finding for finding in findings if finding.caused_by is not None):
        key = next((key for key in causes if key[0] == echo.caused_by), None)
        if key is None:
            orphans.append(echo)
        else:
            echoes[key].append(echo)
    told = [(alike[0], tuple(alike[1:]), tuple(echoes[key])) for key, alike in causes.items()]
    told += [(orphan, (), ()) for orphan in orphans]
    return [Group(i, *parts) for i, parts in enumerate(told, 1)]


def count(severities: Iterable[Severity]) -> str:
    """Numbers by severity in words: 2 faults and 1 warning."""
    numbers = Counter(severities)
    parts = [f"{n} {(SINGULARS if n == 1 else PLURALS)[s]}" for s in Severity if (n := numbers[s])]
    return join(parts)


def join(parts: Sequence[str]) -> str:
    """Words as a list in a sentence: a, b and c."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def verdict(report: Report, wire: Wire) -> str:
    """The verdict in one sentence: the first cause and its number, or the course of a healthy step."""
    told = groups(report.findings)
    if not told:
        return f"{'No finding' if wire.measured or not wire.points else 'Predicted, not measured'}: {_course(wire)}."
    worst = told[0].finding
    place = f" in {told[0].places}" if worst.module else ""
    return f"{worst.check}{place}: {sentence(worst.summary)}"


def tally(report: Report) -> str:
    """How many causes of each severity were found, and how many echoes; "" when nothing was."""
    told = groups(report.findings)
    echoes = sum(len(group.echoes) for group in told)
    follow = f", with {echoes} {'echo' if echoes == 1 else 'echoes'}" if echoes else ""
    return f"{count(group.finding.severity for group in told)}{follow}" if told else ""


def sentence(text: str) -> str:
    """The text with one full stop at its end."""
    return text.rstrip(" .;") + "."


def steps(report: Report) -> str:
    """Which training steps were recorded."""
    return f"step{'s' if len(report.steps) > 1 else ''} {', '.join(str(step) for step in report.steps)}"


def tensors(report: Report) -> str:
    """How many tensors were recorded, and how many of them predicted, simulated, unknown; zeros are left out."""
    counts = report.tensors
    recorded = counts.get("recorded", len(report.laws))
    if recorded and counts.get("predicted") == recorded:
        return f"{recorded} tensors, all predicted"
    parts = [f"{counts[name]} {name}" for name in ("predicted", "simulated", "unknown") if counts.get(name)]
    return ", ".join([f"{recorded} tensors", *parts])


def place(location: str) -> str:
    """A source line without its folders: `train.py:21`."""
    path, mark, line = location.rpartition(":")
    return f"{PurePath(path).name}{mark}{line}"


def gaps(report: Report) -> list[tuple[str, tuple[str, ...]]]:
    """What was not known, by operation and reason: a heading, and the places where there are several."""
    found: dict[tuple[str, str], list[str]] = {}
    for text in report.unknown:
        operation, reason = text.split(" ", 1)[0], text.rpartition("): ")[2]
        found.setdefault((operation, reason), []).append(text)
    return [
        (texts[0], ()) if len(texts) == 1 else (f"{operation} at {len(texts)} places: {reason}", tuple(texts))
        for (operation, reason), texts in found.items()
    ]


def fixing(report: Report) -> str:
    """The command that applies the safe remedies; "" when none is safe or the report comes from no command."""
    verb, _, rest = report.command.partition(" ")[2].partition(" ")
    safe = any(remedy.safety is Safety.SAFE for finding in report.findings for remedy in finding.remedies)
    fixed = {"run": "run --fix", "check": "fix"}.get(verb)
    return f"tightrope {fixed} {rest}" if safe and fixed and report.command.startswith("tightrope ") else ""


def agreement(wire: Wire) -> str:
    """How many measured tensors lie where they were predicted; "" when nothing was compared."""
    scores = [abs(point.z) for point in wire.points if point.z is not None]
    inside = sum(score <= FAR for score in scores)
    return f"{inside} of {len(scores)} tensors within {FAR:g} standard errors of their prediction" if scores else ""


def _course(wire: Wire) -> str:
    parts = []
    for name, trend in (("signal", wire.signal.trend), ("gradient", wire.gradient.trend)):
        factor = trend.measured if trend.measured is not None else trend.predicted
        if factor is not None:
            parts.append(f"{name} × {number(factor)}")
    course = f"{join(parts)} a layer over {wire.layers} layers" if parts else f"{len(wire.points)} tensors looked at"
    met = agreement(wire)
    return f"{course}; {met}" if met else course
