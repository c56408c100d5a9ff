"""Remedies for numbers that leave their range."""

from __future__ import annotations

import math

import pytest

from tightrope.finding import Evidence, Finding, Severity
from tightrope.remedies.numerics import wider_dtype


@pytest.mark.parametrize(
    ("reached", "change"), [(200_000.0, "x / 4 "), (math.inf, "bfloat16"), (math.nan, "bfloat16"), (100.0, "x / 2 ")]
)
def test_a_scale_that_is_no_number_is_not_divided_by(reached: float, change: str) -> None:
    evidence = (Evidence("largest value", reached, 65504.0),)
    finding = Finding("half-precision-overflow", Severity.FAULT, "", "", "", evidence)
    made = wider_dtype(None, finding)  # type: ignore[arg-type]
    assert made is not None and change in made.patch
