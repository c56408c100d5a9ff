"""The user's own source line behind a call."""

from __future__ import annotations

import os
import sys
import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from types import FrameType

import torch

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_TORCH = os.path.dirname(os.path.abspath(torch.__file__))
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib", "platstdlib")})


@dataclass(frozen=True)
class Location:
    """A line of source: `file:line`, and the function it stands in."""

    file: str
    line: int
    function: str = ""

    def __str__(self) -> str:
        cell = _cell(self.file)
        if cell:
            return f"{cell}:{self.line}"
        path = os.path.relpath(self.file) if os.path.isabs(self.file) else self.file
        return f"{self.file if path.startswith('..') else path}:{self.line}"


def _cell(file: str) -> str:
    """`In[3]` for the code of a notebook's cell, "" for a file."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    named = getattr(getattr(shell, "compile", None), "format_code_name", lambda file: None)(file)
    return named[1] if named else ""


UNKNOWN = Location("<unknown>", 0)


def is_internal(file: str) -> bool:
    """Whether a file is part of tightrope; its demonstration script is a user's."""
    path = os.path.abspath(file)
    return path.startswith(_PACKAGE + os.sep) and not path.startswith(os.path.join(_PACKAGE, "demo", "sick"))


@lru_cache(maxsize=4096)
def _rank(file: str) -> int:
    """2 for the user's own code, 1 for a library's, 0 for torch, tightrope and generated code."""
    if file.startswith("<") and not file.startswith(("<stdin>", "<ipython")):
        return 0
    path = os.path.abspath(file)
    demo = os.path.join(_PACKAGE, "demo") + os.sep
    if path.startswith(_TORCH + os.sep) or (path.startswith(_PACKAGE + os.sep) and not path.startswith(demo)):
        return 0
    if path.startswith(demo):
        return 2
    return 1 if path.startswith(_LIBRARIES) else 2


def is_library(kind: type) -> bool:
    """Whether a class is defined in a library rather than in the user's own code."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return file is not None and _rank(file) < 2


def locate(frame: FrameType | None = None, skip: object = None) -> Location:
    """The innermost line of the user's own code on the stack; else the innermost of a library's.

    Args:
        frame: where to start; the caller's frame when None.
        skip: ignore frames in which `self` is this object (a constructor of the object itself).
    """
    here = frame or sys._getframe(1)
    library: FrameType | None = None
    current: FrameType | None = here
    while current is not None:
        rank = _rank(current.f_code.co_filename)
        if rank and skip is not None and current.f_locals.get("self") is skip:
            rank = 0
        if rank == 2:
            return Location(current.f_code.co_filename, current.f_lineno, current.f_code.co_name)
        if rank == 1 and library is None and current.f_code.co_filename.find("importlib") < 0:
            library = current
        current = current.f_back
    if library is None:
        return UNKNOWN
    return Location(library.f_code.co_filename, library.f_lineno, library.f_code.co_name)
