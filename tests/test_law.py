"""A law's moments follow from its components, and it survives JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from tightrope import Law

LAW = Law(mean=0.5, constant=0.1, sample=0.2, site=0.3, residual=0.4, error=0.05)


def test_moments_agree_with_numbers_drawn_from_the_law() -> None:
    draw = np.random.default_rng(0)
    n, s, k = 300, 300, 60
    x = LAW.mean + math.sqrt(LAW.constant) * draw.standard_normal((1, 1, k))
    x = x + math.sqrt(LAW.sample) * draw.standard_normal((n, 1, k))
    x = x + math.sqrt(LAW.site) * draw.standard_normal((1, s, k))
    x = x + math.sqrt(LAW.residual) * draw.standard_normal((n, s, k))
    assert LAW.std == pytest.approx(x.std(), rel=0.05)
    assert LAW.rms == pytest.approx(math.sqrt((x**2).mean()), rel=0.05)


def test_signal_is_what_differs_between_samples() -> None:
    assert LAW.signal == pytest.approx(math.sqrt(0.2 + 0.4))
    assert Law(1.0, constant=3.0, site=2.0).signal == 0.0


def test_json_round_trip_is_exact() -> None:
    assert Law.from_dict(json.loads(json.dumps(LAW.to_dict()))) == LAW


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_law_that_is_not_finite_says_so(bad: float) -> None:
    assert LAW.finite
    assert not Law(bad).finite
    assert not Law(0.0, residual=bad).finite


def test_a_rounding_error_below_zero_has_no_deviation() -> None:
    assert Law(0.0, residual=-1e-18).std == 0.0


def test_it_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        LAW.mean = 2.0  # type: ignore[misc]
