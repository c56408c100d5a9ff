from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from tightrope.report import terminal
from tightrope.report.model import Report
from tightrope.report.wire import Reading

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("width", [80, 110])
def test_screen_equals_its_golden_file(name: str, report: Report, width: int, request: pytest.FixtureRequest) -> None:
    text = terminal.render(report, width=width, colour=False, encoding="utf-8")
    path = GOLDEN / f"{name}-{width}.txt"
    if request.config.getoption("--overwrite"):
        path.write_text(text, "utf-8")
    assert text == path.read_text("utf-8")


@pytest.mark.parametrize("width", [80, 93, 120])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_no_line_is_wider_than_the_terminal_and_all_fit_one_screen(report: Report, width: int, encoding: str) -> None:
    lines = terminal.render(report, width=width, colour=False, encoding=encoding).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= 40


def test_ascii_stream_gets_ascii_only(sick: Report) -> None:
    text = terminal.render(sick, width=100, colour=False, encoding="ascii")
    assert text.isascii()
    assert "?" not in text
    assert "net.0" in text


def test_colour_is_written_only_on_demand(sick: Report) -> None:
    assert "\x1b[" in terminal.render(sick, width=100, colour=True)
    assert "\x1b[" not in terminal.render(sick, width=100, colour=False)
    plain = terminal.render(sick, width=100, colour=False)
    assert "fault" in plain or "warning" in plain  # the severity is a word, not only a colour


def test_many_findings_fold_to_one_screen(made: SimpleNamespace) -> None:
    many = [made.finding(f"check-{i}", module=f"net.{i}", index=i) for i in range(30)]
    lines = terminal.render(made.report(*many), width=100, colour=False, encoding="utf-8").splitlines()
    assert len(lines) <= 40
    shown = sum("fault" in line for line in lines)
    assert f"and {30 - shown} more" in "\n".join(lines)


def test_findings_of_one_check_are_told_once(made: SimpleNamespace) -> None:
    many = [made.finding(module=f"net.{i}", index=i) for i in range(12)]
    text = terminal.render(made.report(*many), width=100, colour=False, encoding="utf-8")
    assert text.count("init-too-small  ") == 1
    assert "net.0 and 11 more" in text


def test_echoes_are_folded_under_their_cause(made: SimpleNamespace) -> None:
    cause = made.finding(cause_of=("vanishing-signal",))
    echo = made.finding("vanishing-signal", caused_by="init-too-small", module="net.9", index=9)
    text = terminal.render(made.report(cause, echo), width=100, colour=False, encoding="utf-8")
    assert "so vanishing-signal (1 echo)" in text
    assert text.count("fault") == 1


def test_markup_in_names_is_text(made: SimpleNamespace) -> None:
    text = terminal.render(
        made.report(made.finding(module="net[bold red].0")), width=100, colour=False, encoding="utf-8"
    )
    assert "net[bold red].0" in text


def test_closing_lines_name_the_next_commands(made: SimpleNamespace) -> None:
    text = terminal.render(made.report(made.finding()), width=100, colour=False, encoding="utf-8", saved="report.html")
    assert "tightrope explain init-too-small" in text
    assert "tightrope run --fix train.py" in text
    assert "report.html" in text


def test_wire_says_the_factor_per_layer(made: SimpleNamespace) -> None:
    text = terminal.render(made.report(factor=0.5), width=120, colour=False, encoding="utf-8")
    assert text.count("× 0.500 a layer") + text.count("× 0.500") >= 2


def test_report_without_rows_is_told(made: SimpleNamespace) -> None:
    text = terminal.render(made.report(rows=0), width=80, colour=False, encoding="utf-8")
    assert "No finding" in text


def test_rich_prints_a_report(sick: Report) -> None:
    stream = io.StringIO()
    Console(file=stream, width=100).print(sick)
    assert stream.getvalue() == terminal.render(sick, width=100, colour=False, encoding="utf-8")


def test_sparkline_is_flat_for_a_level_signal_and_falls_for_a_fading_one() -> None:
    level = terminal.sparkline([Reading(v, v, v) for v in (1.0, 1.1, 0.9, 1.0)], 4)
    assert len(set(level)) <= 2
    falling = terminal.sparkline([Reading(10.0**-i, 0, 0) for i in range(8)], 8)
    assert falling == "█▇▆▅▄▃▂▁"
    assert terminal.sparkline([None, "!"], 2) == " !"
    assert terminal.sparkline([Reading(1, 1, 1), "!", None], 3)[1:] == "! "


def test_width_is_held_between_80_and_120(sick: Report) -> None:
    narrow = terminal.render(sick, width=20, colour=False, encoding="utf-8")
    assert narrow == terminal.render(sick, width=80, colour=False, encoding="utf-8")
    wide = terminal.render(sick, width=500, colour=False, encoding="utf-8")
    assert wide == terminal.render(sick, width=120, colour=False, encoding="utf-8")


def test_notes_are_shown(broken: Report) -> None:
    text = terminal.render(
        dataclasses.replace(broken, notes=("The script ended with ValueError.",)),
        width=80,
        colour=False,
        encoding="utf-8",
    )
    assert "note: The script ended with ValueError." in text


def test_a_short_patch_is_printed_and_a_long_one_cut(made: SimpleNamespace) -> None:
    two, six = made.remedy(patch="a = 1\nb = 2"), made.remedy(patch="\n".join(f"line_{n}" for n in range(6)))
    shown = terminal.render(made.report(made.finding(remedies=(two,))), width=100, colour=False, encoding="utf-8")
    assert "a = 1\n" in shown
    assert "b = 2\n" in shown
    cut = terminal.render(made.report(made.finding(remedies=(six,))), width=100, colour=False, encoding="utf-8")
    assert "line_2" in cut
    assert "line_3" not in cut
    assert "3 more lines" in cut


@pytest.mark.parametrize("side", ["predicted", "measured"])
def test_one_side_alone_is_enough(made: SimpleNamespace, side: str) -> None:
    other = {"predicted": "measured", "measured": "predicted"}[side]
    rows = tuple(made.row(i, factor=0.5, **{other: None, f"{other}_gradient": None, "z": None}) for i in range(20))
    text = terminal.render(dataclasses.replace(made.report(), laws=rows), width=100, colour=False, encoding="utf-8")
    assert "× 0.50" in text
    assert "None" not in text


def test_a_prompt_shows_the_screen(sick: Report) -> None:
    assert repr(sick) == str(sick) == terminal.render(sick)


@pytest.mark.parametrize("width", [30, 50])
def test_a_narrow_console_loses_no_line(sick: Report, width: int) -> None:
    stream = io.StringIO()
    Console(file=stream, width=width).print(sick)
    assert max(map(len, stream.getvalue().splitlines())) <= width


def test_a_notebook_is_given_the_text_and_nothing_is_displayed(sick: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = terminal.render(sick, width=100, colour=False, encoding="utf-8")
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert terminal.render(sick, width=100, colour=False, encoding="utf-8") == plain
