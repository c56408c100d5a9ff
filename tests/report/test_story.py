from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from tightrope.finding import Severity
from tightrope.report import story
from tightrope.report.model import Report
from tightrope.report.wire import build


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.3333, "0.333"), (2.0, "2"), (0.0, "0"), (1234.5, "1230"), (12355.6, "12400"), (3.14159e-7, "3.14e-07"),
        (-0.5, "-0.500"), (0.9999, "1.00"), (math.inf, "inf"), (-math.inf, "-inf"), (math.nan, "nan"),
        (5e12, "5.00e+12"), (0.00999999, "0.0100"), (64, "64"),
    ],
)  # fmt: skip
def test_numbers_have_three_significant_digits(value: float, text: str) -> None:
    assert story.number(value) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.3384, 0.0104, "0.338 ± 0.010"), (0.33, 0.004, "0.330 ± 0.004"), (6.012, 0.07, "6.01 ± 0.07"),
        (1.0, 0.0009, "1.0000 ± 0.0009"), (123.4, 20.0, "123 ± 20"), (2.0, None, "2"), (2.0, 0.0, "2"),
        (3e-9, 1e-10, "3.00e-09 ± 1.0e-10"), (1.5, math.inf, "1.50"), (math.nan, 0.1, "nan"),
    ],
)  # fmt: skip
def test_values_go_as_far_as_their_error(value: float, error: float | None, text: str) -> None:
    assert story.with_error(value, error) == text


def test_exponents_become_powers_of_ten() -> None:
    assert story.pretty("3.10e-07 ± 1.0e-08") == "3.10 × 10⁻⁷ ± 1.0 × 10⁻⁸"
    assert story.pretty("together × 2.3e-09.") == "together × 2.3 × 10⁻⁹."
    assert story.pretty("the layer e5 of v1.2e3") == "the layer e5 of v1.2e3"


def test_groups_keep_order_fold_echoes_and_join_what_is_alike(made: SimpleNamespace) -> None:
    findings = [
        made.finding("a", module="x"), made.finding("b", "warning"), made.finding("a", module="y"),
        made.finding("c", caused_by="a"), made.finding("d", caused_by="gone"),
    ]  # fmt: skip
    told = story.groups(findings)
    assert [(group.number, group.finding.check) for group in told] == [(1, "a"), (2, "b"), (3, "d")]
    assert told[0].places == "x and 1 more"
    assert told[0].echo_names == ("c",)
    assert sum(1 + len(group.alike) + len(group.echoes) for group in told) == len(findings)


def test_verdict_is_one_sentence_without_blame(report: Report) -> None:
    text = story.verdict(report, build(report))
    assert text.endswith(".")
    assert "\n" not in text
    assert not set("?!") & set(text)


def test_tally_counts_causes_and_echoes(made: SimpleNamespace) -> None:
    findings = (made.finding("a"), made.finding("b", "warning"), made.finding("c", caused_by="a"))
    assert story.tally(made.report(*findings)) == "1 fault and 1 warning, with 1 echo"
    assert story.tally(made.report()) == ""
    assert story.count([Severity.FAULT, Severity.FAULT]) == "2 faults"


def test_command_that_applies_the_safe_remedies(made: SimpleNamespace) -> None:
    assert story.fixing(made.report(made.finding())) == "tightrope run --fix train.py"
    assert story.fixing(made.report(made.finding(), command="tightrope check m:f")) == "tightrope fix m:f"
    assert story.fixing(made.report(made.finding(), command="python x.py")) == ""
    assert story.fixing(made.report(made.finding(remedies=()))) == ""


def test_tensors_are_counted_without_zeros(made: SimpleNamespace) -> None:
    assert story.tensors(made.report()) == "20 tensors, all predicted"
    counts = {"recorded": 9, "predicted": 7, "simulated": 2, "unknown": 0}
    assert story.tensors(made.report(tensors=counts)) == "9 tensors, 7 predicted, 2 simulated"


def test_places_lose_their_folders() -> None:
    assert story.place("/home/a/train.py:21") == "train.py:21"
    assert story.place("") == ""


def test_gaps_are_told_by_operation_and_reason(made: SimpleNamespace) -> None:
    unknown = (*(f"erfinv in net.{n} (train.py:3): simulated" for n in range(5)), "svd in net.9 (m.py:1): no law")
    told = story.gaps(made.report(unknown=unknown))
    assert told == [("erfinv at 5 places: simulated", unknown[:5]), ("svd in net.9 (m.py:1): no law", ())]
