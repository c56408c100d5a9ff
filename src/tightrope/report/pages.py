"""The page of a check, and the catalogue of all checks: for the terminal and as HTML."""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Iterable

from tightrope.checks.registry import SECTIONS, Check

STAGES = {
    "graph": "before any data is seen",
    "batch": "in one training step",
    "run": "over several training steps",
}
_CODE = re.compile(r"`([^`]+)`")
_POWER = re.compile(r"\^(-?\w+|\([^()]*\))")


def terminal(check: Check, *, width: int = 100) -> str:
    """The page of a check as text of at most `width` columns."""
    column = max(len(section) for section in SECTIONS) + 2
    lines = [textwrap.fill(f"{check.name}: {check.title}", width), ""]
    for section in SECTIONS:
        start = f"{section:<{column}}"
        lines.append(textwrap.fill(check.page[section], width, initial_indent=start, subsequent_indent=" " * column))
    explains = f" Explains {', '.join(check.explains)}." if check.explains else ""
    last = textwrap.fill(f"Judged {STAGES[check.stage]}.{explains}", width, break_on_hyphens=False)
    return "\n".join([*lines, "", last]) + "\n"


def sections(check: Check) -> list[tuple[str, str]]:
    """Section names with their texts as safe HTML."""
    return [(section, inline(check.page[section])) for section in SECTIONS]


def law(check: Check) -> str:
    """The law of a check in one statement: the first sentence of its section."""
    first = re.split(r"(?<=[^.\s])\.(?=\s+[A-Z])", check.page["Law"])[0].rstrip(".")
    return first[:1].upper() + first[1:]


def inline(text: str) -> str:
    """Text as HTML: escaped, `code` set as code, powers raised."""
    parts = _CODE.split(html.escape(text, quote=True))
    return "".join(f"<code>{part}</code>" if n % 2 else _POWER.sub(_raised, part) for n, part in enumerate(parts))


def _raised(power: re.Match[str]) -> str:
    inner = power[1]
    return f"<sup>{inner[1:-1] if inner.startswith('(') else inner}</sup>"


def catalogue(checks: Iterable[Check], *, width: int = 100) -> str:
    """All checks with what they find, by the stage at which they can be judged."""
    listed = list(checks)
    column = max((len(check.name) for check in listed), default=0) + 4
    lines: list[str] = []
    for stage, when in STAGES.items():
        here = sorted((check for check in listed if check.stage == stage), key=lambda check: check.name)
        if here:
            lines += [f"{stage}: judged {when}", *(_entry(check, column, width) for check in here), ""]
    return "\n".join(lines)


def _entry(check: Check, column: int, width: int) -> str:
    start = f"  {check.name:<{column - 2}}"
    return textwrap.fill(check.title, width, initial_indent=start, subsequent_indent=" " * column)
