"""The way of signal and gradient, measured against torch's own numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.check import study
from tightrope.checks.gradient.heavy_tailed_gradient import slope_kurtosis
from tightrope.checks.gradient.path import way
from tightrope.checks.layers import cuts
from tightrope.finding import Finding
from tightrope.law import Law

Judge = Callable[..., list[Finding]]


def stack(depth: int, activation: type[nn.Module], gain: float, width: int = 64, bias: float = 0.0) -> nn.Sequential:
    made: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(width, width)
        nn.init.normal_(linear.weight, std=(gain / width) ** 0.5)
        nn.init.normal_(linear.bias, std=bias)
        made += [linear, activation()]
    return nn.Sequential(*made, nn.Linear(width, 4))


def batch(width: int = 64) -> tuple[Tensor, Tensor]:
    return torch.randn(64, width), torch.arange(64) % 4


class Skip(nn.Module):
    def __init__(self, depth: int, factor: float) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(64, 64) for _ in range(depth))
        self.enter, self.head = nn.Linear(64, 64), nn.Linear(64, 4)
        for branch in self.branches:
            nn.init.normal_(branch.weight, std=factor / 8)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for branch in self.branches:
            x = x + torch.tanh(branch(x))
        return self.head(x)


# -- what all ways pass --------------------------------------------------------------------------


def test_every_tensor_of_a_chain_is_a_cut() -> None:
    made = study(stack(3, nn.ReLU, 2.0), batch(), loss=F.cross_entropy)
    assert [cut.entry.op for cut in cuts(made)] == ["linear", "relu"] * 3


def test_tensors_inside_a_branch_are_no_cuts() -> None:
    made = study(Skip(3, 1.0), batch(), loss=F.cross_entropy)
    assert [cut.entry.op for cut in cuts(made)] == ["linear", "add", "add", "add"]


# -- signal --------------------------------------------------------------------------------------


def test_the_share_between_samples_is_that_of_the_batch(judge: Judge) -> None:
    model = stack(10, nn.Sigmoid, 1.0)
    data = batch()
    (found,) = judge("vanishing-signal", model, data)
    y = data[0]
    for layer in model:
        y = layer(y)
        share = float((y.var(0).mean() / y.square().mean()).sqrt().detach())
        if share < 3e-3:
            break
    assert found.evidence[0].measured == pytest.approx(share, rel=0.05)
    assert "predicted" in found.evidence[-1].quantity
    assert found.evidence[-1].measured == pytest.approx(found.evidence[1].measured, rel=0.3)


def test_means_that_stay_do_not_hide_a_lost_signal(judge: Judge) -> None:
    """Large biases keep every rms up; what tells samples apart is gone all the same."""
    assert judge("vanishing-signal", stack(12, nn.ReLU, 0.1, bias=1.0), batch())
    assert judge("vanishing-signal", stack(12, nn.ReLU, 2.0), batch()) == []


def test_a_skip_carries_the_signal_past_dead_branches(judge: Judge) -> None:
    assert judge("vanishing-signal", Skip(20, 1e-6), batch()) == []
    assert judge("vanishing-gradient", Skip(20, 1e-6), batch()) == []


def test_growth_is_counted_from_the_data(judge: Judge) -> None:
    x, y = batch()
    model = stack(2, nn.ReLU, 2.0)
    assert judge("exploding-signal", model, (1e5 * x, y)) == []
    (found,) = judge("exploding-signal", stack(6, nn.ReLU, 50.0), (x, y))
    assert found.evidence[0].measured > 1e3
    assert found.modules[-1] == "11"


# -- gradient ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gain", "name"), [(0.2, "vanishing-gradient"), (2.0, None), (16.0, "exploding-gradient")])
def test_the_ratio_is_that_of_autograd(judge: Judge, gain: float, name: str | None) -> None:
    model, (x, y) = stack(10, nn.LeakyReLU, gain), batch()
    made = way(study(model, (x, y), loss=F.cross_entropy))
    assert made is not None
    first = model[0](x).detach().requires_grad_()
    last = model[1:-1](first)
    last.retain_grad()
    F.cross_entropy(model[-1](last), y).backward()
    assert first.grad is not None
    assert last.grad is not None
    assert made.ratio == pytest.approx(float(first.grad.norm() / last.grad.norm()), rel=0.02)
    assert made.predicted is not None
    assert 0.4 < made.predicted / made.ratio < 2.5
    for check in ("vanishing-gradient", "exploding-gradient"):
        assert bool(judge(check, model, (x, y))) == (check == name)


def test_a_zero_head_is_not_judged(judge: Judge) -> None:
    model = stack(6, nn.ReLU, 2.0)
    nn.init.zeros_(model[-1].weight)  # type: ignore[arg-type]
    assert judge("vanishing-gradient", model, batch()) == []
    assert judge("exploding-gradient", model, batch()) == []


def test_a_model_of_one_layer_has_no_way(judge: Judge) -> None:
    assert way(study(nn.Linear(64, 4), batch(), loss=F.cross_entropy)) is None


class _Stream(nn.Module):
    """Residual blocks on the data themselves, the last weight of each zero, as good recipes have it."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(depth))
        self.ups = nn.ModuleList(nn.Linear(32, 64) for _ in range(depth))
        self.downs = nn.ModuleList(nn.Linear(64, 32) for _ in range(depth))
        self.head = nn.Linear(32, 4)
        for layer in self.downs:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        for norm, up, down in zip(self.norms, self.ups, self.downs, strict=True):
            x = x + down(F.gelu(up(norm(x))))
        return self.head(x)


@pytest.mark.parametrize("name", ["vanishing-signal", "vanishing-gradient", "exploding-signal"])
def test_a_stream_of_data_passes_its_branches_by(judge: Judge, name: str) -> None:
    assert judge(name, _Stream(6), (torch.randn(64, 32), torch.arange(64) % 4)) == []


# -- tails of the gradient -----------------------------------------------------------------------


def tailed(activation: nn.Module, width: int = 16) -> nn.Sequential:
    made: list[nn.Module] = []
    for _ in range(8):
        made += [nn.Linear(width, width), nn.LayerNorm(width), activation]
    return nn.Sequential(*made, nn.LayerNorm(width), nn.Linear(width, 4))


class Power(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z**3


def test_slopes_without_bound_leave_few_samples(judge: Judge) -> None:
    torch.manual_seed(0)
    data = torch.randn(128, 16), torch.arange(128) % 4
    (finding,) = judge("heavy-tailed-gradient", tailed(Power()), data)
    assert finding.evidence[0].expected is not None
    assert finding.evidence[0].measured < finding.evidence[0].expected / 4


def test_the_share_of_the_samples_is_that_of_their_own_gradients() -> None:
    torch.manual_seed(0)
    model, x, y = tailed(Power()), torch.randn(32, 16), torch.arange(32) % 4
    made = study(model, (x, y), loss=F.cross_entropy)
    energy = []
    for n in range(32):
        z = model[0](x[n : n + 1])
        (gradient,) = torch.autograd.grad(F.cross_entropy(model[1:](z), y[n : n + 1]), z)
        energy.append(float(gradient.double().square().sum()))
    share = sum(energy) ** 2 / (32 * sum(e**2 for e in energy))
    assert made.measurement.effective[made.tape.entries[0].outputs[0]] == pytest.approx(share, rel=1e-3)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.Tanh(), nn.SiLU(), nn.Softplus()])
def test_bounded_slopes_keep_the_samples(judge: Judge, activation: nn.Module) -> None:
    torch.manual_seed(0)
    data = torch.randn(128, 16), torch.arange(128) % 4
    assert judge("heavy-tailed-gradient", tailed(activation), data) == []


@pytest.mark.parametrize(("function", "kappa"), [(torch.relu, 2.0), (lambda z: z**3, 35 / 3), (lambda z: z * 2, 1.0)])
def test_the_kurtosis_of_a_slope(function: Callable[[Tensor], Tensor], kappa: float) -> None:
    made = study(nn.Sequential(nn.Linear(4, 4), _Apply(function), nn.Linear(4, 2)), torch.randn(64, 4))
    entry = made.tape.entries[1]
    assert slope_kurtosis(entry, Law(0.0, residual=1.0)) == pytest.approx(kappa, rel=3e-3)


class _Apply(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, z: Tensor) -> Tensor:
        return self.function(z)


class _Turned(nn.Module):
    """Time-first data that are turned and flattened into a plain net."""

    def __init__(self) -> None:
        super().__init__()
        self.net = stack(3, nn.Tanh, 2.0, width=60)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.transpose(0, 1).reshape(x.shape[1], -1))


@pytest.mark.parametrize(("time", "samples"), [(10, 32), (10, 40), (10, 7)])
def test_samples_in_the_second_dimension(judge: Judge, time: int, samples: int) -> None:
    torch.manual_seed(0)
    data = (torch.randn(time, samples, 60 // time), torch.arange(samples) % 4)
    assert judge("vanishing-signal", _Turned(), data) == []


# -- a batch of indices --------------------------------------------------------------------------


class Tokens(nn.Module):
    def __init__(self, std: float) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(50, 64), nn.Embedding(12, 64)
        self.stack = stack(12, nn.ReLU, 64 * std**2)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids) + self.places(torch.arange(ids.shape[1]))
        made: Tensor = self.stack(x).mean(1)
        return made


@pytest.mark.parametrize(
    ("std", "found"), [(0.02, "vanishing-gradient"), (1.0, "exploding-gradient"), ((2 / 64) ** 0.5, None)]
)
def test_the_way_from_a_table_of_tokens_is_followed(judge: Judge, std: float, found: str | None) -> None:
    torch.manual_seed(0)
    data = torch.randint(0, 50, (32, 12)), torch.arange(32) % 4
    names = ("vanishing-gradient", "exploding-gradient", "vanishing-signal", "exploding-signal")
    assert [name for name in names if judge(name, Tokens(std), data)][:1] == ([found] if found else [])


def test_positions_are_none_of_the_batch() -> None:
    tape = study(Tokens(0.1), (torch.randint(0, 50, (32, 12)), torch.arange(32) % 4), loss=F.cross_entropy).tape
    looked_up = [entry for entry in tape.entries if entry.op == "embedding"]
    assert [entry.outputs[0] in tape.parametric for entry in looked_up] == [False, True]
    assert [entry.outputs[0] in tape.of_batch for entry in looked_up] == [True, False]
