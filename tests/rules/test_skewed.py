"""Streams that are rectified behind each join, against the real step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import tightrope as tr


class Stream(nn.Module):
    """Blocks x = relu(x + norm(conv(relu(norm(conv(x))))))."""

    def __init__(self, width: int = 64, depth: int = 8) -> None:
        super().__init__()

        def layer() -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width))

        self.stem = layer()
        self.blocks = nn.ModuleList(nn.Sequential(layer(), nn.ReLU(), layer()) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return x


def test_rectified_streams() -> None:
    forward, backward = [], []
    for seed in range(3):
        torch.manual_seed(seed)
        model, x = Stream(), torch.randn(16, 64, 8, 8)
        rows = [row for row in tr.compare(tr.predict(model, x), tr.measure(model, x)).rows if row.op in ("add", "relu")]
        assert all(row.predicted_std and row.measured_std for row in rows)
        forward.append([math.log(row.predicted_std / row.measured_std) for row in rows])  # type: ignore[operator]
        backward.append([math.log(row.predicted_grad_rms / row.measured_grad_rms) for row in rows])  # type: ignore[operator]
    # A Gaussian stream has a standard deviation that is a tenth too small after eight blocks.
    assert torch.tensor(forward).mean(0).abs().max() < 0.04
    assert torch.tensor(backward).mean(0).abs().max() < 0.1


@pytest.mark.parametrize("order", ["stream first", "branch first"])
def test_either_summand_may_be_the_stream(order: str) -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(16, 96, 1), nn.Conv2d(16, 96, 1)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            a, b = torch.relu(self.first(x)), self.second(y)
            return torch.relu(a + b if order == "stream first" else b + a)

    torch.manual_seed(0)
    model, data = One(), (torch.randn(64, 16, 6, 6), torch.randn(64, 16, 6, 6))
    for layer in (model.first, model.second):
        with torch.no_grad():  # all channels alike
            layer.weight.div_(layer.weight.flatten(1).norm(dim=1)[:, None, None, None])
            layer.bias.zero_()
    row = tr.compare(tr.predict(model, data), tr.measure(model, data)).rows[-3]
    assert row.op == "relu"
    assert row.predicted_std == pytest.approx(row.measured_std, rel=0.01)
