from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import tightrope as tr
from tightrope.errors import InputError
from tightrope.instruments.estimate import ratio, student

FEATURES = 8


class Line(nn.Module):
    """A linear model at distance D from the optimum 0, with |D|^2 = 100."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1, FEATURES), math.sqrt(100 / FEATURES)).double())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)[:, 0]


def half_square(output: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (output - target).square().mean()


SIGMA2, SIGNAL = (FEATURES + 1) * 100.0 + FEATURES, 100.0
"""Of standard normal inputs and targets: tr Sigma = (d + 1) |D|^2 + d s^2."""


def draw(batches: int, size: int, rho: float = 0.0) -> list[tuple[Tensor, Tensor]]:
    """Two samples of a batch are the same one with probability rho."""
    x, y = torch.randn(batches, size, FEATURES).double(), torch.randn(batches, size).double()
    shared = torch.rand(batches, size) < math.sqrt(rho)
    x = torch.where(shared[..., None], torch.randn(batches, 1, FEATURES).double(), x)
    return list(zip(x, torch.where(shared, torch.randn(batches, 1).double(), y)))


class Batches:
    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)


def classifier(norm: bool = False) -> nn.Module:
    middle = [nn.BatchNorm1d(16)] if norm else []
    return nn.Sequential(nn.Linear(10, 16), *middle, nn.ReLU(), nn.Linear(16, 2))


def labelled(n: int = 512) -> TensorDataset:
    x = torch.randn(n, 10)
    return TensorDataset(x, (x[:, 0] + 0.5 * torch.randn(n) > 0).long())


@pytest.mark.parametrize(("batches", "size", "rho"), [(1, 512, 0.0), (16, 32, 0.0), (32, 32, 0.05)])
def test_known_covariance(batches: int, size: int, rho: float) -> None:
    """Unbiased within 3 standard errors of the mean, intervals that cover as binomial noise allows."""
    torch.manual_seed(2)
    model, trials = Line(), 50
    found = []
    for _ in range(trials):
        made = draw(batches, size, rho)
        found.append(tr.batch_noise(model, made[0] if batches == 1 else Batches(made), loss=half_square, batches=32))
    truths = {"sigma2": SIGMA2, "signal": SIGNAL, "noise_scale": SIGMA2 / SIGNAL}
    if batches > 1:
        truths |= {"rho": rho, "effective": size / (1 + (size - 1) * rho)}
    for name, truth in truths.items():
        told = [getattr(noise, name) for noise in found]
        values = torch.tensor([e.value for e in told])
        assert float(values.mean()) == pytest.approx(truth, abs=3 * float(values.std()) / math.sqrt(trials)), name
        assert sum(e.low <= truth <= e.high for e in told) / trials > 0.84, name
        errors = torch.tensor([e.error for e in told])
        assert float(errors.mean()) == pytest.approx(float(values.std()), rel=0.4), name


def test_the_law_of_the_mini_batch_mean() -> None:
    """Variance of batch means drawn anew, against sigma2 / m (1 + (m - 1) rho)."""
    torch.manual_seed(0)
    model = Line()
    noise = tr.batch_noise(model, Batches(draw(64, 32, 0.1)), loss=half_square, batches=64)
    assert noise.rho is not None
    assert noise.rho.value == pytest.approx(0.1, abs=0.03)
    for size in (4, 16, 128):
        means = torch.stack(
            [(x * (x @ model.weight.detach()[0] - y)[:, None]).mean(0) for x, y in draw(800, size, 0.1)]
        )
        assert noise.variance(size) == pytest.approx(float(means.var(0).sum()), rel=0.35)
        assert noise.variance(size) > noise.floor


def test_a_loader_in_order_is_found() -> None:
    torch.manual_seed(0)
    model, data = classifier(), labelled()
    order = data.tensors[1].argsort()
    noise = tr.batch_noise(
        model, DataLoader(TensorDataset(*(t[order] for t in data.tensors)), 32), loss=F.cross_entropy
    )
    assert noise.rho is not None and noise.rho.low > 0.1
    assert noise.effective is not None and noise.effective.high < 10
    assert [f.check for f in noise.findings] == ["loader-correlation"]
    mixed = tr.batch_noise(model, DataLoader(data, 32, shuffle=True), loss=F.cross_entropy)
    assert mixed.rho is not None and mixed.rho.low < 0 < mixed.rho.high
    assert mixed.floor == max(mixed.rho.value, 0.0) * mixed.sigma2.value
    assert not any(f.check == "loader-correlation" for f in mixed.findings)


def test_a_batch_far_too_large_and_one_far_too_small() -> None:
    torch.manual_seed(0)
    model = Line()
    assert [f.check for f in tr.batch_noise(model, draw(1, 1024)[0], loss=half_square).findings] == ["batch-too-large"]
    with torch.no_grad():
        model.weight.fill_(0.03)  # near the optimum noise is all there is
    small = tr.batch_noise(model, Batches(draw(600, 2)), loss=half_square, batches=600)
    assert [f.check for f in small.findings] == ["batch-too-small"]
    assert small.recommended.value == 2.0 ** round(math.log2(small.noise_scale.value))


def test_a_signal_lost_in_noise_has_no_upper_bound() -> None:
    torch.manual_seed(0)
    model = Line()
    with torch.no_grad():
        model.weight.zero_()
    noise = tr.batch_noise(model, draw(1, 64)[0], loss=half_square)
    assert noise.signal.low < 0
    assert math.isinf(noise.noise_scale.high)
    assert noise.noise_scale.low > 1
    assert "at least" in str(noise)


def test_batch_norm_needs_a_loader() -> None:
    torch.manual_seed(0)
    model, data = classifier(norm=True), labelled()
    with pytest.raises(InputError, match="batch normalisation"):
        tr.batch_noise(model, data[:64], loss=F.cross_entropy)
    noise = tr.batch_noise(model, DataLoader(data, 32), loss=F.cross_entropy)
    assert noise.method == "batch" and noise.rho is None and noise.effective is None
    means = []
    for x, y in DataLoader(data, 32):
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        means.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert noise.sigma2.value == pytest.approx(32 * float(torch.stack(means).var(0).sum()), rel=1e-4)
    assert tr.batch_noise(model.eval(), data[:64], loss=F.cross_entropy).method == "ghost"


def test_everything_is_left_as_found() -> None:
    torch.manual_seed(0)
    model, data = classifier(norm=True).append(nn.Dropout(0.5)), labelled()
    next(model.parameters()).grad = torch.ones(16, 10)
    loader = DataLoader(data, 32, shuffle=True, generator=torch.Generator().manual_seed(3))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    random, own = torch.get_rng_state(), loader.generator.get_state()
    tr.batch_noise(model, loader, loss=F.cross_entropy)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random) and torch.equal(loader.generator.get_state(), own)
    assert [p.grad is None for p in model.parameters()] == [False, *[True] * 5]
    assert bool((next(model.parameters()).grad == 1).all())
    assert model.training


def test_batches_of_another_size_are_left_out() -> None:
    torch.manual_seed(0)
    noise = tr.batch_noise(classifier(), DataLoader(labelled(210), 32), loss=F.cross_entropy)
    assert (noise.batches, noise.batch_size) == (6, 32)


def test_single_samples_as_batches() -> None:
    torch.manual_seed(0)
    model, made = Line(), draw(200, 1)
    noise = tr.batch_noise(model, Batches(made), loss=half_square, batches=200)
    assert noise.rho is None
    together = torch.cat([x for x, _ in made]), torch.cat([y for _, y in made])
    assert noise.sigma2.value == pytest.approx(tr.batch_noise(model, together, loss=half_square).sigma2.value)


@pytest.mark.parametrize(
    ("data", "batches", "loss", "words"),
    [
        (lambda: labelled()[:2], 16, F.cross_entropy, "holds 2 samples"),
        (lambda: DataLoader(labelled(64), 32), 16, F.cross_entropy, "has 2 batches"),
        (lambda: DataLoader(labelled(), 32), 2, F.cross_entropy, "batches is 2"),
        (lambda: iter(DataLoader(labelled(), 32)), 16, F.cross_entropy, "used up"),
        (lambda: Batches([]), 16, F.cross_entropy, "empty"),
        (lambda: (torch.full((32, 10), torch.nan), torch.zeros(32).long()), 16, F.cross_entropy, "NaN"),
        (lambda: labelled()[:32], 16, lambda o, t: F.cross_entropy(o, t, reduction="none"), "shape"),
    ],
)
def test_refusals(data: Callable[[], Any], batches: int, loss: Any, words: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(InputError, match=words):
        tr.batch_noise(classifier(), data(), loss=loss, batches=batches)


def test_students_points() -> None:
    for freedom in (3, 5, 15, 100):
        assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=2e-3)


def test_ratio() -> None:
    spread = torch.tensor([[0.04, 0.0], [0.0, 0.01]]).double()
    known = ratio(2.0, 1.0, spread, 1.96)
    assert known.low < known.value < known.high < math.inf
    assert known.value == pytest.approx(2.0 / 1.01)
    assert ratio(2.0, 0.1, spread, 1.96).high == math.inf
    assert ratio(2.0, 0.1, spread, 1.96).low > 4
    assert math.isinf(ratio(2.0, -0.05, spread, 1.96).value)
    assert math.isinf(ratio(2.0, -5.0, spread, 1.96).low)  # significantly below zero
    assert ratio(0.1, 1.0, spread, 1.96).low == 0.0
