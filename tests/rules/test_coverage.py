"""A cheap subset of common layers: each has a law and a gradient, none raises, and what is simulated is counted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tightrope as tr
from oracles import check_rule

Function = Callable[[Tensor], Tensor]
MAP, LARGE, ROWS = (24, 4, 6, 6), (8, 2, 32, 32), (24, 5, 16)

RULED: dict[str, tuple[Function, tuple[int, ...]]] = {
    "gate": (F.glu, ROWS),
    "windows": (lambda x: F.unfold(x, 3, stride=3), MAP),
    "windows that overlap": (lambda x: F.unfold(x, 3, padding=1), MAP),
    "windows put back": (lambda x: F.fold(x.flatten(2), (5, 5), 2), (24, 12, 4, 4)),
    "windows of a dimension": (lambda x: x.unfold(1, 3, 1), ROWS),
    "part written": (lambda x: torch.cat([x[..., 8:], x[..., :8]], -1).index_fill(1, torch.tensor([0]), 0.0), ROWS),
    "maximum behind an infinite border": (
        lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-torch.inf), 3, 2),
        LARGE,
    ),
}
SIMULATED: dict[str, Function] = {
    "one-hot of the largest": lambda x: x * F.one_hot(x.argmax(-1), 16),
    "routed": lambda x: torch.zeros_like(x).scatter(-1, x.topk(2, -1).indices, x.topk(2, -1).values),
    "ordered": lambda x: x.gather(1, x.argsort(1)),
    "rotated": lambda x: torch.view_as_real(
        torch.view_as_complex(x.reshape(24, 5, 8, 2)) * torch.polar(torch.ones(8), torch.arange(8.0))
    ).flatten(2),
    "largest of two": lambda x: torch.maximum(x, 0.5 * x.roll(1, 1)),
}


@pytest.mark.parametrize("name", RULED)
def test_laws_by_rule(name: str) -> None:
    function, shape = RULED[name]
    check_rule(function, shape, forward=0.06, backward=0.06, may_simulate=name == "part written")


@pytest.mark.parametrize("name", SIMULATED)
def test_laws_by_simulation(name: str) -> None:
    found = check_rule(SIMULATED[name], ROWS, forward=0.08, backward=0.12, may_simulate=True)
    assert found.simulated


class Experts(nn.Module):
    """Rows in order of their group, times the group's matrix."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weights = nn.Parameter(torch.randn(4, 32, 24, generator=generator) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part @ weight for part, weight in zip(x.chunk(4), self.weights, strict=True)])


class Written(nn.Linear):
    """A tensor that is filled part by part through views."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        made = y.new_empty(len(y), 24)
        made[:, :16].copy_(y)
        made[:, 16:].copy_(y[:, :8])
        return made


class Normalised(nn.Linear):
    """A linear map of standardised weights."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(self.weight[None], None, None, training=True)[0]
        return F.linear(x + 1, weight - weight.mean(1, keepdim=True))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "experts": (Experts, (64, 32)),
    "written in parts": (lambda: Written(16, 16), (32, 16)),
    "standardised weights": (lambda: Normalised(16, 16), (64, 16)),
    "spectral norm": (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(16, 16)), (64, 16)),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)), (64, 16)),
    "parts of which one counts": (lambda: nn.Sequential(nn.Linear(8, 8), _First()), (256, 8)),
    "known mask": (lambda: nn.Sequential(nn.Linear(8, 8), _Masked()), (256, 8)),
    "loss without a meta kernel": (lambda: nn.Sequential(nn.Linear(8, 8), _Margin()), (16, 8)),
}


class _First(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack(x.unbind(1)[:3])


class _Masked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, torch.arange(8) % 2 == 0]


class _Margin(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.multi_margin_loss(x, torch.arange(16) % 8)


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model = make()
    errors = []
    for _ in range(6):
        x = torch.randn(shape)
        forecast = tr.predict(model, x)
        assert not forecast.unknown
        summary = tr.compare(forecast, tr.measure(model, x)).summary()
        errors.append((summary.forward[0], summary.backward[0]))
    forward, backward = torch.tensor(errors).nanmean(0)
    assert not forward > 0.12
    assert not backward > 0.2
