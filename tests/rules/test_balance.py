"""Sums of gradients behind a normaliser over the batch, against many batches of the real step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tightrope as tr
from tightrope.tape.tape import Kind


class Net(nn.Module):
    """Convolutions of rectified maps, each with a batch norm behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 48, 3, padding=1), nn.Conv2d(48, 48, 3, padding=1)
        self.norm, self.last = nn.BatchNorm2d(48), nn.BatchNorm2d(48)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.first(x)))
        return torch.relu(self.last(self.second(hidden)))


def rms(model: Net, batches: int = 24) -> dict[str, float]:
    """Root mean square of each parameter's gradient over batches and random projections."""
    torch.manual_seed(1)
    found: dict[str, Tensor] = {name: torch.zeros(()) for name, _ in model.named_parameters()}
    for _ in range(batches):
        model.zero_grad()
        out = model(torch.randn(8, 3, 12, 12))
        (out * torch.randn(out.shape)).sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            found[name] = found[name] + parameter.grad.square().mean() / batches
    return {name: float(value.sqrt()) for name, value in found.items()}


def test_the_inputs_mean_meets_a_gradient_that_sums_to_zero() -> None:
    torch.manual_seed(0)
    model = Net()
    forecast = tr.predict(model, torch.randn(8, 3, 12, 12))
    predicted = {v.name: forecast.gradients[v.id].rms for v in forecast.tape.value_of(Kind.PARAMETER)}
    measured = rms(model)
    for name in ("first.weight", "second.weight", "norm.bias", "last.bias"):
        assert predicted[name] == pytest.approx(measured[name], rel=0.15), name
