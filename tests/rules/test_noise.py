"""Dropout against real masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tightrope as tr


def test_dropout_keeps_the_mean_and_raises_the_second_moment() -> None:
    layer = nn.Sequential(nn.Linear(20, 400), nn.Dropout(0.4), nn.Linear(400, 400))
    x = torch.randn(2000, 20) + 1.0
    comparison = tr.compare(tr.predict(layer, x), tr.measure(layer, x)).rows
    for row in comparison[:3]:
        assert row.predicted_std == pytest.approx(row.measured_std, rel=0.05)
        assert row.predicted_grad_rms == pytest.approx(row.measured_grad_rms, rel=0.1)


@pytest.mark.parametrize("p", [0.0, 0.999_999])
def test_the_edges_of_dropout(p: float) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(p))
    x = torch.randn(64, 8)
    forecast = tr.predict(model, x)
    before, after = (forecast.laws[e.outputs[0]] for e in forecast.tape.entries[:2])
    assert after.mean == pytest.approx(before.mean)
    assert after.std >= before.std


def test_evaluation_mode_drops_nothing() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)).eval()
    forecast = tr.predict(model, torch.randn(64, 8))
    before, after = (forecast.laws[e.outputs[0]] for e in forecast.tape.entries[:2])
    assert after == before


def test_everything_dropped_is_zero() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(1.0))
    forecast = tr.predict(model, torch.randn(64, 8))
    assert forecast.laws[forecast.tape.entries[1].outputs[0]].rms == 0.0


def test_what_is_made_of_chance_alone_is_no_row_of_its_own() -> None:
    """Its law is the program's word: a mask of few draws says nothing of the forecast."""

    class DropPath(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mask = x.new_empty(len(x), 1).bernoulli_(0.9).div_(0.9)
            return x * mask + torch.randn_like(x) * x

    x = torch.randn(8, 16, requires_grad=True)
    model = nn.Sequential(nn.Linear(16, 16), DropPath())
    rows = tr.compare(tr.predict(model, x), tr.measure(model, x)).rows
    told = {row.op for row in rows if not row.trivial}
    assert told.isdisjoint({"bernoulli", "div", "randn_like"})
    assert {"linear", "mul", "add"} <= told
