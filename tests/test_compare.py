"""Predicted beside measured: pairing, errors and z-scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tightrope as tr
from tightrope import Law
from tightrope.compare import BAND, RULE_ERROR, Comparison, Row, band, grad_z_score, z_score


def row(predicted: float | None, measured: float | None, *, trivial: bool = False, simulated: bool = False) -> Row:
    return Row("op", "", 0, trivial, predicted, measured, predicted, measured, None, simulated)


def test_the_summary_is_over_rows_that_say_something() -> None:
    rows = [row(1.0, 1.0), row(1.1, 1.0), row(0.8, 1.0), row(9.0, 1.0, trivial=True), row(None, 1.0), row(1.0, 0.0)]
    rows.append(row(math.inf, 1.0))
    summary = Comparison(rows).summary()
    errors = [0.0, 0.1, 0.2]
    assert summary.rows == 6
    assert summary.forward == pytest.approx((np.median(errors), np.quantile(errors, 0.9), 0.2))
    assert summary.forward == summary.backward


def test_operations_without_a_rule_are_named() -> None:
    assert Comparison([row(1.0, 1.0), row(1.0, 1.0, simulated=True)]).summary().without_rule == ("op",)


def test_nothing_to_compare_is_not_a_number() -> None:
    assert all(math.isnan(value) for value in Comparison([]).summary().forward)


def test_z_is_in_standard_errors() -> None:
    predicted, measured = Law(0.0, residual=1.0, error=0.03), Law(0.0, residual=math.exp(2 * 0.1), error=0.04)
    assert z_score(predicted, measured) == pytest.approx(0.1 / math.hypot(0.04, RULE_ERROR))  # sampling counts once
    exact, nearly = Law(0.0, residual=1.0), Law(0.0, residual=1.0001)
    assert abs(z_score(exact, nearly) or 9.0) < 0.1  # even without a stated error, rules are not perfect
    assert z_score(predicted, None) is None
    assert z_score(Law(0.0), measured) is None
    assert z_score(exact, Law(0.0, residual=math.inf)) is None


def test_the_band_holds_what_z_calls_near() -> None:
    low, high = band(2.0, 0.1) or (0.0, 0.0)
    for edge, sign in ((low, -1), (high, 1)):
        assert grad_z_score(Law(0.0, residual=4.0, error=0.1), Law(edge)) == pytest.approx(sign * BAND)
    assert band(0.0, 0.1) is None
    assert band(1.0, math.inf) is None
    assert math.isfinite((band(1.0, 1e6) or (0.0, math.inf))[1])


def test_rows_follow_the_tape_and_the_contract() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    x = torch.randn(64, 8)
    rows = tr.compare(tr.predict(model, x), tr.measure(model, x)).rows
    assert [(r.op, r.module) for r in rows[:3]] == [("linear", "0"), ("relu", "1"), ("linear", "2")]
    assert [r.index for r in rows] == sorted(r.index for r in rows)
    first = rows[0]
    assert first.measured_std == pytest.approx(model[0](x).std(unbiased=False).item(), rel=1e-4)
    assert first.measured_grad_rms is not None
    assert first.predicted_grad_rms is not None


def test_views_are_trivial() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.Unflatten(1, (4, 4)), nn.Flatten())
    x = torch.randn(64, 8)
    rows = tr.compare(tr.predict(model, x), tr.measure(model, x)).rows
    assert [r.trivial for r in rows[:3]] == [False, True, True]


def test_a_call_that_only_one_side_made_is_left_out() -> None:
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)
            self.extra = 0

        def forward(self, x: Tensor) -> Tensor:
            x = self.layer(x)
            for _ in range(self.extra):
                x = torch.tanh(x)
            self.extra += 1
            return x * 2

    model, x = Growing(), torch.randn(16, 8)
    rows = tr.compare(tr.predict(model, x), tr.measure(model, x)).rows
    assert [r.op for r in rows[:2]] == ["linear", "mul"]


def test_a_prediction_that_is_wrong_has_a_large_z() -> None:
    """The inputs that were measured are not those that were predicted for."""
    model = nn.Linear(64, 64)
    forecast = tr.predict(model, torch.randn(256, 64))
    right, wrong = tr.measure(model, torch.randn(256, 64)), tr.measure(model, 3 * torch.randn(256, 64))
    z_right, z_wrong = (tr.compare(forecast, m).rows[0].z for m in (right, wrong))
    assert z_right is not None
    assert z_wrong is not None
    assert abs(z_right) < 5
    assert z_wrong > 10
