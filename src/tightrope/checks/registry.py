"""Discovers the checks: one file each, named for the fault, its docstring the page that `explain` prints.

A check module has
    __doc__        the page: a first line "`name`: what is wrong.", then the sections of `SECTIONS`
    STAGE          when it can be judged: "graph" (before data), "batch" (one step), "run" (several steps)
    EXPLAINS       names of the checks whose findings are echoes of this one
    REMEDIES       names of the remedies that cure it, best first (`tightrope.remedies`)
    judge(...)     yields findings; the annotations of its parameters say what it reads (parts of a `Study`)
    sick()         the smallest `Subject` that triggers it
    healthy()      the nearest `Subject` that must not
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from types import ModuleType

from tightrope.errors import InputError, RegistryError
from tightrope.finding import Finding
from tightrope.page import read_page
from tightrope.study import Study

STAGES = ("graph", "batch", "run")
"""When a check can be judged: before data, on one batch, over updates."""
SECTIONS = ("Law", "Evidence", "Verdict", "Remedy", "Limits", "References")


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: as in reports and `tightrope explain`.
        title: first line of the page.
        page: section texts by name.
        stage: "graph", "batch" or "run".
        explains: checks whose findings are echoes of this one.
        remedies: names of the remedies that cure it, best first.
        module: where it is written.
    """

    name: str
    title: str
    page: dict[str, str]
    stage: str
    explains: tuple[str, ...]
    remedies: tuple[str, ...]
    module: ModuleType

    @property
    def family(self) -> str:
        """Name of the package that it stands in."""
        return self.module.__name__.split(".")[-2]

    def judge(self, study: Study) -> list[Finding]:
        """Findings of this check on a study; none where a part that it reads is not known."""
        function: Callable[..., Iterable[Finding]] = self.module.judge
        hints = typing.get_type_hints(function)
        parts = {p: study.give(hints[p]) for p in inspect.signature(function).parameters}
        return [] if None in parts.values() else list(function(**parts))


@cache
def all_checks() -> dict[str, Check]:
    """Every check by name.

    Raises:
        RegistryError: a page or a function is missing, or a name is taken twice.
    """
    found: dict[str, Check] = {}
    package = importlib.import_module("tightrope.checks")
    for info in pkgutil.walk_packages(package.__path__, "tightrope.checks."):
        module = importlib.import_module(info.name)
        if not hasattr(module, "judge"):
            continue
        check = _read(module)
        if check.name in found:
            raise RegistryError(
                f"register the check {check.name}", f"{found[check.name].module.__file__} has it", "Rename"
            )
        found[check.name] = check
    return dict(sorted(found.items()))


def get(name: str) -> Check:
    """The check of this name.

    Raises:
        InputError: there is none.
    """
    checks = all_checks()
    if name not in checks:
        raise InputError(f"explain {name}", "there is no such check", f"Choose one of: {', '.join(checks)}")
    return checks[name]


def _read(module: ModuleType) -> Check:
    where = module.__file__ or module.__name__
    for needed in ("STAGE", "EXPLAINS", "REMEDIES", "sick", "healthy"):
        if not hasattr(module, needed):
            raise RegistryError(f"read the check in {where}", f"it has no {needed}", f"Define {needed}")
    page = read_page(module, SECTIONS)
    return Check(
        page.name, page.title, page.sections, module.STAGE, tuple(module.EXPLAINS), tuple(module.REMEDIES), module
    )


__all__: list[str] = ["Check", "all_checks", "get"]
