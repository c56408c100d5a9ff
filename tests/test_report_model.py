"""The report is plain data that survives JSON, whatever numbers are in it."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tightrope as tr
from tightrope.errors import InputError
from tightrope.finding import Evidence, Finding, Remedy, Safety, Severity
from tightrope.report.model import SCHEMA, LawRow, Report


def finding(severity: Severity = Severity.FAULT) -> Finding:
    remedies = (Remedy("initialize", "Solve the scales", "tr.initialize(model, x)", "none", Safety.SAFE),)
    evidence = (Evidence("gain", 0.5, 1.0, 0.01, "per layer"), Evidence("loss", math.nan), Evidence("top", -math.inf))
    return Finding(
        "a-check", severity, "net.0", "train.py:3", "a fact", evidence, 2, ("other",), None, remedies, 1, ("a",)
    )


LAW = tr.Law(0.1, 0.2, 0.3, 0.4, 0.5, 0.01)
BAD = tr.Law(math.nan, residual=math.inf)
ROW = LawRow(3, "linear", "net.0", "train.py:3", (2, 4), False, LAW, BAD, None, LAW, -math.inf)
LOSS = {1: 2.5, 10: math.nan}
REPORT = Report(
    (finding(),), (ROW,), "Net", (1, 10), {"recorded": 1}, ("roll",), LOSS, {"torch": "x"}, "cmd", 1.5, ("a note",)
)


def same(a: object, b: object) -> bool:
    """Equality in which NaN equals itself."""
    return repr(a) == repr(b)


def test_json_round_trip() -> None:
    back = Report.from_json(REPORT.to_json())
    assert same(back, REPORT)
    assert back.to_json() == REPORT.to_json()


def test_json_is_strict_json() -> None:
    def refuse(text: str) -> float:
        raise AssertionError(f"{text} is no JSON")

    data = json.loads(REPORT.to_json(), parse_constant=refuse)
    assert data["schema"] == SCHEMA
    assert data["findings"][0]["check"] == "a-check"
    assert data["findings"][0]["severity"] == "fault"
    assert {"check", "severity", "module", "location", "evidence", "cause_of", "caused_by", "remedies"} <= set(
        data["findings"][0]
    )


def test_words_that_look_like_numbers_stay_words() -> None:
    row = LawRow(0, "nan", "inf", "-inf", (1,), False, LAW, None, None, None, None)
    report = Report((), (row,), title="nan", notes=("inf",))
    assert same(Report.from_json(report.to_json()), report)


@pytest.mark.parametrize(("severity", "healthy"), [("fault", False), ("warning", False), ("advice", True)])
def test_advice_alone_is_healthy(severity: str, healthy: bool) -> None:
    assert Report((finding(Severity(severity)),), ()).healthy is healthy


def test_a_remedy_from_a_file_says_what_to_change() -> None:
    remedy = Report.from_json(REPORT.to_json()).findings[0].remedy
    assert remedy is not None
    with pytest.raises(InputError, match="Change the source"):
        remedy.apply()


def test_severities_are_ordered_worst_first() -> None:
    assert sorted(Severity, key=lambda s: s.rank) == [Severity.FAULT, Severity.WARNING, Severity.ADVICE]


def test_a_real_report() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    report = tr.check(model, (torch.randn(32, 8), torch.randint(3, (32,))), loss=F.cross_entropy)
    assert same(Report.from_json(report.to_json()), report)
    assert report.title == "Sequential"
    assert report.steps == (1,)
    assert report.tensors["recorded"] == len(report.laws)
    assert report.tensors["predicted"] + report.tensors["simulated"] + report.tensors["unknown"] == len(report.laws)
    assert report.loss[1] == pytest.approx(1.1, abs=0.5)
    assert [row.op for row in report.laws] == ["linear", "relu", "linear", "cross_entropy"]
    assert all(row.location for row in report.laws)


def test_it_shows_itself() -> None:
    report = tr.check(nn.Sequential(nn.Linear(8, 3)), torch.randn(32, 8))
    assert "Sequential" in str(report)
    assert report.to_html().lstrip().lower().startswith("<!doctype html")
    assert "iframe" in report._repr_html_()  # a notebook's own page keeps its style
