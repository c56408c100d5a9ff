"""`posterior-collapse` on autoencoders written in several ways, and on what looks like one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence

from tightrope.finding import Severity
from tightrope.run import rehearse

Step = Callable[[nn.Module, nn.Module, Tensor, int], Tensor]


def train(step: Step, steps: int = 210, rate: float = 1e-3, *, zero: bool = False) -> Callable[[], None]:
    def run() -> None:
        torch.manual_seed(0)
        encode = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        decode = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 16))
        if zero:
            for parameter in encode[-1].parameters():
                nn.init.zeros_(parameter)
        mixture = torch.randn(2, 16) / 2
        optimizer = torch.optim.Adam([*encode.parameters(), *decode.parameters()], rate)
        for number in range(1, steps + 1):
            x = torch.randn(64, 2) @ mixture + 0.1 * torch.randn(64, 16)
            loss = step(encode, decode, x, number)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def findings(run: Callable[[], None]) -> list[str]:
    report = rehearse(run).report
    assert report is not None
    return [f.check for f in report.findings if f.severity is not Severity.ADVICE]


def written(encode: nn.Module, decode: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstruction and divergence, by hand, from a standard deviation."""
    mean, raw = encode(x).chunk(2, -1)
    std = F.softplus(raw + 0.55)
    z = torch.randn_like(std).mul(std).add(mean)
    return decode(z), (0.5 * (mean * mean + std**2 - 2 * std.log() - 1)).sum(1).mean()


def by_library(encode: nn.Module, decode: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    mean, logvar = encode(x).split(2, -1)
    q = Independent(Normal(mean, (0.5 * logvar).exp()), 1)
    p = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
    return decode(q.rsample()), kl_divergence(q, p).mean()


def weighed(parts: Callable[..., tuple[Tensor, Tensor]], error: float, beta: Callable[[int], float]) -> Step:
    def step(encode: nn.Module, decode: nn.Module, x: Tensor, number: int) -> Tensor:
        y, divergence = parts(encode, decode, x)
        return error * (y - x).square().sum(1).mean() + beta(number) * divergence

    return step


@pytest.mark.parametrize("parts", [written, by_library])
def test_however_it_is_written(parts: Callable[..., tuple[Tensor, Tensor]]) -> None:
    assert findings(train(weighed(parts, 1 / 16, lambda n: 1.0))) == ["posterior-collapse"]


HEALTHY = {
    "the bound": train(weighed(written, 50.0, lambda n: 1.0)),
    "a weak bound": train(weighed(by_library, 0.5, lambda n: 1.0)),
    "slow": train(weighed(written, 50.0, lambda n: 1.0), rate=1e-5),
    "too early to say": train(weighed(written, 1 / 16, lambda n: 1.0), 150),
    "a head that starts at zero": train(weighed(by_library, 50.0, lambda n: 1.0), zero=True, rate=1e-4),
    "warm-up": train(weighed(written, 50.0, lambda n: min(1.0, n / 100))),
    "without a divergence": train(weighed(written, 1.0, lambda n: 0.0)),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_silent_on(name: str) -> None:
    assert "posterior-collapse" not in findings(HEALTHY[name])


def policy(encode: nn.Module, decode: nn.Module, x: Tensor, number: int) -> Tensor:
    """An action that is drawn, kept near the middle, and paid for its entropy: near N(0, 1) as it should be."""
    mean, raw = encode(x).chunk(2, -1)
    q = Normal(mean, (raw / 2).exp())
    z = q.rsample()
    value = decode(torch.tanh(z)).square().mean()
    return 1e-3 * value + (mean**2).mean() + (raw**2).mean() + 1e-3 * q.log_prob(z).mean()


def noisy_layer(encode: nn.Module, decode: nn.Module, x: Tensor, number: int) -> Tensor:
    """Noise on what is hidden, with a strength that is learnt, and decay that is written out."""
    h = encode(x).chunk(2, -1)[0]
    strength = decode[0].bias[:2].exp()  # type: ignore[union-attr, index, operator]
    y = decode(h + torch.randn_like(h) * strength)
    return F.mse_loss(y, x) + h.square().mean() + strength.square().mean()


@pytest.mark.parametrize("step", [policy, noisy_layer])
def test_silent_on_other_noise(step: Step) -> None:
    assert "posterior-collapse" not in findings(train(step))
