"""Linear maps against this very network on many samples, and against many draws of the weights."""

from __future__ import annotations

import statistics

import pytest
import torch
from torch import Tensor, nn

import tightrope as tr
from tightrope.roles import Axes, Axis, Role
from tightrope.rules.linear import mapped
from tightrope.rules.state import State
from tightrope.tape import Kind


def test_channel_means_and_variances_of_this_very_layer() -> None:
    layer = nn.Linear(40, 30)
    x = torch.randn(20_000, 40) * torch.linspace(0.1, 3, 40) + torch.linspace(-1, 1, 40)
    forecast = tr.predict(layer, x)
    state = forecast.states[forecast.tape.entries[0].outputs[0]]
    real = layer(x).detach().double()
    assert torch.allclose(state.mean.flatten(), real.mean(0), atol=0.05)
    assert torch.allclose(state.variance.flatten(), real.var(0), rtol=0.05)


def test_correlated_inputs_are_not_taken_as_independent() -> None:
    """All inputs equal: the sum over them is coherent, n times what independent ones would give."""
    layer = nn.Linear(64, 64, bias=False)
    x = torch.randn(4096, 1).expand(-1, 64).contiguous()
    row = tr.compare(tr.predict(layer, x), tr.measure(layer, x)).rows[0]
    assert row.predicted_std == pytest.approx(row.measured_std, rel=0.02)


def test_gradients_of_input_weight_and_bias() -> None:
    model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 32))
    x = torch.randn(512, 64)
    forecast, measurement = tr.predict(model, x), tr.measure(model, x)
    real = {v.name: measurement.gradients[v.id].rms for v in measurement.tape.value_of(Kind.PARAMETER)}
    for value in forecast.tape.value_of(Kind.PARAMETER):
        few = len(value.shape) == 1  # the sum over the batch is one draw for each of a bias's few elements
        assert forecast.gradients[value.id].rms == pytest.approx(real[value.name], rel=0.4 if few else 0.12), value.name


def test_the_gradient_of_a_weight_adds_up_over_sites_that_share_a_sample() -> None:
    """Tokens of a sequence that are alike give coherent gradients."""
    layer = nn.Linear(32, 32)
    x = torch.randn(256, 1, 32) + 0.3 * torch.randn(256, 16, 32)
    direction = torch.randn(256, 32)

    def loss(out: Tensor) -> Tensor:
        return (out.mean(1) * direction).sum()

    forecast, measurement = tr.predict(layer, x, loss=loss), tr.measure(layer, x, loss=loss)
    names = {v.name: v.id for v in measurement.tape.value_of(Kind.PARAMETER)}
    value = next(v for v in forecast.tape.value_of(Kind.PARAMETER) if v.name == "weight")
    assert forecast.gradients[value.id].rms == pytest.approx(measurement.gradients[names["weight"]].rms, rel=0.15)


AXES = Axes(((Axis(Role.SAMPLE, 200),), (Axis(Role.CHANNEL, 50),)))
WEIGHT = Axes(((Axis(Role.CHANNEL, 50),), (Axis(Role.CHANNEL, 50),)))


@pytest.mark.parametrize("mean", [0.0, 0.1])
def test_random_weights_by_their_law_alone(mean: float) -> None:
    """Averages over draws of weights and data; the constant component is what the data's own mean becomes."""
    x = State.of(AXES, 0.5, constant=0.3, sample=1.0)
    weight = State.of(WEIGHT, mean, residual=0.04)
    law = mapped(x, weight, AXES).law()
    constants, samples = [], []
    for seed in range(60):
        g = torch.Generator().manual_seed(seed)
        shift = 0.5 + 0.3**0.5 * torch.randn(50, generator=g)
        data = shift + torch.randn(200, 50, generator=g)
        z = data @ (mean + 0.2 * torch.randn(50, 50, generator=g)).T
        constants.append(float(z.mean(0).square().mean()))
        samples.append(float(z.var(0).mean()))
    assert law.sample == pytest.approx(statistics.mean(samples), rel=0.05)
    assert law.mean**2 + law.constant == pytest.approx(statistics.mean(constants), rel=0.15)


@pytest.mark.parametrize("norm", [False, True])
def test_parameters_whose_gradient_comes_from_one_token(norm: bool) -> None:
    """A class token alone is read: its gradient is no gradient of the other sites, whatever they share."""
    layer = nn.LayerNorm(32) if norm else nn.Linear(32, 32)
    x = torch.randn(256, 1, 32) + 0.5 * torch.randn(256, 16, 32)
    direction = torch.randn(256, 32)

    def loss(out: Tensor) -> Tensor:
        return (out[:, 0] * direction).sum()

    forecast, measurement = tr.predict(layer, x, loss=loss), tr.measure(layer, x, loss=loss)
    real = {v.name: measurement.gradients[v.id].rms for v in measurement.tape.value_of(Kind.PARAMETER)}
    for value in forecast.tape.value_of(Kind.PARAMETER):
        assert forecast.gradients[value.id].rms == pytest.approx(real[value.name], rel=0.15), value.name
