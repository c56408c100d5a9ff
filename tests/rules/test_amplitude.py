"""The spread of samples' amplitudes, against real networks run on many samples."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import tightrope as tr
from tightrope.rules.amplitude import ETA, OMEGA, moved, of_rows, recalled


def gelu_stack(depth: int, width: int) -> nn.Sequential:
    """A GELU net at the ReLU gain: its map q -> E[f^2] is convex, so that loud samples grow against quiet ones."""
    generator = torch.Generator().manual_seed(3)
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(width, width)
        with torch.no_grad():
            linear.weight.copy_(torch.randn(width, width, generator=generator) * math.sqrt(2 / width))
            linear.bias.zero_()
        layers += [linear, nn.GELU()]
    return nn.Sequential(*layers)


def test_deep_gelu_net_is_predicted_where_one_amplitude_fails() -> None:
    net = gelu_stack(10, 256)
    x = torch.randn(4096, 256, generator=torch.Generator().manual_seed(5))
    comparison = tr.compare(tr.predict(net, x), tr.measure(net, x))
    forward = comparison.summary().forward
    assert forward[0] < 0.02
    assert forward[1] < 0.06
    with torch.no_grad():  # the premise: by the end samples differ so much that one amplitude cannot stand for all
        energy = net(x).square().mean(1)
    assert float(energy.std() / energy.mean()) > 0.5


def test_a_net_whose_norms_fan_out_stays_within_reach() -> None:
    """At 40 layers one sample in thousands holds most of the second moment; it must not lift what the others do."""
    net = gelu_stack(40, 128)
    x = torch.randn(256, 128, generator=torch.Generator().manual_seed(5))
    comparison = tr.compare(tr.predict(net, x), tr.measure(net, x))
    assert comparison.summary().forward[2] < 4
    assert all(abs(row.z or 9.0) < 3 for row in comparison.rows if not row.trivial)


def test_samples_of_one_norm_have_no_spread() -> None:
    x = torch.randn(100, 64, generator=torch.Generator().manual_seed(0))
    unit = x / x.square().mean(1, keepdim=True).sqrt()
    level = of_rows(unit)
    assert level is None or float(level.abs().max()) < 1e-5


def test_spread_of_rows_is_that_of_their_log_norms() -> None:
    generator = torch.Generator().manual_seed(1)
    loud = torch.exp(0.4 * torch.randn(20000, 1, generator=generator))
    x = loud * torch.randn(20000, 256, generator=generator)
    level = of_rows(x.double())
    assert level is not None
    assert math.sqrt(float((OMEGA * level.square()).sum())) == pytest.approx(math.sqrt(0.4**2 + 0.5 / 256), rel=0.02)


def test_a_power_multiplies_the_log_amplitude() -> None:
    before = 0.3 * ETA
    level, memory = moved(torch.exp(2 * 1.5 * before), 0.0)
    assert level is not None
    assert torch.allclose(level, 1.5 * before)
    assert memory == pytest.approx(1.0)


def test_fresh_spread_adds_in_variance_and_weakens_the_memory() -> None:
    level, memory = moved(torch.exp(2 * 0.3 * ETA), 0.16)
    assert level is not None
    assert float((OMEGA * level.square()).sum()) == pytest.approx(0.25)
    assert memory == pytest.approx(0.6)


def test_a_forgotten_gain_is_even() -> None:
    assert torch.allclose(recalled(torch.exp(ETA), 0.0), torch.ones(len(ETA), dtype=torch.float64))
