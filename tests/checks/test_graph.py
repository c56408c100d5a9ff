"""Stacks without nonlinearity and normalisers over the wrong dimension, beside designs that look like them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.finding import Finding, Severity

Judge = Callable[..., list[Finding]]
N = 24


def rows(width: int = 8, classes: int = 3) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(N, width), torch.arange(N) % classes


# -- single linear stack ---------------------------------------------------------------------------


class Adapter(nn.Module):
    """A linear map and a low-rank one beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.down, self.up = nn.Linear(8, 8), nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class Gate(nn.Module):
    """A product of two linear maps is not linear."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(x) * self.b(x))


class Trend(nn.Module):
    """A series' moving average and the rest, each through a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.slow, self.fast = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        smooth = F.avg_pool1d(x.unsqueeze(1), 3, 1, 1).squeeze(1)
        return self.slow(smooth) + self.fast(x - smooth)


class Words(nn.Module):
    """A bag of embeddings and one linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(50, 16), nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids).mean(1))


def linear(*widths: int, between: Callable[[int], nn.Module] = lambda width: nn.Identity()) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), between(b)]
    return nn.Sequential(*layers[:-1])


FLAT: list[nn.Module] = [
    linear(8, 32, 3),
    linear(8, 32, 32, 3, between=lambda _: nn.Dropout(0.2)),
    linear(8, 32, 32, 3, between=nn.BatchNorm1d),
    nn.Sequential(linear(8, 16, 3), nn.LogSoftmax(1)),
    nn.Sequential(nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 4, 3), nn.Conv1d(4, 8, 3), nn.Flatten(), nn.Linear(32, 3)),
]
CURVED: list[nn.Module] = [
    nn.Linear(8, 3),
    linear(8, 32, 3, between=lambda _: nn.ReLU()),
    nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 3)),
    linear(8, 16, 3, between=nn.LayerNorm),
    nn.Sequential(nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 4, 3), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(12, 3)),
    Gate(),
    Trend(),
    nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3)),
]


@pytest.mark.parametrize("model", FLAT)
def test_a_stack_that_is_one_matrix(judge: Judge, model: nn.Module) -> None:
    (found,) = judge("single-linear-stack", model, rows(), F.nll_loss if len(model) == 2 else F.cross_entropy)  # type: ignore[arg-type]
    assert found.severity is Severity.WARNING


@pytest.mark.parametrize("model", CURVED)
def test_something_bends(judge: Judge, model: nn.Module) -> None:
    assert judge("single-linear-stack", model, rows()) == []


def test_bottlenecks_are_meant(judge: Judge) -> None:
    x = rows()[0]
    assert judge("single-linear-stack", linear(8, 2, 8), (x, x), F.mse_loss) == []
    assert judge("single-linear-stack", Adapter(), (x, x), F.mse_loss) == []
    ids = torch.randint(0, 50, (N, 5))
    assert judge("single-linear-stack", Words(), (ids, rows()[1])) == []
    assert judge("single-linear-stack", linear(8, 8, 8), (x, x), F.mse_loss)


def test_the_stack_is_the_product_of_its_layers(judge: Judge) -> None:
    """What the finding says: one matrix of the widths that it names."""
    model = linear(8, 32, 16, 3)
    (found,) = judge("single-linear-stack", model, rows())
    weights = [layer.weight for layer in model if isinstance(layer, nn.Linear)]
    product = torch.linalg.multi_dot([w.double() for w in reversed(weights)])
    assert tuple(product.shape) == (3, 8)
    assert int(torch.linalg.matrix_rank(product)) == found.evidence[3].measured
    assert "8 x 3" in found.summary


# -- wrong norm axis -------------------------------------------------------------------------------


class Sequence(nn.Module):
    """Tokens through a map, a normaliser, and on to the head."""

    def __init__(self, norm: nn.Module, first: nn.Module | None = None, mix: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.norm = first or nn.Linear(6, 16), norm
        self.mix, self.head = mix or nn.Identity(), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        z = z[0] if isinstance(z, tuple) else z
        return self.head(self.mix(torch.relu(self.norm(z))).mean(1))


class Turned(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.mT).mT


class Written(nn.Module):
    """A normaliser by hand."""

    def __init__(self, dim: int, *, keep: bool = False) -> None:
        super().__init__()
        self.dim, self.keep = dim, keep
        if keep:
            self.running = torch.zeros(16)

    def forward(self, x: Tensor) -> Tensor:
        mean, var = x.mean(self.dim, keepdim=True), x.var(self.dim, keepdim=True)
        if self.keep:
            self.running = (0.9 * self.running + 0.1 * var).detach()
        return (x - mean) / torch.sqrt(var + 1e-5)


def tokens() -> tuple[Tensor, Tensor]:
    return torch.randn(N, 10, 6), torch.arange(N) % 3


SLIPPED: list[nn.Module] = [
    Sequence(nn.BatchNorm1d(10)),
    Sequence(nn.BatchNorm1d(10), nn.LSTM(6, 16, batch_first=True)),
    Sequence(nn.BatchNorm1d(10), nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.1))),
]
MEANT: list[nn.Module] = [
    Sequence(Turned(nn.BatchNorm1d(16))),
    Sequence(nn.LayerNorm(16)),
    Sequence(nn.LayerNorm([10, 16])),
    Sequence(nn.BatchNorm1d(10), mix=Turned(nn.Linear(10, 10))),
    Sequence(nn.Identity(), nn.Sequential(Turned(nn.BatchNorm1d(6)), nn.Linear(6, 16))),
    Sequence(Written(-1)),
]


@pytest.mark.parametrize("model", SLIPPED)
def test_steps_for_channels(judge: Judge, model: nn.Module) -> None:
    (found,) = judge("wrong-norm-axis", model, tokens())
    assert found.severity is Severity.WARNING


@pytest.mark.parametrize("model", MEANT)
def test_layouts_that_fit(judge: Judge, model: nn.Module) -> None:
    assert judge("wrong-norm-axis", model, tokens()) == []


def test_features_of_unlike_scale_behind_the_steps(judge: Judge) -> None:
    """Only where features differ, and steps do not, can a slip be told from channels in dimension 1."""
    x, y = tokens()
    model = nn.Sequential(nn.BatchNorm1d(10), nn.Linear(6, 16), nn.ReLU(), nn.Flatten(), nn.Linear(160, 3))
    pooled = Sequence(nn.Identity(), nn.Sequential(nn.BatchNorm1d(10), nn.Linear(6, 16)))
    features = x * torch.linspace(0.1, 2, 6) + torch.linspace(-2, 2, 6)
    channels = x * torch.linspace(0.1, 2, 10)[:, None] + torch.linspace(-2, 2, 10)[:, None]
    assert len(judge("wrong-norm-axis", pooled, (features, y))) == 1
    assert judge("wrong-norm-axis", pooled, (channels, y)) == []
    assert judge("wrong-norm-axis", pooled, (x, y)) == []
    assert judge("wrong-norm-axis", model, (features, y)) == []


class TimeFirst(nn.Module):
    """A recurrent layer that reads time first, and a normaliser that takes the batch for channels."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.norm, self.head = nn.LSTM(6, 16), nn.BatchNorm1d(N), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.cell(x)[0])[-1])


def test_the_batch_for_channels(judge: Judge) -> None:
    (found,) = judge("wrong-norm-axis", TimeFirst(), (torch.randn(10, N, 6), torch.arange(N) % 3))
    assert found.severity is Severity.FAULT


def net(norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), norm, nn.ReLU(), nn.Linear(16, 3))


class UnitColumns(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=0)


class UnitRows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1)


@pytest.mark.parametrize("norm", [Written(0), nn.LayerNorm([N, 16]), UnitColumns()])
def test_written_over_the_batch(judge: Judge, norm: nn.Module) -> None:
    assert len(judge("wrong-norm-axis", net(norm), rows())) == 1


@pytest.mark.parametrize("norm", [Written(1), Written(0, keep=True), nn.BatchNorm1d(16), nn.LayerNorm(16), UnitRows()])
def test_written_over_channels_or_with_averages(judge: Judge, norm: nn.Module) -> None:
    assert judge("wrong-norm-axis", net(norm), rows()) == []


def decorrelate(z: Tensor, other: Any = None) -> Tensor:
    """A loss of features that are standardised over the batch."""
    z = (z - z.mean(0)) / z.std(0)
    return (z.T @ z / N - torch.eye(z.shape[1])).square().sum()


def test_losses_standardise_over_the_batch(judge: Judge) -> None:
    assert judge("wrong-norm-axis", net(nn.Identity()), rows()[0], decorrelate) == []
