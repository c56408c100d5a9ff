"""A measured step agrees with torch's own numbers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tightrope as tr
from tightrope.measure.measurement import count_units
from tightrope.roles import Axes, Axis, Role
from tightrope.tape import Kind


def conv_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 5))


def by_hand(model: nn.Sequential, x: Tensor, y: Tensor) -> tuple[list[Tensor], Tensor]:
    """Outputs of all layers with their gradients retained, and the loss."""
    outputs = []
    for layer in model:
        x = layer(x)
        x.retain_grad()
        outputs.append(x)
    loss = F.cross_entropy(x, y)
    loss.backward()
    return outputs, loss


def test_laws_and_gradients_agree_with_autograd() -> None:
    model, x, y = conv_net(), torch.randn(16, 3, 8, 8), torch.randint(5, (16,))
    measurement = tr.measure(model, x, loss=lambda out: F.cross_entropy(out, y))
    outputs, loss = by_hand(model, x, y)
    assert measurement.loss == pytest.approx(loss.item())
    ids = [entry.outputs[0] for entry in measurement.tape.entries[:5]]
    for number, real in zip(ids, outputs, strict=True):
        assert real.grad is not None
        assert measurement.laws[number].std == pytest.approx(float(real.std(unbiased=False)), rel=1e-4)
        assert measurement.gradients[number].rms == pytest.approx(float(real.grad.square().mean().sqrt()), rel=1e-4)
    for value in measurement.tape.value_of(Kind.PARAMETER):
        gradient = dict(model.named_parameters())[value.name or ""].grad
        assert gradient is not None
        assert measurement.gradients[value.id].rms == pytest.approx(float(gradient.square().mean().sqrt()), rel=1e-4)


def test_a_branch_gathers_the_gradients_of_both_uses() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            h = self.inner(x)
            return h + torch.tanh(h)

    model, x = Residual(), torch.randn(8, 6)
    measurement = tr.measure(model, x, loss=lambda out: out.square().mean())
    h = model.inner(x)
    h.retain_grad()
    (h + torch.tanh(h)).square().mean().backward()
    assert h.grad is not None
    number = measurement.tape.entries[0].outputs[0]
    assert measurement.gradients[number].rms == pytest.approx(float(h.grad.square().mean().sqrt()), rel=1e-4)


def test_measuring_changes_nothing() -> None:
    model = conv_net()
    model[4].bias.grad = torch.ones(5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rng = torch.get_rng_state()
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    tr.measure(model, x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(model[4].bias.grad, torch.ones(5))
    assert model[0].weight.grad is None
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_evaluation_mode_is_kept_and_respected() -> None:
    model = nn.Sequential(nn.Linear(4, 400), nn.Dropout(0.5)).eval()
    measurement = tr.measure(model, torch.randn(50, 4))
    linear, dropout = (entry.outputs[0] for entry in measurement.tape.entries[:2])
    assert measurement.laws[dropout].std == measurement.laws[linear].std
    assert not model.training


CHANNELS_LAST = Axes(((Axis(Role.SAMPLE, 4),), (Axis(Role.SITE, 3),), (Axis(Role.CHANNEL, 5),)))


def test_silent_channels_are_those_zero_on_the_whole_batch() -> None:
    x = torch.rand(4, 3, 5) + 0.1
    x[:, :, 1] = 0.0
    x[0, 0, 2] = 0.0
    units = count_units(x, CHANNELS_LAST)
    assert units.channels == 5
    assert units.silent == pytest.approx(1 / 5)
    assert units.zero == pytest.approx((12 + 1) / 60)
    assert (units.low, units.high) == (0.0, pytest.approx(float(x.max())))


def test_the_first_number_that_is_not_finite_is_found() -> None:
    x = torch.randn(4, 3, 5)
    x[2, 1, 4] = math.nan
    x[3, 0, 0] = math.inf
    units = count_units(x, CHANNELS_LAST)
    assert units.nonfinite == 2
    assert units.first_nonfinite == (2, 1, 4)
