from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest

from tightrope.finding import Evidence
from tightrope.report import html
from tightrope.report.model import Report

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, name: str) -> list[str]:
        return [value for _, attrs in self.tags if (value := attrs.get(name)) is not None]

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def test_no_request_leaves_the_page(report: Report) -> None:
    text = html.render(report)
    page = Page(text)
    assert all(value.startswith("#") for name in ("href", "src", "xlink:href") for value in page.values(name))
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(|EventSource|WebSocket", text)
    assert "default-src 'none'" in text


def test_ids_are_unique_and_every_link_resolves(report: Report) -> None:
    page = Page(html.render(report))
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in page.values("href")} <= set(ids)


def test_all_findings_and_rows_are_there(report: Report) -> None:
    page = Page(html.render(report))
    assert sum(value.startswith("row-") for value in page.values("id")) == len(report.laws)
    causes = {finding.check for finding in report.findings if finding.caused_by is None}
    assert sum(value.startswith("finding-") for value in page.values("id")) == len(causes)
    for finding in report.findings:
        assert finding.check in page.text


def test_text_from_outside_stays_text(made: SimpleNamespace) -> None:
    remedy = made.remedy(title=HOSTILE, patch=HOSTILE, cost=HOSTILE)
    cause = made.finding(
        module=HOSTILE, summary=HOSTILE, location=f"{HOSTILE}:3", remedies=(remedy,), cause_of=("vanishing-signal",),
        evidence=(Evidence(HOSTILE, 1.0, 2.0, 0.1, HOSTILE),),
    )  # fmt: skip
    echo = made.finding("vanishing-signal", module=HOSTILE, summary=HOSTILE, caused_by="init-too-small")
    report = made.report(
        cause, echo, title=HOSTILE, unknown=(HOSTILE,), notes=(HOSTILE,), command=HOSTILE, versions={HOSTILE: HOSTILE}
    )
    rows = tuple(made.row(i, module=HOSTILE, op=HOSTILE, location=HOSTILE) for i in range(4))
    plain = Page(html.render(made.report(made.finding())))
    page = Page(html.render(dataclasses.replace(report, laws=rows)))
    assert page.count("img") == 0
    assert page.count("script") == plain.count("script")
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert page.text.count("<script>alert(1)</script>") >= 12  # it is all shown, as text


def test_hover_data_is_json_that_cannot_leave_its_element(made: SimpleNamespace) -> None:
    report = dataclasses.replace(made.report(), laws=(made.row(0, module="</script><b>"), made.row(1)))
    data = re.search(r'<script type="application/json" id="points">(.*?)</script>', html.render(report), re.DOTALL)
    assert data is not None
    assert json.loads(data[1])[0][1] == "</script><b>"


def test_source_line_is_shown_with_its_surroundings(made: SimpleNamespace, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("".join(f"line_{n} = '<b>'\n" for n in range(1, 21)), "utf-8")
    text = html.render(made.report(made.finding(location=f"{script}:10")))
    assert re.search(r'<span class="here"><i>10</i>line_10 = &#39;&lt;b&gt;&#39;', text)
    assert "line_7 " in text
    assert "line_13 " in text
    assert "line_6 " not in text
    assert "line_14 " not in text


@pytest.mark.parametrize("location", ["", "gone.py:3", "train.py:99999", "no line", "/:1"])
def test_a_source_that_cannot_be_read_is_left_out(made: SimpleNamespace, location: str) -> None:
    assert "Your line" not in html.render(made.report(made.finding(location=location)))


def test_flags_lead_to_cards_and_cards_to_rows(made: SimpleNamespace) -> None:
    page = Page(html.render(made.report(made.finding(index=7, module="net.7", modules=("net.7",)))))
    assert page.values("href").count("#finding-1") >= 2  # the flag on the wire and the mark in the table
    assert "#row-7" in page.values("href")


def test_a_healthy_report_is_one_calm_page(healthy: Report) -> None:
    text = html.render(dataclasses.replace(healthy, findings=()))
    assert "No finding" in text
    assert 'id="findings"' not in text


def test_evidence_stands_where_its_numbers_are() -> None:
    near = html.gauge(Evidence("std", 2.0, 1.0, 0.5))
    assert near is not None
    assert not near.logarithmic
    assert (near.high - near.measured) / (near.measured - near.expected) == pytest.approx(0.5, rel=0.01)
    far = html.gauge(Evidence("std", 1e-6, 1.0))
    assert far is not None
    assert far.logarithmic
    assert far.measured < far.expected
    assert html.gauge(Evidence("std", 1.0)) is None
    assert html.gauge(Evidence("std", float("inf"), 1.0)) is None
    zero = html.gauge(Evidence("share", 0.0, 0.0))
    assert zero is not None


def test_six_hundred_rows_stay_a_small_file(made: SimpleNamespace) -> None:
    text = html.render(made.report(rows=600, factor=0.99))
    assert len(text.encode()) < 1_500_000
    assert Page(text).count("tr") == 601


def test_notebook_frames_the_page(sick: Report) -> None:
    frame = sick._repr_html_()
    page = Page(frame)
    assert [tag for tag, _ in page.tags] == ["iframe"]
    assert page.values("srcdoc")[0] == html.render(sick)


def test_importing_the_package_loads_no_renderer() -> None:
    code = "import sys, tightrope; print([m for m in ('jinja2', 'altair', 'rich.console') if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("missing", ["predicted", "measured"])
def test_one_side_alone_is_drawn(made: SimpleNamespace, missing: str) -> None:
    rows = tuple(made.row(i, **{missing: None, f"{missing}_gradient": None, "z": None}) for i in range(20))
    page = Page(html.render(dataclasses.replace(made.report(), laws=rows)))
    assert "None" not in page.text
    assert "standard errors of their prediction" not in page.text
    assert ("Predicted, not measured" in page.text) == (missing == "measured")


def test_views_are_left_out_of_a_very_long_table(made: SimpleNamespace) -> None:
    rows = tuple(made.row(i, factor=0.999, trivial=bool(i % 2)) for i in range(2000))
    text = html.render(dataclasses.replace(made.report(), laws=rows))
    assert Page(text).count("tr") == 1001
    assert "1000 views and copies are left out" in text
    assert len(text.encode()) < 1_500_000
