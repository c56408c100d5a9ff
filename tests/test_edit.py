"""Edits of a user's source: the one call on a line, rewritten, as a diff that a standard tool applies."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tightrope.edit import Edit, call, diff, is_function, rewrite_call, sibling

SOURCE = """\
import torch
from torch import nn

model = nn.Sequential(
    nn.Linear(4, 3),  # größer
    nn.Softmax(dim=-1))
optimizer = torch.optim.SGD(model.parameters(), lr=10.0, momentum=0.9)
twice = nn.Softmax(dim=0), nn.Softmax(dim=1)
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "train.py"
    path.write_text(SOURCE, encoding="utf-8")
    return path


def identity(name: str, arguments: object, keywords: object) -> str:
    return sibling(name, "Identity") + "()"


def test_a_call_is_found_by_its_line(script: Path) -> None:
    edit = rewrite_call("train.py:6", ["Softmax"], identity)
    assert edit is not None
    assert (edit.before, edit.after) == ("nn.Softmax(dim=-1)", "nn.Identity()")
    assert edit == Edit.from_dict(edit.to_dict())


def test_a_keyword_is_changed_and_the_rest_kept(script: Path) -> None:
    edit = rewrite_call("train.py:7", ["SGD"], lambda name, args, kwargs: call(name, args, {**kwargs, "lr": "0.01"}))
    assert edit is not None
    assert edit.after == "torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)"


@pytest.mark.parametrize("location", ["train.py:8", "train.py:1", "gone.py:6", "train.py", ""])
def test_what_is_not_one_call_is_left_alone(script: Path, location: str) -> None:
    assert rewrite_call(location, ["Softmax"], identity) is None


def test_a_line_inside_a_longer_call_finds_it(script: Path) -> None:
    edit = rewrite_call("train.py:5", ["Sequential"], lambda name, args, kwargs: args[0])
    assert edit is not None
    assert edit.start == (4, 8) and edit.after == "nn.Linear(4, 3)"


@pytest.mark.parametrize("name", ["F.softmax", "torch.relu", "nn.functional.softmax", "softmax"])
def test_functions_are_told_from_methods(name: str) -> None:
    assert is_function(name)
    assert not is_function("scores." + name.rpartition(".")[2])


def test_the_diff_applies(script: Path) -> None:
    first = rewrite_call("train.py:6", ["Softmax"], identity)
    second = rewrite_call("train.py:7", ["SGD"], lambda name, args, kwargs: call(name, args, {"lr": "0.01"}))
    assert first is not None and second is not None
    text = diff([second, first, first])
    subprocess.run(["git", "apply", "-p0", "--unidiff-zero", "-"], input=text, text=True, check=True)
    wanted = SOURCE.replace("nn.Softmax(dim=-1)", "nn.Identity()").replace("lr=10.0, momentum=0.9", "lr=0.01")
    assert script.read_text(encoding="utf-8") == wanted


def test_the_diff_of_a_changed_file_leaves_it_alone(script: Path) -> None:
    edit = rewrite_call("train.py:6", ["Softmax"], identity)
    assert edit is not None
    script.write_text(SOURCE.replace("Softmax(dim=-1)", "LogSoftmax(dim=-1)"), encoding="utf-8")
    assert diff([edit]) == ""
