"""The notebook runs from its first cell to its last, and the outputs that it shows have no error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples" / "tour.ipynb"


def cells() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


def test_every_cell_runs(capsys: pytest.CaptureFixture[str]) -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells():
        exec(compile("".join(cell["source"]), str(NOTEBOOK), "exec"), space)
    printed = capsys.readouterr().out
    assert "init-too-small" in printed and "claims hold" in printed
    before, after = (float(line.split()[-1]) for line in printed.splitlines() if line.startswith("accuracy"))
    assert before < 0.5 < after


def test_it_is_shown_as_it_ran() -> None:
    outputs = [output for cell in cells() for output in cell["outputs"]]
    assert len(outputs) >= 8 and not any(output["output_type"] == "error" for output in outputs)
    assert "/" + "tmp" not in json.dumps(outputs)
