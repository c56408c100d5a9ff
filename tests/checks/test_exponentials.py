"""exp and log near the ends of their dtype, and where they have bounds."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.check import study
from tightrope.checks.bounds import Bounds
from tightrope.checks.trace import learned, producers
from tightrope.diagnose import diagnose
from tightrope.finding import Finding, Severity

Judge = Callable[..., list[Finding]]
Function = Callable[[Tensor], Tensor]
N, K = 32, 6


def net(scale: float = 1.0, out: int = K) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, out))
    with torch.no_grad():
        model[2].weight.mul_(scale)
    return model


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(N, 8), torch.arange(N) % K


def likelihood(p: Function) -> Callable[[Tensor, Tensor], Tensor]:
    """Of the probabilities that `p` makes of the scores."""
    return lambda scores, y: -(p(scores)[torch.arange(N), y] + 1e-12).log().mean()


def softmax(z: Tensor) -> Tensor:
    e = z.exp()
    return e / e.sum(1, keepdim=True)


def cosine(z: Tensor) -> Tensor:
    z = F.normalize(z, dim=1)
    return z @ z.T / 0.1


WRITTEN: list[Function] = [
    softmax,
    lambda z: softmax(2 * z + 1),
    lambda z: (lambda e: (e * (torch.arange(K) >= 0)) / e.sum(1).unsqueeze(1))(torch.exp(z)),
    lambda z: (lambda e: e / (e.sum(1, keepdim=True) + 1e-9))(z.exp()),
    lambda z: (z - (z.exp().sum(1, keepdim=True)).log()).exp(),
]
BOUNDED: list[Function] = [
    lambda z: softmax(z - z.amax(1, keepdim=True)),
    lambda z: softmax(z - z.max(1, keepdim=True)[0].detach()),
    lambda z: softmax(z - z.max(dim=1, keepdim=True).values),
    lambda z: softmax(10 * torch.tanh(z)),
    lambda z: softmax(z.clamp(-30, 30)),
    lambda z: softmax(-z.square()),
    lambda z: softmax(-torch.cdist(z, z) / 2),
    lambda z: softmax(cosine(z)),
    lambda z: torch.softmax(z, 1),
    lambda z: torch.sigmoid(z),
    lambda z: z.exp() / 8,
]


@pytest.mark.parametrize("p", WRITTEN)
def test_exponents_without_a_bound(judge: Judge, p: Function) -> None:
    found = judge("naive-softmax", net(), batch(), likelihood(p))
    assert [f.severity for f in found] == [Severity.WARNING]
    found = judge("naive-softmax", net(1000.0), batch(), likelihood(p))
    assert [f.severity for f in found] == [Severity.FAULT]


@pytest.mark.parametrize("p", BOUNDED)
def test_exponents_with_a_bound(judge: Judge, p: Function) -> None:
    assert judge("naive-softmax", net(), batch(), likelihood(p)) == []


@pytest.mark.parametrize(
    "p", [lambda z: 1 / (1 + torch.exp(-z)), lambda z: (lambda e: e / (1 + e))(z.exp())], ids=["down", "up"]
)
@pytest.mark.parametrize(("scale", "severity"), [(1.0, Severity.ADVICE), (30.0, Severity.WARNING)])
def test_sigmoids_are_judged_by_their_reach(judge: Judge, p: Function, scale: float, severity: Severity) -> None:
    (found,) = judge("naive-softmax", net(scale), batch(), likelihood(p))
    assert found.severity is severity


def test_the_softplus_of_a_weight_is_no_activation(judge: Judge) -> None:
    """Standard deviations of a weight's posterior."""

    class Bayes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean, self.rho = nn.Parameter(torch.randn(K, 8) / 3), nn.Parameter(torch.full((K, 8), -3.0))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.mean + torch.log1p(self.rho.exp()) * torch.randn(K, 8))

    assert judge("naive-softmax", Bayes(), batch()) == []


def test_the_overflow_is_foreseen_before_it_happens(judge: Judge) -> None:
    """Scores whose law reaches 83 of the 88.7."""
    model = net(100.0)
    x, y = batch()
    assert bool(torch.isfinite(softmax(model(x))).all())
    (found,) = judge("naive-softmax", model, (x, y), likelihood(softmax))
    assert found.severity is Severity.WARNING
    assert found.evidence[0].measured > 60


def test_one_cause_stands_on_top() -> None:
    findings = diagnose([study(net(1000.0), batch(), loss=likelihood(softmax))])
    assert findings[0].check == "naive-softmax"
    assert "non-finite" in findings[0].cause_of


# -- bounds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "interval"),
    [
        (lambda z: 3 * torch.tanh(z) - 1, (-4, 2)),
        (lambda z: 1 - torch.sigmoid(z), (0, 1)),
        (lambda z: torch.sigmoid(z) / 4, (0, 0.25)),
        (lambda z: -z.square().sum(1), (-math.inf, 0)),
        (lambda z: z.clamp(min=0.5), (0.5, math.inf)),
        (lambda z: F.hardtanh(z).flatten(), (-1, 1)),
        (lambda z: cosine(z), (-10, 10)),
        (lambda z: z + 1, (-math.inf, math.inf)),
        (lambda z: 1 / (1 + z.abs()), (0, 1)),
    ],
)
def test_intervals(function: Function, interval: tuple[float, float]) -> None:
    made = study(net(), batch()[0], loss=lambda z: function(z).mean())
    tape = made.tape
    bounds = Bounds(tape, producers(tape), made.measurement.units, learned(tape))
    assert bounds.of(tape.entries[-1].inputs[0]) == pytest.approx(interval)


# -- logarithms ------------------------------------------------------------------------------------


def picked(log: Function) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda scores, y: -log(scores)[torch.arange(N), y].mean()


def discriminate(guard: float) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(z: Tensor, y: Tensor) -> Tensor:
        p = torch.sigmoid(z)
        if guard:
            return -(torch.log(p + guard) + torch.log(1 - p + guard)).mean()
        return -(torch.log(p) + torch.log(1 - p)).mean()

    return loss


@pytest.mark.parametrize(("scale", "severity"), [(1.0, "advice"), (60.0, "warning"), (1000.0, "fault")])
def test_the_log_of_a_softmax(judge: Judge, scale: float, severity: str) -> None:
    found = judge("naive-log", net(scale), batch(), picked(lambda z: torch.softmax(z, 1).log()))
    assert [f.severity.value for f in found] == [severity]


@pytest.mark.parametrize(("scale", "severity"), [(1.0, "advice"), (15.0, "warning"), (100.0, "fault")])
def test_the_log_of_what_a_sigmoid_leaves(judge: Judge, scale: float, severity: str) -> None:
    found = judge("naive-log", net(scale), batch(), discriminate(0.0))
    assert found[0].severity.value == severity
    assert "1 - sigmoid" in found[0].summary


@pytest.mark.parametrize(
    "loss",
    [
        discriminate(1e-8),
        picked(lambda z: F.log_softmax(z, 1)),
        picked(lambda z: torch.log(torch.softmax(z, 1) + 1e-9)),
        picked(lambda z: torch.log(torch.softmax(z, 1).clamp(min=1e-9))),
        picked(lambda z: torch.log(F.softplus(z) + 1e-6)),
        picked(lambda z: torch.log(z.square() + 1)),
    ],
)
def test_guarded_logarithms(judge: Judge, loss: Callable[..., Tensor]) -> None:
    assert judge("naive-log", net(300.0), batch(), loss) == []


def test_the_log_of_a_rectifier(judge: Judge) -> None:
    (found,) = judge("naive-log", net(), batch(), picked(lambda z: torch.log(F.relu(z))))
    assert found.severity is Severity.FAULT


# -- half precision --------------------------------------------------------------------------------


class Half(nn.Module):
    """Squares of a hidden layer, held in a dtype of one's choice."""

    def __init__(self, scale: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.first, self.second, self.scale, self.dtype = nn.Linear(8, 64), nn.Linear(64, K), scale, dtype

    def forward(self, x: Tensor) -> Tensor:
        z = (self.scale * self.first(x)).to(self.dtype)
        return self.second((z * z / self.scale**2).float())


@pytest.mark.parametrize(
    ("scale", "dtype", "severity"),
    [
        (1.0, torch.float16, None), (40.0, torch.float16, None), (80.0, torch.float16, "warning"),
        (400.0, torch.float16, "fault"), (400.0, torch.bfloat16, None), (400.0, torch.float32, None),
    ],
)  # fmt: skip
def test_squares_in_half_precision(judge: Judge, scale: float, dtype: torch.dtype, severity: str | None) -> None:
    torch.manual_seed(0)
    found = judge("half-precision-overflow", Half(scale, dtype), batch())
    assert [f.severity.value for f in found] == ([severity] if severity else [])


def test_masks_in_half_precision_are_meant(judge: Judge) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = nn.Linear(8, K)

        def forward(self, x: Tensor) -> Tensor:
            z = self.q(x).half()
            hidden = torch.arange(K) > 3
            z = z.masked_fill(hidden, torch.finfo(z.dtype).min) + torch.where(hidden, -60000.0, 0.0).half()
            return z.float().softmax(1)

    assert judge("half-precision-overflow", Masked(), batch(), lambda p, y: p.square().mean()) == []


def test_autocast_at_unit_scale(judge: Judge) -> None:
    def loss(scores: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(scores.float(), y)

    class Autocast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.inner(x)

    assert judge("half-precision-overflow", Autocast(), batch(), loss) == []


# -- logarithms that training brings to zero ---------------------------------------------------------


def _binary(p: Tensor, y: Tensor) -> Tensor:
    return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()


def _guarded(p: Tensor, y: Tensor) -> Tensor:
    return -(y * torch.log(p + 1e-8) + (1 - y) * torch.log(1 - p + 1e-8)).mean()


def _hot(scale: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda o, y: -(F.one_hot(y, o.shape[1]) * torch.log(torch.softmax(scale * o, 1))).sum(1).mean()


def test_labels_of_zero_times_a_logarithm_that_rounds(judge: Judge) -> None:
    """1 - p rounds to 0 at a score of 16.6, which a sure classifier reaches; p itself at 103, which it does not."""
    torch.manual_seed(0)
    x, y = torch.randn(64, 8), (torch.arange(64) % 2)[:, None].float()
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1), nn.Sigmoid())
    found = judge("naive-log", model, (x, y), _binary)
    assert [f.severity for f in found] == [Severity.WARNING, Severity.ADVICE]
    assert judge("naive-log", model, (x, y), _guarded) == []


@pytest.mark.parametrize(("scale", "severity"), [(1.0, Severity.ADVICE), (40.0, Severity.WARNING)])
def test_one_hot_times_the_logarithm_of_a_softmax(judge: Judge, scale: float, severity: Severity) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 5))
    (found,) = judge("naive-log", model, (torch.randn(64, 8), torch.arange(64) % 5), _hot(scale))
    assert found.severity is severity
