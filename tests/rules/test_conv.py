"""Convolutions against real ones on many batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import tightrope as tr
from oracles import check_rule, outcome


def made(layer: nn.Module, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer


CASES = {
    "1d": (nn.Conv1d(8, 12, 3, padding=1), (8, 8, 20)),
    "valid": (nn.Conv2d(6, 10, 3), (8, 6, 9, 9)),
    "padded": (nn.Conv2d(6, 10, 3, padding=1), (8, 6, 9, 9)),
    "wide": (nn.Conv2d(6, 10, 5, padding=2), (8, 6, 5, 5)),
    "strided": (nn.Conv2d(6, 10, 3, stride=2, padding=1), (8, 6, 9, 9)),
    "dilated": (nn.Conv2d(6, 10, 3, dilation=2, padding=2), (8, 6, 9, 9)),
    "same": (nn.Conv2d(6, 10, 4, padding="same"), (8, 6, 9, 9)),
    "grouped": (nn.Conv2d(8, 12, 3, padding=1, groups=4), (8, 8, 9, 9)),
    "depthwise": (nn.Conv2d(16, 16, 3, padding=1, groups=16), (8, 16, 9, 9)),
    "pointwise": (nn.Conv2d(6, 10, 1), (8, 6, 9, 9)),
    "3d": (nn.Conv3d(4, 6, 3, padding=1), (8, 4, 5, 5, 5)),
    "transposed": (nn.ConvTranspose2d(6, 10, 4, stride=2, padding=1), (8, 6, 6, 6)),
    "transposed-1d": (nn.ConvTranspose1d(6, 10, 3, stride=2, output_padding=1), (8, 6, 9)),
    "transposed-grouped": (nn.ConvTranspose2d(8, 12, 3, stride=2, groups=4), (8, 8, 6, 6)),
    "no-bias": (nn.Conv2d(6, 10, (3, 1), padding=(1, 0), bias=False), (8, 6, 9, 9)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mean", [0.0, 0.8])
def test_laws_and_gradients(name: str, mean: float) -> None:
    layer, shape = CASES[name]
    # One projection of the loss stands for all: its own spread is what `backward` and `parameters` allow.
    check_rule(made(layer), shape, mean=mean, forward=0.01, backward=0.02, parameters=0.05)


def test_what_sites_share_adds_up_coherently() -> None:
    layer = made(nn.Conv2d(6, 10, 3, padding=1, bias=False))
    nn.init.constant_(layer.weight, 0.2)
    found = outcome(layer, (64, 6, 8, 8), shared=1.0)
    assert found.std.agrees(found.predicted_std, relative=0.15)
    alone = outcome(layer, (64, 6, 8, 8), shared=0.0)
    assert found.predicted_std > 3 * alone.predicted_std


@pytest.mark.parametrize("size", [4, 8])
def test_borders_lower_the_signal(size: int) -> None:
    """Four padded layers of weights that keep the interior's variance: the border eats a known part of it."""
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Conv2d(64, 64, 3, padding=1, bias=False) for _ in range(4)])
    for layer in net:
        nn.init.normal_(layer.weight, std=(1 / (64 * 9)) ** 0.5)
    x = torch.randn(64, 64, size, size)
    with torch.no_grad():
        real = float(net(x).var())
    predicted = tr.predict(net, x)
    out = [e for e in predicted.tape.entries if e.op == "conv2d"][-1].outputs[0]
    assert predicted.laws[out].variance == pytest.approx(real, rel=0.04)
    assert predicted.laws[out].variance < 0.9


def test_a_large_map_stays_collapsed() -> None:
    forecast = tr.predict(nn.Conv2d(3, 64, 3, padding=1), torch.randn(2, 3, 96, 96))
    out = next(e for e in forecast.tape.entries if e.op == "conv2d").outputs[0]
    assert forecast.states[out].residual.numel() == 64


def test_padding_mode_is_seen() -> None:
    check_rule(
        made(nn.Conv2d(6, 10, 3, padding=1, padding_mode="reflect")),
        (8, 6, 9, 9),
        forward=0.01,
        backward=0.03,
        parameters=0.05,
    )


class Block(nn.Module):
    """Two convolutions, each with a batch norm behind it."""

    def __init__(self, second: nn.Module) -> None:
        super().__init__()
        self.first, self.one = nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.second, self.two = second, nn.BatchNorm2d(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.two(self.second(torch.relu(self.one(self.first(x)))))).mean((2, 3))


@pytest.mark.parametrize("groups", [1, 16])
def test_a_gradient_that_sums_to_zero_meets_no_mean(groups: int) -> None:
    """Behind a batch norm the mean of a convolution's input adds nothing to the gradient of its weight, and the bias
    before it gets a small share of what independent sites would give.
    """
    ratios: dict[str, list[float]] = {"second.weight": [], "one.bias": [], "first.weight": []}
    for seed in range(10):
        torch.manual_seed(seed)
        net = Block(nn.Conv2d(16, 16, 3, padding=1, groups=groups, bias=False))
        x = torch.randn(8, 8, 8, 8)
        forecast, measured = tr.predict(net, x), tr.measure(net, x)
        theirs = {v.name: measured.gradients[v.id].rms for v in measured.tape.values.values() if v.name in ratios}
        for value in forecast.tape.values.values():
            if value.name in ratios:
                ratios[value.name].append(forecast.gradients[value.id].rms / theirs[value.name])
    for name, found in ratios.items():
        mean, error = float(np.mean(found)), float(np.std(found)) / 10**0.5
        assert abs(mean - 1) < 0.12 + 3 * error, (name, mean, error)
