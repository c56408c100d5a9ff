"""The page of a check or an experiment: its module's docstring, read into sections."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from tightrope.errors import RegistryError


@dataclass(frozen=True)
class Page:
    """A docstring of the form "`name`: title." with sections below it.

    Attributes:
        name: in backticks at the beginning.
        title: the rest of the first line.
        sections: texts by section name, in order.
    """

    name: str
    title: str
    sections: dict[str, str]


def read_page(module: ModuleType, sections: Sequence[str]) -> Page:
    """The page in a module's docstring.

    Args:
        module: whose docstring it is.
        sections: the names that it must have, in order; each begins a line and is followed by two blanks.

    Raises:
        RegistryError: the first line or a section is missing, or they stand in another order.
    """
    where = module.__file__ or module.__name__
    lines = inspect.cleandoc(module.__doc__ or "").splitlines()
    head = re.match(r"`([a-z0-9-]+)`: (.+)", lines[0] if lines else "")
    if head is None:
        raise RegistryError(f"read the page in {where}", "no first line", 'Begin it with "`name`: a title."')
    found: dict[str, str] = {}
    section = ""
    for line in lines[1:]:
        start = re.match(r"([A-Z][a-z]+)  +(.*)", line)
        if start and start[1] in sections:
            section = start[1]
            found[section] = start[2].strip()
        elif section and line.strip():
            found[section] += " " + line.strip()
    if tuple(found) != tuple(sections):
        raise RegistryError(
            f"read the page in {where}", f"its sections are {tuple(found)}", f"Write {tuple(sections)}, in order"
        )
    return Page(head[1], head[2], found)
