"""The main job, shown: a sick script runs unmodified, is diagnosed, and runs again with the safe remedies."""

from __future__ import annotations

import importlib.util
import io
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tightrope.errors import InputError
from tightrope.outlook import Course, outlook
from tightrope.report.model import Report
from tightrope.run import Run, run

SCRIPT = Path(__file__).with_name("sick.py")
_PROGRESS = re.compile(r"loss ([\d.einf+-]+|nan)\s+test accuracy ([\d.]+)%")


@dataclass(frozen=True)
class Trial:
    """One run of the script: what it printed last, and what was seen in its recorded step."""

    run: Run
    report: Report
    loss: float
    accuracy: float

    def course(self, name: str) -> Course | None:
        """How "signal" or "gradient" goes over the layers."""
        return next((course for course in outlook(self.report).courses if course.name == name), None)


def trial(*, fix: bool, say: Callable[[str], None] = lambda line: None, out: IO[str] | None = None) -> Trial:
    """Run the script, with the safe remedies or without.

    Args:
        fix: apply them at the first step.
        say: is given a line for the user now and then.
        out: where the script's own output goes; standard output when None.

    Raises:
        InputError: scikit-learn, which holds the data, is missing.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise InputError("run the demo", "scikit-learn is not installed", "pip install 'tightrope[demo]'")
    heard = _Tee(out or sys.stdout)
    with redirect_stdout(heard):
        found = run(str(SCRIPT), fix=fix, say=say)
    lines = _PROGRESS.findall(heard.getvalue())
    report = found.after or found.report
    if not lines or report is None:
        raise InputError("run the demo", f"the script ended with {found.outcome.error}", "See its traceback above")
    return Trial(found, report, float(lines[-1][0]), float(lines[-1][1]))


def table(before: Trial, after: Trial) -> list[tuple[str, str, str]]:
    """Quantity, before, after."""

    def course(label: str, name: str, read: Callable[[Course], float]) -> tuple[str, str, str]:
        first, second = (found and f"{read(found):.3g}" for found in (before.course(name), after.course(name)))
        return label, first or "unknown", second or "unknown"

    return [
        ("loss", f"{before.loss:.4f}", f"{after.loss:.4f}"),
        ("test accuracy", f"{before.accuracy:.1f} %", f"{after.accuracy:.1f} %"),
        course("signal gain a layer", "signal", lambda c: c.factor),
        course("gradient, first layer / last", "gradient", lambda c: c.last / c.first),
        ("faults and warnings", str(_count(before.report)), str(_count(after.report))),
    ]


def _count(report: Report) -> int:
    return sum(finding.severity.value != "advice" and finding.caused_by is None for finding in report.findings)


class _Tee(io.StringIO):
    """Keeps what it passes on."""

    def __init__(self, out: IO[str]) -> None:
        super().__init__()
        self.out = out

    def write(self, text: str) -> int:
        self.out.write(text)
        return super().write(text)

    def flush(self) -> None:
        self.out.flush()
