"""The options that say where a report goes, and the writing of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

from tightrope.edit import diff
from tightrope.errors import InputError

if TYPE_CHECKING:
    from tightrope.finding import Finding, Remedy
    from tightrope.report.model import Report

F = TypeVar("F", bound=Callable[..., Any])


def diff_option(function: F) -> F:
    """`--diff`."""
    text = "Write the applied changes of the source as a unified diff."
    return click.option("--diff", "diff_file", metavar="FILE", help=text)(function)


def report_options(function: F) -> F:
    """`--json`, `--html` and `--format`."""
    formats = click.Choice(["text", "json", "none"])
    function = click.option("--format", "style", type=formats, default="text", help="What to print.")(function)
    function = click.option("--html", "html", metavar="FILE", help="Write the report as one offline page.")(function)
    return click.option("--json", "json_file", metavar="FILE", help="Write the report as data.")(function)


def write(report: Report, *, style: str, html: str | None, json_file: str | None, stream: IO[str]) -> None:
    """Print a report and write its files."""
    if json_file:
        save(json_file, report.to_json())
    if html:
        save(html, report.to_html())
    if style == "json":
        print(report.to_json(), file=stream)
    elif style == "text":
        from tightrope.report.terminal import render

        colour = stream.isatty() and "NO_COLOR" not in os.environ
        text = render(report, colour=colour, encoding=getattr(stream, "encoding", None), saved=html or "")
        print(text, file=stream, end="")


def save(file: str, text: str) -> None:
    """Write a file that the user named."""
    try:
        Path(file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"write {file}", str(error.strerror), "Name a file in a folder that exists") from error


def changes(applied: Sequence[tuple[Finding, Remedy]], stream: IO[str], file: str | None = None) -> None:
    """Print the lines that make the applied remedies permanent; write those that are edits as a diff to a file."""
    print("applied in memory; to keep it, change:" if applied else "no safe remedy to apply", file=stream)
    once: dict[tuple[str, str], tuple[Finding, Remedy]] = {}
    for finding, remedy in applied:
        once.setdefault((remedy.name, remedy.patch), (finding, remedy))
    for finding, remedy in once.values():
        print(f"\n  {finding.check}: {remedy.title}  [{finding.location or 'the script'}]", file=stream)
        print("\n".join(f"    {line}" for line in remedy.change), file=stream)
    if file:
        edits = [remedy.edit for _, remedy in once.values() if remedy.edit is not None]
        save(file, diff(edits))
        rest = len(once) - len(edits)
        more = f"; {rest} of {len(once)} changes are in words, above" if rest else ""
        print(f"\n  {file}: apply with git apply -p0 {file}{more}", file=stream)


def say(line: str) -> None:
    """A line for the user, beside whatever the script prints."""
    sys.stdout.flush()
    print(f"tightrope · {line}", file=sys.stderr, flush=True)
