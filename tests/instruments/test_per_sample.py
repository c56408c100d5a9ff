from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.instruments import per_sample


class Tokens(nn.Module):
    """Positions, a class token, attention, layer scale, RMS norm, a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8, padding_idx=3)
        self.place, self.token = nn.Parameter(torch.randn(1, 5, 8)), nn.Parameter(torch.randn(1, 1, 8))
        self.scale, self.norm = nn.Parameter(torch.ones(8)), nn.RMSNorm(8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.token.expand(len(x), -1, -1), self.words(x) + self.place], 1)
        return F.linear(self.norm(self.layer(h) * self.scale)[:, 0], self.words.weight)


class Flat(nn.Module):
    """Sites folded into the samples, one layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x.reshape(-1, 4))
        return self.last(self.middle(self.middle(h).relu())).view(len(x), -1, 3).mean(1)


class Raw(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[0][:, -1])


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x.transpose(0, 1)).mean(0)


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding="same"), nn.GroupNorm(2, 8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4, dilation=2), nn.InstanceNorm2d(8, affine=True),
        nn.Conv2d(8, 64, 1, bias=False), nn.Conv2d(64, 64, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.LayerNorm(64), nn.Dropout(0.3), nn.Linear(64, 3),
    )  # fmt: skip


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], str]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), lambda: torch.randn(9, 4), "ghost"),
    "conv2d": (convolutions, lambda: torch.randn(9, 3, 8, 8), "ghost"),
    "conv1d, batch norm at inference": (
        lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)).eval(),
        lambda: torch.randn(9, 3, 8), "ghost",
    ),
    "conv3d": (
        lambda: nn.Sequential(nn.Conv3d(1, 4, 3, stride=2), nn.Flatten(), nn.Linear(108, 3)),
        lambda: torch.randn(9, 1, 8, 8, 8), "ghost",
    ),
    "tokens": (Tokens, lambda: torch.randint(0, 11, (9, 5)), "ghost"),
    "flat": (Flat, lambda: torch.randn(9, 5, 4), "ghost"),
    "raw": (Raw, lambda: torch.randn(9, 4), "vmap"),
    "recurrent": (Recurrent, lambda: torch.randn(9, 5, 4), "loop"),
    "time first, as many steps as samples": (TimeFirst, lambda: torch.randn(9, 9, 4), "vmap"),
    "time first": (TimeFirst, lambda: torch.randn(9, 4, 4), "vmap"),
}  # fmt: skip


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", CASES)
def test_norms_and_mean_are_those_of_single_samples(name: str, reduction: str) -> None:
    torch.manual_seed(0)
    build, draw, method = CASES[name]
    model, x = build().double(), draw()
    x = x.double() if x.is_floating_point() else x
    batch = (x, torch.randint(0, 3, (9,)))

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, reduction=reduction)

    way = per_sample.find(model, batch, loss)
    assert (way.method, way.reduction) == (method, reduction)
    assert way.discrepancy is not None and way.discrepancy < 1e-9
    model.eval()
    squared, mean = way(batch)
    true, middle = per_sample.looped(model, batch, loss)
    assert squared is not None
    assert torch.allclose(squared, true, rtol=1e-9)
    assert torch.allclose(mean, middle, atol=1e-12)


@pytest.mark.parametrize("parts", ["LARGEST", "PATCHES"])
def test_a_convolution_in_parts_is_the_same(parts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tightrope.instruments import ghost, ghost_rules

    torch.manual_seed(0)
    model, batch = convolutions().double().eval(), (torch.randn(9, 3, 8, 8).double(), torch.randint(0, 3, (9,)))
    whole = per_sample.ghost(model, batch, F.cross_entropy)
    monkeypatch.setattr(ghost if parts == "LARGEST" else ghost_rules, parts, 5000)
    again = per_sample.ghost(model, batch, F.cross_entropy)
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-14) for a, b in zip(whole, again))


@pytest.mark.parametrize(
    ("model", "loss", "words"),
    [
        (nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)), F.cross_entropy, "batch normalisation"),
        (
            nn.Linear(4, 3),
            lambda o, t: F.cross_entropy(o, t, weight=torch.tensor([1.0, 2.0, 9.0])),
            "neither mean nor sum",
        ),
        (nn.Linear(4, 3), lambda o, t: (o - o.mean(0)).square().mean(), "neither mean nor sum"),
    ],
)
def test_coupled_samples_are_told(model: nn.Module, loss: Callable[..., Tensor], words: str) -> None:
    torch.manual_seed(0)
    way = per_sample.find(model, (torch.randn(8, 4), torch.arange(8) % 3), loss)
    assert way.method == "batch"
    assert words in way.reason


def test_random_models_pass_sample_by_sample() -> None:
    class Noisy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.randn_like(x))

    way = per_sample.find(Noisy(4, 3), (torch.randn(8, 4), torch.arange(8) % 3), F.cross_entropy)
    assert way.method == "vmap"
    assert way.discrepancy is None
    assert "random" in way.reason


def test_frozen_and_unused_parameters_count_as_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    model[0].weight.requires_grad_(False)
    model.register_parameter("unused", nn.Parameter(torch.ones(2).double()))
    batch = (torch.randn(6, 4).double(), torch.arange(6) % 3)
    way = per_sample.find(model, batch, F.cross_entropy)
    assert way.method == "ghost"
    assert torch.allclose(way(batch)[0], per_sample.looped(model, batch, F.cross_entropy)[0])  # type: ignore[arg-type]
