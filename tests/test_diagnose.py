"""Causes and echoes, over the steps of a run."""

from __future__ import annotations

from typing import Any

import pytest

from tightrope.diagnose import merge, order
from tightrope.finding import Finding, Severity


def finding(check: str, step: int = 1, severity: Severity = Severity.FAULT, **rest: Any) -> Finding:
    return Finding(check, severity, rest.pop("module", ""), "train.py:1", "a fact", step=step, **rest)


def causes(*findings: Finding) -> list[str]:
    return [f.check for f in order(findings) if f.caused_by is None]


def test_an_early_fault_explains_what_is_seen_later() -> None:
    found = [
        finding("dead-units", 10),
        finding("exploding-signal"),
        finding("init-too-large"),
        finding("non-finite", 3),
    ]
    ordered = order(found)
    assert ordered[0].check == "init-too-large"
    assert {f.caused_by for f in ordered[1:]} == {"init-too-large"}
    assert set(ordered[0].cause_of) == {"dead-units", "exploding-signal", "non-finite"}


def test_nothing_is_explained_by_what_came_after_it() -> None:
    assert causes(finding("exploding-signal", 1), finding("init-too-large", 10)) == [
        "exploding-signal",
        "init-too-large",
    ]


def test_updates_are_at_work_from_the_second_step_on() -> None:
    """The learning rate is judged when a run has shown something, and what it shows has begun before."""
    rate = finding("learning-rate-too-high", 100)
    assert causes(finding("exploding-signal", 10), rate, finding("non-finite", 40)) == ["learning-rate-too-high"]
    assert set(causes(finding("exploding-signal", 1), rate)) == {"exploding-signal"}


def test_data_are_at_work_from_the_first_step_on() -> None:
    assert causes(finding("dead-units", 1), finding("label-order", 100, Severity.FAULT)) == ["label-order"]


@pytest.mark.parametrize("first", ["exploding-signal", "non-finite"])
def test_of_two_that_explain_each_other_the_earlier_is_the_cause(first: str) -> None:
    second = {"exploding-signal": "non-finite", "non-finite": "exploding-signal"}[first]
    assert causes(finding(second, 10), finding(first, 1)) == [first]


def test_the_worst_of_what_one_check_says_is_kept() -> None:
    early = finding("tiny-batch-norm", 1, Severity.ADVICE, module="norm")
    late, again = (finding("tiny-batch-norm", n, Severity.WARNING, module="norm") for n in (10, 100))
    other = finding("tiny-batch-norm", 1, Severity.ADVICE, module="other")
    assert [(f.module, f.step) for f in merge([again, early, late, other])] == [("norm", 10), ("other", 1)]
