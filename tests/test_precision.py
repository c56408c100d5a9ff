"""What half precision does to a step, against real tensors in half precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import tightrope as tr
from tightrope.precision import ZERO, extreme, precision


@pytest.mark.parametrize("count", [2, 10, 1000, 30000])
def test_largest_of_many_draws(count: int) -> None:
    draws = torch.randn(400, count, generator=torch.Generator().manual_seed(0))
    assert extreme(count) == pytest.approx(float(draws.abs().amax(1).mean()), rel=0.05)


class Loud(nn.Module):
    def __init__(self, gain: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 256), nn.Linear(256, 256)
        nn.init.normal_(self.first.weight, std=gain / 8)
        nn.init.normal_(self.second.weight, std=1 / 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).square())


@pytest.mark.parametrize(("gain", "overflows"), [(1.0, False), (100.0, True)])
def test_overflow_is_foreseen_where_it_happens(gain: float, overflows: bool) -> None:
    torch.manual_seed(0)
    model, x = Loud(gain), torch.randn(256, 64)
    found = precision(tr.predict(model, x))
    squares = model.first(x).detach().square()
    assert found.largest is not None and found.largest.op == "square"
    assert found.largest.value == pytest.approx(float(squares.max()), rel=0.3)
    assert bool(torch.isinf(squares.half()).any()) is overflows
    assert ("overflows" in found.lines()[0]) is overflows


def test_gradients_that_fall_to_zero_and_the_scale_that_keeps_them() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(*(nn.Linear(256, 256) for _ in range(3))), torch.randn(64, 256)

    def loss(output: Tensor) -> Tensor:
        return output.square().sum() * 1e-7

    found = precision(tr.predict(model, x, loss=loss))
    hidden = model[0](x)
    hidden.retain_grad()
    loss(model[2](model[1](hidden))).backward()
    gradient = hidden.grad
    assert gradient is not None and found.faintest is not None and found.faintest.module == "0"
    lost = float((gradient.half() == 0).float().mean())
    assert math.erf(ZERO / found.faintest.value / 2**0.5) == pytest.approx(lost, abs=0.05)
    assert lost > 0.3
    assert float(((gradient * found.loss_scale).half() == 0).float().mean()) < 0.02
    assert found.fits
    assert any("a loss scale of 2^" in line for line in found.lines())


class Stream(nn.Module):
    def __init__(self, share: float) -> None:
        super().__init__()
        self.trunk, self.branch = nn.Linear(128, 128), nn.Linear(128, 128)
        nn.init.normal_(self.trunk.weight, std=1 / 128**0.5)
        nn.init.normal_(self.branch.weight, std=share / 128**0.5)

    def forward(self, x: Tensor) -> Tensor:
        stream = self.trunk(x)
        return stream + self.branch(stream)


@pytest.mark.parametrize(("share", "lost"), [(0.1, False), (5e-4, True)])
def test_a_branch_that_a_bfloat16_stream_does_not_take_up(share: float, lost: bool) -> None:
    torch.manual_seed(0)
    model, x = Stream(share), torch.randn(64, 128)
    nn.init.zeros_(model.branch.bias)
    found = precision(tr.predict(model, x))
    assert found.increment is not None
    assert found.increment.value == pytest.approx(share, rel=0.2)
    stream = model.trunk(x).detach().bfloat16()
    unmoved = float((stream + model.branch(stream.float()).detach().bfloat16() == stream).float().mean())
    assert (found.halves("bf16") < 1) is lost
    assert (unmoved > 0.5) is lost
