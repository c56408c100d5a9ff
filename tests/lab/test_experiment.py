"""Claims: what holds, what fails, and what a measurement is too coarse to decide."""

from __future__ import annotations

import math

import pytest
import torch

from tightrope.lab import Claim, Panel, Result


@pytest.mark.parametrize(
    ("claim", "verdict"),
    [
        (Claim.equal("within the band", 2.0, 2.03, within=0.02), "holds"),
        (Claim.equal("out of the band", 2.0, 2.05, within=0.02), "fails"),
        (Claim.equal("within three errors", 2.0, 2.05, 0.02), "holds"),
        (Claim.equal("beyond them", 2.0, 2.07, 0.02), "fails"),
        (Claim.equal("too coarse", 2.0, 2.05, 0.2), "unresolved"),
        (Claim.equal("zero, in a band of its own", 0.0, 0.004, 0.001, absolute=0.005), "holds"),
        (Claim.equal("zero, without one", 0.0, 0.001, 0.001), "unresolved"),
        (Claim.equal("exact", 0.25, 0.25), "holds"),
        (Claim.equal("exact, and missed", 0.25, 0.2500001), "fails"),
        (Claim.equal("no number", 0.25, math.nan, 1.0), "fails"),
        (Claim.below("below", 1.0, 0.9, 0.02), "holds"),
        (Claim.below("below by chance", 1.0, 0.98, 0.02), "unresolved"),
        (Claim.below("above by chance", 1.0, 1.02, 0.02), "unresolved"),
        (Claim.below("above", 1.0, 1.1, 0.02), "fails"),
        (Claim.above("above", 1.0, 1.1, 0.02), "holds"),
        (Claim.above("below", 1.0, 0.9, 0.02), "fails"),
    ],
)
def test_verdicts(claim: Claim, verdict: str) -> None:
    assert claim.verdict == verdict


def test_a_true_law_is_rejected_as_rarely_as_three_errors_say() -> None:
    torch.manual_seed(0)
    means = 5 + torch.randn(20_000, dtype=torch.float64) * 0.1
    failed = sum(Claim.equal("a mean", 5.0, float(m), 0.1).verdict == "fails" for m in means)
    expected = 20_000 * math.erfc(3 / math.sqrt(2))
    assert abs(failed - expected) < 4 * math.sqrt(expected)


def test_a_curve_is_as_good_as_its_worst_point() -> None:
    claim = Claim.curve("std", (1, 2, 3), (1.0, 2.0, 4.0), (1.0, 2.3, 4.1), (0.0, 0.0, 0.0), within=0.05)
    assert (claim.predicted, claim.measured, claim.verdict) == (2.0, 2.3, "fails")
    assert "worst of 3 points (2)" in claim.text


def test_one_claim_that_fails_is_enough() -> None:
    good, bad = Claim.equal("good", 1.0, 1.0), Claim.equal("bad", 1.0, 2.0)
    coarse = Claim.equal("coarse", 1.0, 1.1, 0.5)
    panel = (Panel("a", "x", "y", ()),)
    assert Result((good,), panel).verdict == "holds"
    assert Result((good, coarse), panel).verdict == "unresolved"
    assert Result((good, coarse, bad), panel).verdict == "fails"
