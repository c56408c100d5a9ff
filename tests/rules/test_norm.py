"""Normalisers against real ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tightrope as tr
from oracles import check_rule, outcome
from tightrope.roles import default_axes
from tightrope.rules.norm import _inverse, pool
from tightrope.rules.state import State
from tightrope.tape import Kind

CASES = {
    "batch": (nn.BatchNorm2d(16), (8, 16, 5, 5)),
    "batch-1d": (nn.BatchNorm1d(32), (16, 32)),
    "batch-plain": (nn.BatchNorm2d(16, affine=False), (8, 16, 5, 5)),
    "layer": (nn.LayerNorm(32), (8, 10, 32)),
    "layer-two-dims": (nn.LayerNorm((5, 16)), (8, 4, 5, 16)),
    "group": (nn.GroupNorm(4, 32), (8, 32, 5, 5)),
    "group-one": (nn.GroupNorm(1, 32), (8, 32, 5, 5)),
    "instance": (nn.InstanceNorm2d(16, affine=True), (8, 16, 6, 6)),
    "rms": (nn.RMSNorm(32), (8, 10, 32)),
}


def made(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for name, parameter in layer.named_parameters():
        (nn.init.uniform_(parameter, 0.5, 1.5) if name == "weight" else nn.init.normal_(parameter))
    return layer


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mean", [0.0, 2.0])
def test_laws_and_gradients(name: str, mean: float) -> None:
    layer, shape = CASES[name]
    check_rule(made(layer), shape, mean=mean, forward=0.01, backward=0.03, parameters=0.06)


@pytest.mark.parametrize("batch", [6, 8, 32])
def test_few_rows_raise_the_gradient(batch: int) -> None:
    """dx of batch norm over N independent rows: (N - 2) / (N - 3) / variance, against many batches."""
    found = outcome(nn.BatchNorm1d(64, affine=False), (batch, 64), batches=200)
    assert found.gradient.agrees(found.predicted_gradient, relative=0.06)


def test_running_statistics_are_an_affine_map() -> None:
    layer = nn.BatchNorm2d(8).eval()
    layer.running_mean.fill_(0.5)
    layer.running_var.fill_(4.0)
    found = check_rule(layer, (8, 8, 6, 6), mean=1.0, parameters=0.5)
    assert found.predicted_std == pytest.approx(0.25, rel=0.05)


def test_instance_norm_deletes_what_sites_share() -> None:
    forecast = tr.predict(nn.InstanceNorm2d(8, affine=True), torch.randn(32, 8, 6, 6) + 3 * torch.randn(32, 8, 1, 1))
    out = next(e for e in forecast.tape.entries if e.op == "instance_norm").outputs[0]
    law = forecast.laws[out]
    assert law.sample == pytest.approx(0.0, abs=1e-6)
    assert law.variance == pytest.approx(1.0, rel=1e-3)


def test_eps_damps_a_small_signal() -> None:
    forecast = tr.predict(nn.LayerNorm(64), 1e-3 * torch.randn(64, 64))
    out = next(e for e in forecast.tape.entries if e.op == "layer_norm").outputs[0]
    assert forecast.laws[out].variance == pytest.approx(1e-6 / (1e-6 + 1e-5), rel=0.05)


def test_what_sites_share_over_samples_does_not_fluctuate() -> None:
    """A map of means that all samples share adds to the variance over a batch, and nothing to its fluctuation."""
    torch.manual_seed(0)
    axes = default_axes((8, 1, 2, 2), 8)
    site = 0.4
    y = State.of(axes, 0.0, constant=-site / 4, site=site, residual=0.7)
    over = pool(axes, (0, 2, 3), 0.0)
    shape = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64) * (site * 0.75) ** 0.5
    drawn = shape + 0.7**0.5 * torch.randn(200_000, 8, 4, dtype=torch.float64)
    variance = drawn.var((1, 2), correction=0)
    measured = float((1 / variance).mean() * variance.mean())
    assert float(_inverse(y, over)) == pytest.approx(measured, rel=0.01)


def test_a_bias_in_front_of_batch_norm_has_no_gradient() -> None:
    """What leaves batch norm on the way back sums to zero over the batch."""
    torch.manual_seed(0)
    forecast = tr.predict(nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Tanh()), torch.randn(24, 16))
    grads = {value.name: forecast.gradients[value.id].rms for value in forecast.tape.value_of(Kind.PARAMETER)}
    assert grads["0.bias"] < 1e-6 * grads["0.weight"]
