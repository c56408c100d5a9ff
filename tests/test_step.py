"""One step of a model: how it is called, what its loss is, and that it leaves no trace."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Normal, kl_divergence

import tightrope as tr
from tightrope.inputs import bind
from tightrope.predict import default_projection
from tightrope.step import preserved, scalar


def layer() -> nn.Linear:
    return nn.Linear(4, 3)


@dataclass
class Output:
    logits: Tensor
    loss: Tensor | None = None


def test_arguments() -> None:
    x, model = torch.randn(2, 4), layer()
    assert bind(model, x) == ((x,), {})
    assert bind(model, (x, 1)) == ((x, 1), {})
    assert bind(model, [x]) == ((x,), {})
    assert bind(model, {"input": x}) == ((), {"input": x})
    odd = object()
    assert bind(model, odd) == ((odd,), {})


def test_a_dataclass_is_unpacked_only_where_the_model_takes_its_fields() -> None:
    @dataclass
    class Batch:
        input: Tensor

    @dataclass
    class Other:
        pixels: Tensor

    x = torch.randn(2, 4)
    assert bind(layer(), Batch(x)) == ((), {"input": x})
    other = Other(x)
    assert bind(layer(), other) == ((other,), {})


def test_the_loss_is_the_users_or_the_outputs_or_a_projection() -> None:
    out = layer()(torch.randn(2, 4))
    given = out.sum()
    assert scalar(out, lambda o: o.sum()) == given
    assert scalar({"loss": given, "logits": out}, None) is given
    assert scalar(Output(out, given), None) is given
    projected = (out * default_projection((2, 3))).sum()
    for output in (out, (out,), {"logits": out}, OrderedDict(logits=out), Output(out)):
        assert torch.equal(scalar(output, None), projected)


def test_the_projection_is_always_the_same_and_standard_normal() -> None:
    first, second = default_projection((200, 50)), default_projection((200, 50))
    assert torch.equal(first, second)
    assert float(first.std()) == pytest.approx(1.0, abs=0.03)


def test_everything_is_put_back_even_after_an_exception() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout())
    model[0].weight.grad = gradient = torch.ones(3, 4)
    model[2].eval()
    rng, statistics = torch.get_rng_state(), model[1].running_mean.clone()

    def disturb() -> None:
        with preserved(model):
            assert model[0].weight.grad is None
            model(torch.randn(8, 4)).sum().backward()
            model.eval()
            raise KeyError

    with pytest.raises(KeyError):
        disturb()
    assert model[0].weight.grad is gradient
    assert model[0].bias.grad is None
    assert model.training
    assert model[0].training
    assert not model[2].training
    assert torch.equal(model[1].running_mean, statistics)
    assert int(model[1].num_batches_tracked) == 0
    assert torch.equal(torch.get_rng_state(), rng)


def test_predicting_inside_no_grad_still_gives_gradients() -> None:
    with torch.no_grad():
        forecast = tr.predict(layer(), torch.randn(8, 4))
        measurement = tr.measure(layer(), torch.randn(8, 4))
    assert forecast.gradients
    assert measurement.gradients


def test_a_meta_input_is_taken_as_standard_normal() -> None:
    model = nn.Linear(400, 400)
    real = tr.predict(model, torch.randn(512, 400))
    meta = tr.predict(model, torch.randn(512, 400, device="meta"))
    output = meta.tape.entries[0].outputs[0]
    assert meta.laws[output].std == pytest.approx(real.laws[output].std, rel=0.05)


def test_prediction_is_theory_and_uses_no_random_numbers() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Dropout(0.3), nn.Linear(32, 4))
    x = torch.randn(64, 16)
    first = tr.predict(model, x)
    torch.manual_seed(99)
    second = tr.predict(model, x)
    assert first.laws == second.laws
    assert first.gradients == second.gradients


class Drawing(nn.Module):
    """A latent variable by `torch.distributions`, which looks at the numbers of its arguments and broadcasts them."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
        self.decode = nn.Linear(32, 64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.encode(x).chunk(2, -1)
        q = Normal(mean, (logvar / 2).exp())
        return self.decode(q.rsample()), kl_divergence(q, Normal(torch.zeros(32), 1.0)).sum(-1)


def test_draws_of_torch_distributions_are_predicted() -> None:
    torch.manual_seed(0)
    model, x = Drawing(), torch.randn(512, 64)

    def loss(output: tuple[Tensor, Tensor]) -> Tensor:
        return (output[0] - x.to(output[0].device)).square().sum(-1).mean() + output[1].mean()

    held = Distribution._validate_args
    forecast, measurement = tr.predict(model, x, loss=loss), tr.measure(model, x, loss=loss)
    assert Distribution._validate_args is held
    assert not forecast.unknown and not forecast.simulated
    rows = [row for row in tr.compare(forecast, measurement).rows if row.op in ("linear", "chunk", "expand", "exp")]
    assert {row.op for row in rows} == {"linear", "chunk", "expand", "exp"}
    for row in rows:
        if row.predicted_std:
            assert row.predicted_std == pytest.approx(row.measured_std, rel=0.1)
            assert row.predicted_grad_rms == pytest.approx(row.measured_grad_rms, rel=0.4)


def test_recording_changes_nothing_of_a_broadcast() -> None:
    a, b = torch.randn(3, 1, requires_grad=True), torch.randn(4, requires_grad=True)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(a.detach()), nn.Parameter(b.detach())

        def forward(self, x: Tensor) -> Tensor:
            left, right = torch.broadcast_tensors(self.a * x, self.b)
            assert left.shape == right.shape == (3, 4)
            return (left * right).sum()

    measurement = tr.measure(Both(), torch.ones(3, 1), loss=lambda out: out)
    assert [entry.op for entry in measurement.tape.entries].count("expand") == 2
