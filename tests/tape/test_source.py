"""The user's own line is found on the stack."""

from __future__ import annotations

import inspect
import sys
from functools import reduce
from pathlib import Path
from types import SimpleNamespace

import pytest

from tightrope.tape.source import UNKNOWN, Location, locate


def test_the_callers_own_line() -> None:
    frame = inspect.currentframe()
    assert frame is not None
    found, line = locate(), frame.f_lineno
    assert (Path(found.file).name, found.line) == (Path(__file__).name, line)
    assert found.function == "test_the_callers_own_line"


def test_library_frames_in_between_are_passed_over() -> None:
    found = reduce(lambda _, __: locate(), [1, 2])
    assert isinstance(found, Location)
    assert Path(found.file) == Path(__file__)


def test_generated_code_is_nobodys_source() -> None:
    scope = {"locate": locate}
    exec(compile("def f():\n    return locate()", "<generated>", "exec"), scope)
    found = scope["f"]()  # type: ignore[operator]
    assert Path(found.file) == Path(__file__)


def test_a_constructor_can_be_skipped() -> None:
    class Built:
        def __init__(self) -> None:
            self.where = locate(inspect.currentframe(), skip=self)

    def build() -> Built:
        return Built()

    assert build().where.function == "build"


def test_paths_below_the_working_directory_are_shown_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(Location(str(tmp_path / "train.py"), 7)) == "train.py:7"
    assert str(Location("/elsewhere/train.py", 7)) == "/elsewhere/train.py:7"
    assert str(UNKNOWN) == "<unknown>:0"


def test_a_cell_of_a_notebook_goes_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"/tmp/ipykernel_7/123.py": ("Cell", "In[3]")}
    shell = SimpleNamespace(compile=SimpleNamespace(format_code_name=names.get))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert str(Location("/tmp/ipykernel_7/123.py", 5)) == "In[3]:5"
    assert str(Location("train.py", 5)) == "train.py:5"
