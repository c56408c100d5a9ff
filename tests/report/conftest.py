"""What the renderers are tested on: stored reports, so that no processor flips a digit, and made ones."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tightrope.finding import Evidence, Finding, Remedy, Safety, Severity
from tightrope.law import Law
from tightrope.report.model import LawRow, Report

FIXTURES = Path(__file__).parent / "fixtures"
NAMES = sorted(path.stem for path in FIXTURES.glob("*.json"))


def load(name: str) -> Report:
    return Report.from_json((FIXTURES / f"{name}.json").read_text("utf-8"))


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def report(name: str) -> Report:
    return load(name)


@pytest.fixture
def sick() -> Report:
    return load("sick")


@pytest.fixture
def healthy() -> Report:
    return load("healthy")


@pytest.fixture
def broken() -> Report:
    return load("broken")


@pytest.fixture
def made() -> SimpleNamespace:
    """Makes rows, findings, remedies and reports with chosen content."""
    return SimpleNamespace(row=_row, finding=_finding, remedy=_remedy, report=_report)


def _row(index: int, *, op: str = "linear", module: str = "", factor: float = 1.0, **changed: Any) -> LawRow:
    law = Law(0.0, residual=factor ** (2 * index), error=0.01)
    back = Law(0.0, residual=factor ** (2 * (30 - index)), error=0.01)
    fields: dict[str, Any] = {
        "index": index, "op": op, "module": module, "location": "train.py:3", "shape": (8, 16), "trivial": False,
        "predicted": law, "measured": law, "predicted_gradient": back, "measured_gradient": back, "z": 0.1,
    }  # fmt: skip
    return LawRow(**fields | changed)


def _finding(check: str = "init-too-small", severity: str = "fault", **changed: Any) -> Finding:
    fields: dict[str, Any] = {
        "module": "net.0", "location": "train.py:3", "summary": "Var(w) n = 0.33, the ReLU law asks 2.00", "index": 0,
        "evidence": (Evidence("Var(w) n", 0.33, 2.0, 0.004),), "modules": ("net.0",),
        "remedies": (_remedy(),),
    }  # fmt: skip
    return Finding(check, Severity(severity), **fields | changed)


def _remedy(**changed: Any) -> Remedy:
    fields: dict[str, Any] = {
        "name": "initialize", "title": "Solve every weight scale", "patch": "tightrope.initialize(model, x)",
        "cost": "none", "safety": Safety.SAFE,
    }  # fmt: skip
    return Remedy(**fields | changed)


def _report(*findings: Finding, rows: int = 20, factor: float = 0.5, **changed: Any) -> Report:
    laws = tuple(_row(i, module=f"net.{i}", factor=factor) for i in range(rows))
    tensors = {"recorded": rows, "predicted": rows, "simulated": 0, "unknown": 0}
    return Report(
        findings, laws, **{"title": "train.py", "tensors": tensors, "command": "tightrope run train.py"} | changed
    )
