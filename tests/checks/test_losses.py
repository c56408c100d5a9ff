"""Losses of many kinds, written as they are in use: nothing above advice may be said of their graph and numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.check import study
from tightrope.diagnose import diagnose
from tightrope.finding import Severity

N = 32
LOSSES: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {}
LABEL = torch.arange(N) % 4


def loss_of(width: int) -> Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Tensor]]:
    def register(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        LOSSES[function.__name__] = (width, function)
        return function

    return register


@loss_of(4)
def clipped_policy(o: Tensor) -> Tensor:
    policy, action = torch.distributions.Categorical(logits=o[:, :3]), torch.arange(N) % 3
    now = policy.log_prob(action)
    ratio, advantage = (now - now.detach() + 0.1 * torch.randn(N)).exp(), torch.randn(N)
    gain = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
    return 0.5 * (o[:, 3] - 10 * torch.randn(N)).square().mean() - gain - 0.01 * policy.entropy().mean()


@loss_of(32)
def contrast_of_pairs(o: Tensor) -> Tensor:
    z = F.normalize(o, dim=1)
    near = torch.exp((z * z.roll(N // 2, 0)).sum(1) / 0.1)
    return -torch.log(near / (torch.exp(z @ z.T / 0.1) * ~torch.eye(N, dtype=torch.bool)).sum(1)).mean()


@loss_of(32)
def contrast_of_classes(o: Tensor) -> Tensor:
    z, other = F.normalize(o, dim=1), 1 - torch.eye(N)
    scores = z @ z.T / 0.1
    scores = scores - scores.max(1, keepdim=True)[0].detach()
    same = (LABEL[:, None] == LABEL[None]).float() * other
    log = scores - torch.log((torch.exp(scores) * other).sum(1, keepdim=True))
    return -((same * log).sum(1) / same.sum(1)).mean()


@loss_of(15)
def mixture_density(o: Tensor) -> Tensor:
    weight, mean, log_std = o.chunk(3, 1)
    error = 0.5 * ((torch.randn(N, 1) - mean) / log_std.exp()).square()
    return -torch.logsumexp(F.log_softmax(weight, 1) - log_std - error, 1).mean()


@loss_of(3)
def mixture_of_one(o: Tensor) -> Tensor:
    return mixture_density(o)


@loss_of(3)
def quantiles(o: Tensor) -> Tensor:
    error, q = torch.randn(N, 1) - o, torch.tensor([0.1, 0.5, 0.9])
    return torch.maximum(q * error, (q - 1) * error).mean()


@loss_of(1)
def focal(o: Tensor) -> Tensor:
    p, t = torch.sigmoid(o), (LABEL[:, None] == 0).float()
    right = p * t + (1 - p) * (1 - t)
    return (-((1 - right) ** 2) * torch.log(right.clamp(1e-6))).mean()


@loss_of(4)
def overlap(o: Tensor) -> Tensor:
    p, t = torch.softmax(o, 1), F.one_hot(LABEL, 4).float()
    return 1 - (2 * (p * t).sum(0) / (p.sum(0) + t.sum(0))).mean()


@loss_of(1)
def least_squares_critic(o: Tensor) -> Tensor:
    return ((o - 1) ** 2).mean()


@loss_of(1)
def hinge_critic(o: Tensor) -> Tensor:
    return F.relu(1 - o).mean()


@loss_of(1)
def written_critic(o: Tensor) -> Tensor:
    p = torch.sigmoid(o)
    return -torch.log(p).mean() - torch.log(1 - p).mean()


@loss_of(32)
def decorrelated(o: Tensor) -> Tensor:
    z = (o - o.mean(0)) / o.std(0)
    return (z.T @ z / N - torch.eye(32)).square().sum() + F.relu(1 - torch.sqrt(o.var(0) + 1e-4)).mean()


@loss_of(4)
def distilled(o: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(o / 2, 1), F.softmax(torch.randn(N, 4) / 2, 1), reduction="batchmean")


@loss_of(51)
def categorical_value(o: Tensor) -> Tensor:
    return -(torch.softmax(torch.randn(N, 51), 1) * F.log_softmax(o, 1)).sum(1).mean()


@loss_of(1)
def logarithm_of_prices(o: Tensor) -> Tensor:
    return torch.sqrt(F.mse_loss(o, 12 + 0.4 * torch.randn(N, 1)))


@loss_of(1)
def ordinal(o: Tensor) -> Tensor:
    return F.mse_loss(o, LABEL[:, None].float())


@pytest.mark.parametrize("name", LOSSES)
def test_silence(name: str) -> None:
    torch.manual_seed(0)
    width, loss = LOSSES[name]
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, width))
    findings = diagnose([study(model, torch.randn(N, 16), loss=loss)])
    assert [f.check for f in findings if f.severity is not Severity.ADVICE] == []
