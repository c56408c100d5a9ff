"""Healthy programs, as torch initialises them, on which no check may raise an alarm."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.check import study
from tightrope.diagnose import diagnose
from tightrope.finding import Severity

Program = tuple[nn.Module, Any, Callable[..., Tensor] | None]
PROGRAMS: dict[str, Callable[[], Program]] = {}


def program(make: Callable[[], Program]) -> Callable[[], Program]:
    PROGRAMS[make.__name__] = make
    return make


def labels(n: int, k: int = 10) -> Tensor:
    return torch.arange(n) % k


def mlp(sizes: list[int], activation: type[nn.Module]) -> nn.Sequential:
    stack: list[nn.Module] = []
    for a, b in pairwise(sizes[:-1]):
        stack += [nn.Linear(a, b), activation()]
    return nn.Sequential(*stack, nn.Linear(sizes[-2], sizes[-1]))


# -- plain nets ----------------------------------------------------------------------------------


@program
def relu_three_layers() -> Program:
    return mlp([64, 128, 128, 10], nn.ReLU), (torch.randn(64, 64), labels(64)), F.cross_entropy


@program
def relu_six_layers() -> Program:
    return mlp([64, *[128] * 5, 10], nn.ReLU), (torch.randn(64, 64), labels(64)), F.cross_entropy


@program
def tanh_six_layers() -> Program:
    return mlp([64, *[128] * 5, 10], nn.Tanh), (torch.randn(64, 64), labels(64)), F.cross_entropy


@program
def gelu_four_layers() -> Program:
    return mlp([64, *[128] * 3, 10], nn.GELU), (torch.randn(64, 64), labels(64)), F.cross_entropy


@program
def sigmoid_one_hidden_layer() -> Program:
    return (
        mlp([30, 16, 1], nn.Sigmoid),
        (torch.randn(64, 30), torch.rand(64, 1).round()),
        F.binary_cross_entropy_with_logits,
    )


@program
def tiny_regression() -> Program:
    x = torch.linspace(-1, 1, 32)[:, None]
    return mlp([1, 8, 1], nn.ReLU), (x, x.square()), F.mse_loss


@program
def one_hot_inputs() -> Program:
    x = F.one_hot(torch.randint(0, 500, (64,)), 500).float()
    return mlp([500, 64, 32, 5], nn.ReLU), (x, labels(64, 5)), F.cross_entropy


@program
def logistic_regression() -> Program:
    return nn.Linear(20, 3), (torch.randn(32, 20), labels(32, 3)), F.cross_entropy


# -- images --------------------------------------------------------------------------------------


@program
def lenet() -> Program:
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip
    return model, (torch.randn(16, 1, 28, 28), labels(16)), F.cross_entropy


class Block(nn.Module):
    """A residual block with batch normalisation whose last gamma may be zero."""

    def __init__(self, width: int, *, zero: bool) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.n, self.m = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        if zero:
            nn.init.zeros_(self.m.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.m(self.b(F.relu(self.n(self.a(x))))))


def resnet(*, zero: bool) -> Program:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        *[Block(16, zero=zero) for _ in range(3)],
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    return model, (torch.randn(16, 3, 16, 16), labels(16)), F.cross_entropy


@program
def small_resnet() -> Program:
    return resnet(zero=False)


@program
def zero_init_residual() -> Program:
    return resnet(zero=True)


@program
def normalised_whatever_the_scale() -> Program:
    model = mlp([32, 64, 64, 64, 4], nn.ReLU)
    stack: list[nn.Module] = []
    for layer in model:
        if isinstance(layer, nn.Linear) and layer.out_features == 64:
            nn.init.normal_(layer.weight, std=30.0)
            stack += [layer, nn.BatchNorm1d(64)]
        else:
            stack.append(layer)
    return nn.Sequential(*stack), (torch.randn(64, 32), labels(64, 4)), F.cross_entropy


@program
def autoencoder() -> Program:
    x = torch.rand(32, 64)
    model = nn.Sequential(*mlp([64, 32, 8], nn.ReLU), *mlp([8, 32, 64], nn.ReLU), nn.Sigmoid())
    return model, (x, x), F.binary_cross_entropy


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.down(x))
        b = F.relu(self.deep(F.max_pool2d(a, 2)))
        return self.out(torch.cat([a, F.relu(self.up(b))], 1))


@program
def unet() -> Program:
    return UNet(), (torch.randn(4, 1, 16, 16), torch.rand(4, 1, 16, 16).round()), F.binary_cross_entropy_with_logits


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.mu, self.log_var = nn.Linear(64, 64), nn.Linear(64, 8), nn.Linear(64, 8)
        self.back, self.out = nn.Linear(8, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.enter(x))
        mu, log_var = self.mu(h), self.log_var(h)
        z = mu + torch.randn_like(mu) * (0.5 * log_var).exp()
        made = F.binary_cross_entropy_with_logits(self.out(F.relu(self.back(z))), x)
        return made - 0.5 * (1 + log_var - mu.square() - log_var.exp()).mean()


@program
def vae() -> Program:
    return VAE(), torch.rand(32, 64), lambda loss: loss


@program
def discriminator() -> Program:
    model = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 32, 4, 2, 1, bias=False), nn.BatchNorm2d(32),
        nn.LeakyReLU(0.2), nn.Conv2d(32, 1, 4), nn.Flatten(), nn.Sigmoid(),
    )  # fmt: skip
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, 0.0, 0.02)
    return model, (torch.rand(16, 1, 16, 16) * 2 - 1, torch.ones(16, 1)), F.binary_cross_entropy


@program
def generator() -> Program:
    model = nn.Sequential(
        nn.ConvTranspose2d(32, 32, 4, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip
    for layer in model:
        if isinstance(layer, nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0.0, 0.02)
    return model, torch.randn(16, 32, 1, 1), lambda y: y.square().mean()


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = mlp([32, 64, 64, 16], nn.ReLU)

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return F.triplet_margin_loss(self.tower(a), self.tower(b), self.tower(c))


@program
def siamese() -> Program:
    return Siamese(), tuple(torch.randn(32, 32) for _ in range(3)), lambda loss: loss


# -- sequences -----------------------------------------------------------------------------------


class Attention(nn.Module):
    """A transformer block, normalised before or after its branches."""

    def __init__(self, width: int, *, pre: bool, scale: float | None = None) -> None:
        super().__init__()
        self.pre, self.mix = pre, nn.MultiheadAttention(width, 4, batch_first=True)
        self.n, self.m = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.scale = nn.Parameter(torch.full((width,), scale)) if scale is not None else None

    def forward(self, x: Tensor) -> Tensor:
        for norm, branch in ((self.n, self._attend), (self.m, self.mlp)):
            y = branch(norm(x) if self.pre else x)
            x = x + (y if self.scale is None else self.scale * y)
            x = x if self.pre else norm(x)
        return x

    def _attend(self, x: Tensor) -> Tensor:
        return self.mix(x, x, x, need_weights=False)[0]


class LanguageModel(nn.Module):
    """Tokens to logits, with the weights of the embedding at both ends."""

    def __init__(self, body: nn.Module, width: int, *, std: float = 0.02) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(97, width), body, nn.Linear(width, 97, bias=False)
        nn.init.normal_(self.embed.weight, std=std)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.body(self.embed(ids))
        x = x[0] if isinstance(x, tuple) else x
        return F.cross_entropy(self.head(x)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def tokens() -> Tensor:
    return torch.randint(0, 97, (8, 24))


@program
def gpt_small_init() -> Program:
    body = nn.Sequential(*[Attention(32, pre=True) for _ in range(3)], nn.LayerNorm(32))
    for module in body.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    return LanguageModel(body, 32), tokens(), lambda loss: loss


@program
def post_norm_transformer() -> Program:
    body = nn.Sequential(*[Attention(32, pre=False) for _ in range(3)])
    return LanguageModel(body, 32), tokens(), lambda loss: loss


@program
def layer_scale() -> Program:
    body = nn.Sequential(nn.Linear(16, 32), *[Attention(32, pre=True, scale=1e-6) for _ in range(4)], nn.LayerNorm(32))
    model = nn.Sequential(body, nn.Linear(32, 5))
    return (
        model,
        (torch.randn(8, 12, 16), torch.randint(0, 5, (8, 12)).flatten()),
        lambda y, t: F.cross_entropy(y.flatten(0, 1), t),
    )


@program
def tied_gru() -> Program:
    return LanguageModel(nn.GRU(32, 32, batch_first=True), 32, std=0.1), tokens(), lambda loss: loss


class LastState(nn.Module):
    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[0][:, -1])


@program
def lstm_classifier() -> Program:
    model = LastState(nn.LSTM(16, 64, 2, batch_first=True), 64)
    return model, (torch.randn(16, 40, 16), labels(16, 4)), F.cross_entropy


@program
def elman() -> Program:
    return LastState(nn.RNN(16, 64, batch_first=True), 64), (torch.randn(16, 20, 16), labels(16, 4)), F.cross_entropy


class Mixer(nn.Module):
    def __init__(self, sites: int, width: int) -> None:
        super().__init__()
        self.n, self.m = nn.LayerNorm(width), nn.LayerNorm(width)
        self.over_sites, self.over_width = (mlp([k, 2 * k, k], nn.GELU) for k in (sites, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.over_sites(self.n(x).mT).mT
        return x + self.over_width(self.m(x))


class Pooled(nn.Module):
    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(1))


@program
def mixer() -> Program:
    body = nn.Sequential(nn.Linear(16, 32), *[Mixer(12, 32) for _ in range(3)], nn.LayerNorm(32))
    return Pooled(body, 32), (torch.randn(16, 12, 16), labels(16, 5)), F.cross_entropy


# -- parts that stand still ----------------------------------------------------------------------


@program
def zero_head() -> Program:
    model = mlp([64, 128, 128, 10], nn.ReLU)
    nn.init.zeros_(model[-1].weight)  # type: ignore[arg-type]
    return model, (torch.randn(64, 64), labels(64)), F.cross_entropy


@program
def frozen_backbone() -> Program:
    model = mlp([64, 128, 128, 10], nn.ReLU)
    for layer in list(model)[:-1]:
        layer.requires_grad_(False)
    return model, (torch.randn(64, 64), labels(64)), F.cross_entropy


class Actor(nn.Module):
    """A policy whose advantage passes no gradient to the critic."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.policy, self.value = nn.Linear(4, 64), nn.Linear(64, 2), nn.Linear(64, 1)

    def forward(self, x: Tensor, returns: Tensor) -> Tensor:
        h = torch.tanh(self.trunk(x))
        value = self.value(h).squeeze(1)
        advantage = (returns - value).detach()
        return -(F.log_softmax(self.policy(h), 1)[:, 0] * advantage).mean() + F.smooth_l1_loss(value, returns)


@program
def actor_critic() -> Program:
    return Actor(), (torch.randn(32, 4), torch.randn(32)), None


@pytest.mark.parametrize("name", PROGRAMS)
def test_healthy_programs_raise_no_alarm(name: str) -> None:
    model, data, loss = PROGRAMS[name]()
    findings = diagnose([study(model, data, loss=loss)])
    assert [f"{f.check}: {f.summary}" for f in findings if f.severity is not Severity.ADVICE] == []
