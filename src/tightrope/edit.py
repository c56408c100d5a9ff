"""Changes of the user's own source: one call found by its place in the file, rewritten, shown as a diff."""

from __future__ import annotations

import ast
import difflib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any


@dataclass(frozen=True)
class Edit:
    """The replacement of one expression in a file.

    Attributes:
        file: path as the tape knows it.
        start, end: where the expression stands: line (from 1) and column (from 0, in bytes), its end exclusive.
        before, after: its text.
    """

    file: str
    start: tuple[int, int]
    end: tuple[int, int]
    before: str
    after: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return dict(self.__dict__)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Edit:
        """Rebuild from plain data."""
        return cls(**{**data, "start": tuple(data["start"]), "end": tuple(data["end"])})


Rewrite = Callable[[str, Sequence[str], dict[str, str]], str]
"""From the name of the function as written, its arguments and its keyword arguments to the new expression."""


def rewrite_call(location: str, names: Iterable[str], rewrite: Rewrite) -> Edit | None:
    """The edit of the one call of a function on a source line.

    Args:
        location: `file:line`, as a finding has it.
        names: last parts of the function's name: `Softmax` finds `nn.Softmax(...)` and `Softmax(...)`.
        rewrite: makes the new expression.

    Returns:
        None where the file cannot be read, or the line has no such call, or several.
    """
    file, _, number = location.rpartition(":")
    text = _read(file)
    if text is None or not number.isdigit():
        return None
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return None
    line, wanted = int(number), set(names)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _leaf(node.func) in wanted]
    found = [node for node in calls if node.lineno == line]
    found = found or [node for node in calls if node.lineno <= line <= (node.end_lineno or node.lineno)]
    if len(found) != 1 or any(isinstance(a, ast.Starred) for a in found[0].args):
        return None
    node = found[0]
    source = {id(part): ast.get_source_segment(text, part) or "" for part in ast.walk(node) if hasattr(part, "lineno")}
    keywords = {k.arg: source[id(k.value)] for k in node.keywords if k.arg is not None}
    if len(keywords) < len(node.keywords):
        return None
    after = rewrite(source[id(node.func)], [source[id(a)] for a in node.args], keywords)
    before = source[id(node)]
    end = (node.end_lineno or node.lineno, node.end_col_offset or 0)
    return Edit(file, (node.lineno, node.col_offset), end, before, after) if after != before else None


def call(name: str, arguments: Sequence[str], keywords: dict[str, str]) -> str:
    """The text of a call."""
    return f"{name}({', '.join([*arguments, *(f'{key}={value}' for key, value in keywords.items())])})"


def sibling(name: str, leaf: str) -> str:
    """Another function of the same namespace: `nn.Softmax` and `Identity` make `nn.Identity`."""
    return ".".join([*name.split(".")[:-1], leaf])


def is_function(name: str) -> bool:
    """Whether a name is that of a function, not of a tensor's method: `F.softmax`, `torch.relu`, `softmax`."""
    owner = name.rpartition(".")[0]
    return owner in ("", "F", "torch", "special", "functional") or owner.startswith(("nn.", "torch."))


def diff(edits: Iterable[Edit]) -> str:
    """A unified diff of the edits, for `git apply -p0`; of overlapping edits the first counts."""
    parts: list[str] = []
    for file, group in groupby(sorted(set(edits), key=lambda e: (e.file, e.start)), key=lambda e: e.file):
        text = _read(file)
        if text is not None:
            old, new = text.splitlines(keepends=True), _applied(text, list(group)).splitlines(keepends=True)
            parts += difflib.unified_diff(old, new, file, file, n=1)
    return "".join(part if part.endswith("\n") else part + "\n\\ No newline at end of file\n" for part in parts)


def _applied(text: str, edits: Sequence[Edit]) -> str:
    data = text.encode()
    starts = [0]
    for line in data.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    spans: list[tuple[int, int, Edit]] = []
    for edit in edits:
        first, last = (starts[line - 1] + column for line, column in (edit.start, edit.end))
        if (not spans or first >= spans[-1][1]) and data[first:last].decode() == edit.before:
            spans.append((first, last, edit))
    for first, last, edit in reversed(spans):
        data = data[:first] + edit.after.encode() + data[last:]
    return data.decode()


def _leaf(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _read(file: str) -> str | None:
    if not os.path.isfile(file):
        return None
    try:
        with open(file, encoding="utf-8", newline="") as opened:
            return opened.read()
    except (OSError, UnicodeDecodeError):
        return None


__all__ = ["Edit", "Rewrite", "call", "diff", "is_function", "rewrite_call", "sibling"]
