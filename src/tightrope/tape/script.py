"""Run an unmodified Python script inside this process, as the interpreter itself would."""

from __future__ import annotations

import builtins
import importlib.util
import io
import os
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType, TracebackType

from tightrope.errors import InputError
from tightrope.tape.source import is_internal

INTERRUPTED = 130
"""Exit code of a program that Ctrl-C ended, as shells report it."""


@dataclass(frozen=True)
class Outcome:
    """How a script ended.

    Attributes:
        code: what its process would have returned.
        error: name and message of the exception that ended it; None when none did.
    """

    code: int = 0
    error: str | None = None


def run_script(path: str, arguments: Sequence[str] = ()) -> Outcome:
    """Run the script at `path` with the arguments, as `python path arguments…` does.

    Raises:
        InputError: there is no such script.
    """
    if not os.path.exists(path):
        raise InputError(f"run {path}", "there is no such file", "Check the path; to run a module, use -m")
    whole = os.path.abspath(path)
    packed = os.path.isdir(path) or whole.endswith((".zip", ".pyz"))
    if os.path.isdir(path) and not os.path.exists(os.path.join(path, "__main__.py")):
        raise InputError(f"run {path}", "it is a folder without __main__.py", "Name the script itself")
    with _interpreter([path, *arguments], sys.path[0] if packed else os.path.dirname(os.path.realpath(path))):
        return _ended(lambda: runpy.run_path(path, run_name="__main__")) if packed else _ended(lambda: _execute(whole))


def run_module(name: str, arguments: Sequence[str] = ()) -> Outcome:
    """Run a module with the arguments, as `python -m name arguments…` does.

    Raises:
        InputError: there is no such module, or it is a package that cannot be run.
    """
    with _interpreter([name, *arguments], os.getcwd()):
        try:
            spec = importlib.util.find_spec(name)
            if spec is not None and spec.submodule_search_locations is not None:
                spec = importlib.util.find_spec(f"{name}.__main__")
        except (ImportError, ValueError):
            spec = None
        if spec is None:
            found = f"Python finds no module {name} that can be run, in {os.getcwd()} or installed"
            raise InputError(f"run -m {name}", found, "Check the name, or pass the path of a script")
        return _ended(lambda: runpy.run_module(name, run_name="__main__", alter_sys=True))


def _execute(path: str) -> None:
    """Run a file as the main module, which stays importable under that name while it runs."""
    with io.open_code(path) as file:
        source = file.read()
    main = ModuleType("__main__")
    main.__file__ = path
    main.__dict__.update(__builtins__=builtins, __spec__=None, __cached__=None)
    before = sys.modules["__main__"]
    sys.modules["__main__"] = main
    try:
        exec(compile(source, path, "exec"), main.__dict__)
    finally:
        sys.modules["__main__"] = before


@contextmanager
def _interpreter(argv: list[str], first: str) -> Iterator[None]:
    """`sys.argv` and `sys.path[0]` as the script expects them."""
    before = sys.argv, sys.path[0]
    sys.argv, sys.path[0] = argv, first
    try:
        yield
    finally:
        sys.argv, sys.path[0] = before


def _ended(body: object) -> Outcome:
    """Run to the end, whichever it is; an exception is shown as the interpreter shows it."""
    assert callable(body)
    try:
        body()
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return Outcome((stop.code or 0) & 0xFF)
        print(stop.code, file=sys.stderr)
        return Outcome(1)
    except BaseException as error:
        show(error)
        first = str(error).splitlines()[0] if str(error) else ""
        code = INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
        return Outcome(code, f"{type(error).__name__}: {first}" if first else type(error).__name__)
    return Outcome()


def show(error: BaseException) -> None:
    """Print the script's own traceback, without the frames that run and observe it."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        link.__traceback__ = _trimmed(link.__traceback__)
        link = link.__cause__ or link.__context__
    sys.stdout.flush()
    sys.excepthook(type(error), error, error.__traceback__)


def _trimmed(trace: TracebackType | None) -> TracebackType | None:
    frames: list[TracebackType] = []
    while trace is not None:
        frames.append(trace)
        trace = trace.tb_next
    kept: TracebackType | None = None
    for link in reversed(frames):
        code = link.tb_frame.f_code
        machinery = code.co_filename.startswith("<frozen") or code.co_name == "handle_torch_function"
        if not machinery and not is_internal(code.co_filename):
            kept = TracebackType(kept, link.tb_frame, link.tb_lasti, link.tb_lineno)
    return kept
