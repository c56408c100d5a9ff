"""What `import tightrope` promises."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import tightrope

HEAVY = ("jinja2", "altair", "vl_convert", "rich", "click", "typer", "starlette", "sklearn", "pandas", "matplotlib")


def test_all_is_sorted_complete_and_importable() -> None:
    names = tightrope.__all__
    assert list(names) == sorted(names)
    assert len(set(names)) == len(names)
    public = {n for n, v in vars(tightrope).items() if not n.startswith("_") and not inspect.ismodule(v)}
    assert public - {"annotations"} == {n for n in names if not inspect.ismodule(getattr(tightrope, n))}


@pytest.mark.parametrize("name", tightrope.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    assert inspect.getdoc(getattr(tightrope, name))


@pytest.mark.parametrize("name", ["predict", "measure", "check", "compare", "fix"])
def test_options_are_keyword_only(name: str) -> None:
    parameters = inspect.signature(getattr(tightrope, name)).parameters.values()
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters if p.default is not p.empty)


def test_verbs_are_functions_and_not_the_modules_of_their_name() -> None:
    for name in ("predict", "measure", "check", "compare", "fix"):
        assert callable(getattr(tightrope, name)), name


def test_import_loads_no_renderer() -> None:
    code = f"import sys, tightrope; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    torch_alone = f"import sys, torch; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    found, before = (
        subprocess.run([sys.executable, "-c", c], capture_output=True, text=True, check=True).stdout.split()
        for c in (code, torch_alone)
    )
    assert set(found) <= set(before)
