"""Confusion table of the zoo: every script runs unmodified through `tightrope run`.

    python benchmarks/diagnosis.py [NAME ...] [--part design|aside|all] [--kind sick|healthy|all] [--twins] [--jobs N]

One row per script: the check that names its fault, whether a finding named it (a warning or worse, as cause or as
echo), whether it stood first, findings that are false (a warning or worse: any in a healthy script or twin, in a sick
one each cause that does not name its fault), whether standard output was that of the plain run, seconds of observation
and diagnosis. Then what was said instead where a row failed, and the totals beside their bars. Nothing is cached.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "zoo"))

from catalogue import KINDS, PARTS, Script, load

LIMIT = 300.0  # seconds for one run
TWIN = "twin"


@dataclass(frozen=True)
class Row:
    """What one script's run came to.

    Attributes:
        script: the script; a twin's has the kind "twin" and no causes.
        findings: of severity warning or worse, in the order of the report, as (check, whether it is a cause, text).
        advice: names of the checks that gave advice.
        equal: whether standard output was that of the plain run; None where that was not asked for.
        seconds: of observation and diagnosis, as the report counts them.
        overhead: wall time beyond the plain run's.
        failure: why there is no report; "" when there is one.
    """

    script: Script
    findings: tuple[tuple[str, bool, str], ...] = ()
    advice: tuple[str, ...] = ()
    equal: bool | None = None
    seconds: float = float("nan")
    overhead: float = float("nan")
    failure: str = ""

    @property
    def causes(self) -> list[str]:
        return [check for check, cause, _ in self.findings if cause]

    @property
    def detected(self) -> bool:
        return any(check in self.script.causes for check, _, _ in self.findings)

    @property
    def first(self) -> bool:
        return bool(self.causes) and self.causes[0] in self.script.causes

    @property
    def false(self) -> list[str]:
        return [check for check in self.causes if check not in self.script.causes]

    @property
    def passed(self) -> bool:
        good = self.first if self.script.kind == "sick" else not self.findings
        return good and not self.false and self.equal is not False and not self.failure


def run(arguments: Sequence[str]) -> tuple[subprocess.CompletedProcess[str] | None, float]:
    """Run Python with arguments on one thread: its result (None when it took too long) and the wall time."""
    begin = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, timeout=LIMIT, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        done = None
    return done, time.perf_counter() - begin


def diagnose(script: Script, compare: bool) -> Row:
    """Run one script plainly and under observation."""
    with tempfile.TemporaryDirectory() as folder:
        path, report = script.path, Path(folder) / "report.json"
        if script.kind == TWIN:
            path = Path(folder) / f"{script.name}.py"
            path.write_text(replace(script, kind="sick").twin_source())
        plain, plain_wall = run([str(path)]) if compare else (None, float("nan"))
        watched, wall = run(["-m", "tightrope", "run", "--format", "none", "--json", str(report), str(path)])
        if watched is None:
            return Row(script, failure=f"no end after {LIMIT:.0f} s")
        equal = None if plain is None else watched.stdout == plain.stdout
        if not report.exists():
            last = (watched.stderr.strip().splitlines() or ["no report"])[-1]
            return Row(script, equal=equal, failure=last)
        data: dict[str, Any] = json.loads(report.read_text())
    found = [f for f in data["findings"] if f["severity"] != "advice"]
    return Row(
        script,
        tuple((f["check"], f["caused_by"] is None, f["summary"]) for f in found),
        tuple(f["check"] for f in data["findings"] if f["severity"] == "advice"),
        equal,
        float(data["seconds"]),
        wall - plain_wall,
    )


def mark(value: bool | None) -> str:
    """A sign for a table."""
    return "·" if value is None else "yes" if value else "NO"


def show(row: Row) -> str:
    """One line of the table."""
    script = row.script
    expected = script.causes[0] if script.causes else f"({script.kind})"
    verdict = f"{mark(row.detected):4}{mark(row.first):4}" if script.kind == "sick" else " " * 8
    names = ", ".join(row.false) or row.failure or "-"
    return f"{script.name:34} {expected:26} {verdict} {mark(row.equal):4}{row.seconds:6.1f} s  {names}"


def explain(row: Row) -> str:
    """What was said where something else was expected."""
    lines = [f"{row.script.name} ({row.script.part} {row.script.kind}; {' or '.join(row.script.causes) or 'nothing'})"]
    lines += [f"    {'cause' if cause else 'echo '} {check}: {text}" for check, cause, text in row.findings]
    lines += [f"    advice {', '.join(row.advice)}"] if row.advice else []
    lines += [f"    {row.failure}"] if row.failure else []
    lines += ["    standard output differs from the plain run's"] if row.equal is False else []
    return "\n".join(lines if len(lines) > 1 else [*lines, "    nothing was said"])


def totals(rows: Sequence[Row], part: str) -> str:
    """Rates of one part beside their bars."""
    rows = [row for row in rows if row.script.part == part]
    sick = [row for row in rows if row.script.kind == "sick"]
    lines = [f"{part}: {len(rows)} programs"]

    def line(text: str, bar: str) -> None:
        lines.append(f"  {text:58} {bar}")

    if sick:
        detected, first = (sum(getattr(row, name) for row in sick) for name in ("detected", "first"))
        extra = sum(len(row.false) for row in sick)
        line(f"faults detected             {detected:3} of {len(sick):3}  {detected / len(sick):6.1%}", "bar 95 %")
        line(f"top-1 cause right           {first:3} of {len(sick):3}  {first / len(sick):6.1%}", "bar 90 %")
        line(f"other causes beside it      {extra:3}        {extra / len(sick):6.2f} per program", "")
    for kind in ("healthy", TWIN):
        of_kind = [row for row in rows if row.script.kind == kind]
        if of_kind:
            false, touched = sum(len(row.false) for row in of_kind), sum(bool(row.false) for row in of_kind)
            line(f"false findings, {kind:11} {false:3} in {touched} of {len(of_kind)} programs", "bar 0")
    seconds = sorted(row.seconds for row in rows if row.seconds == row.seconds)
    if seconds:
        slow = sum(value >= 5 for value in seconds)
        middle = seconds[len(seconds) // 2]
        line(f"seconds: median {middle:.1f}, most {seconds[-1]:.1f}; {slow} programs at 5 or more", "bar 5 s")
    compared = [row for row in rows if row.equal is not None]
    if compared:
        line(f"standard output unchanged   {sum(bool(r.equal) for r in compared):3} of {len(compared):3}", "bar all")
    return "\n".join(lines)


def chosen(options: argparse.Namespace) -> list[Script]:
    """The scripts, and with `--twins` the twins, that the options ask for."""
    scripts = [s for s in load() if options.part in (s.part, "all") and options.kind in (s.kind, "all")]
    if options.names:
        scripts = [s for s in scripts if any(name in s.name for name in options.names)]
    if options.twins:
        scripts += [replace(s, kind=TWIN, causes=()) for s in scripts if s.kind == "sick"]
    return scripts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="parts of names; all scripts without any")
    parser.add_argument("--part", choices=(*PARTS, "all"), default="all")
    parser.add_argument("--kind", choices=(*KINDS, "all"), default="all")
    parser.add_argument("--twins", action="store_true", help="run the healthy twins of the sick scripts too")
    parser.add_argument("--no-plain", action="store_true", help="leave the plain run out, and the comparison with it")
    parser.add_argument("--jobs", type=int, default=2, help="scripts at a time (default 2)")
    options = parser.parse_args()
    scripts = chosen(options)
    print(f"{'script':34} {'fault':26} {'det.':4}{'1st':4} {'out':4}{'time':>6}    false findings", flush=True)
    rows = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for row in pool.map(lambda script: diagnose(script, not options.no_plain), scripts):
            rows.append(row)
            print(show(row), flush=True)
    failed = [row for row in rows if not row.passed]
    if failed:
        print("\nrows that fail, and what was said\n")
        print("\n".join(map(explain, failed)))
    for part in PARTS:
        if any(row.script.part == part for row in rows):
            print("\n" + totals(rows, part))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
