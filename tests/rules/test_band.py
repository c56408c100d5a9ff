"""Bands against the spread of real batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import tightrope as tr
from tightrope.compare import BAND
from tightrope.rules.amplitude import ETA
from tightrope.rules.band import batch, coherent
from tightrope.step import measure, predict
from tightrope.tape.initialisers import remember


def net(activation: type[nn.Module], depth: int, width: int = 64) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(width, width)
        nn.init.normal_(linear.weight, std=math.sqrt(2 / width))
        nn.init.zeros_(linear.bias)
        layers += [linear, activation()]
    return nn.Sequential(*layers)


def test_batches_of_log_normal_energies() -> None:
    """ln of the mean of n log-normal numbers, drawn afresh."""
    logs = torch.randn(20_000, 64, dtype=torch.float64).mul(2 * 0.5).exp().mean(1).log()
    shift, variance = batch(ETA * 0.5, 64)
    assert shift == pytest.approx(float(logs.mean()) - 0.5, abs=0.02)
    assert math.sqrt(variance) == pytest.approx(float(logs.std()), rel=0.1)


def test_one_amplitude_makes_no_band() -> None:
    assert batch(ETA * 0, 64) == (pytest.approx(0.0), pytest.approx(0.0))


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.SELU])
def test_the_spread_of_batches_is_the_error(activation: type[nn.Module]) -> None:
    """Each value's std over 200 fresh batches through one net: its spread is the law's error."""
    torch.manual_seed(1)
    model, stds = net(activation, 6, 128), []
    law = tr.predict(model, torch.randn(64, 128))
    with torch.no_grad():
        for _ in range(200):
            x, found = torch.randn(64, 128), []
            for layer in model:
                x = layer(x)
                found.append(float(x.std().log()))
            stds.append(found)
    spread = np.std(stds, axis=0)
    errors = np.array([law.laws[entry.outputs[0]].error for entry in law.tape.entries[: len(spread)]])
    assert np.median(errors / spread) == pytest.approx(1.0, abs=0.25)
    assert float((errors / spread).max()) < 2


def test_bands_of_drawn_weights_cover_real_nets() -> None:
    """A forecast on the meta device beside 24 draws of the same net: 90 % bands hold most of them."""

    def build() -> nn.Sequential:
        return nn.Sequential(*(m for _ in range(6) for m in (nn.Linear(48, 48), nn.ReLU())))

    with remember(), torch.device("meta"):
        abstract, shape = build(), torch.empty(32, 48)
    forecast, forward, backward = predict(abstract, shape), [], []
    for seed in range(24):
        torch.manual_seed(seed)
        rows = tr.compare(forecast, measure(build(), torch.randn(32, 48))).rows
        forward += [abs(row.z) < BAND for row in rows if row.z is not None]
        backward += [abs(row.grad_z) < BAND for row in rows if row.grad_z is not None]
    assert 0.8 < np.mean(forward) <= 0.99
    assert 0.8 < np.mean(backward) <= 0.99


def test_errors_of_one_sign_add_up() -> None:
    assert coherent(coherent(0.0, 0.01), 0.02) == pytest.approx(0.03**2)
