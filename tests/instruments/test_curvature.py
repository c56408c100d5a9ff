"""Curvature against the full Hessian, closed forms, and the optimizers themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import tightrope as tr
from tightrope.errors import InputError, RecordError
from tightrope.instruments.hessian import hessian, unflat
from tightrope.instruments.lanczos import Run


class Bowl(nn.Module):
    """w' A w / 2: a loss whose Hessian is A."""

    matrix: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.weight = nn.Parameter(torch.randn(len(matrix), dtype=matrix.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight @ self.matrix @ self.weight * x.mean() / 2


def turned(eigenvalues: list[float] | np.ndarray, size: int = 300, dtype: torch.dtype = torch.float64) -> Tensor:
    """A matrix with these eigenvalues, and zeros."""
    values = torch.zeros(size, dtype=torch.float64)
    values[: len(eigenvalues)] = torch.as_tensor(eigenvalues, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q
    return ((basis * values) @ basis.T).to(dtype)


def of_bowl(matrix: Tensor, **options: Any) -> tr.Curvature:
    return tr.curvature(Bowl(matrix), torch.ones(1, dtype=matrix.dtype), **options)


def full(model: nn.Module, inputs: Tensor, loss: Callable[[Tensor], Tensor]) -> np.ndarray:
    """All eigenvalues, largest first, of the Hessian that torch.func makes."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    parameters = [p.detach() for p in model.parameters() if p.requires_grad]

    def of(vector: Tensor) -> Tensor:
        parts = dict(zip(names, unflat(vector, parameters), strict=True))
        return loss(functional_call(model, parts, (inputs,)))

    made = torch.func.hessian(of)(torch.cat([p.reshape(-1) for p in parameters]))
    return np.linalg.eigvalsh(made.double().numpy())[::-1]


def honest(found: tr.Curvature, truth: np.ndarray) -> None:
    """No silent error: what counts as resolved is right, and each bound holds."""
    off = np.abs(np.array(found.eigenvalues) - truth[: len(found.eigenvalues)])
    rounding = 1e-13 * np.abs(truth).max()  # of the truth itself
    assert (off <= np.array(found.errors) + rounding).all()
    assert found.converged == all(found.resolved)
    for wrong, good, value in zip(off, found.resolved, truth, strict=False):
        assert not good or wrong <= 1e-4 * abs(value)
    scale = found.smallest_error + 1e-6 * np.abs(truth).max()
    assert -1e-6 * np.abs(truth).max() <= found.smallest - truth[-1] <= scale


SPECTRA: dict[str, tuple[Callable[[np.random.Generator], Any], int]] = {
    "random": (lambda g: g.normal(size=300), 5),
    "negative": (lambda g: -g.uniform(0.1, 1, size=300), 5),
    "indefinite": (lambda g: [5, 4, 3, 2, 1, -9, -8, *g.normal(size=50) * 0.1], 5),
    "clustered": (lambda g: [*(3 + 1e-6 * np.arange(7)), *g.uniform(0, 2.9, size=293)], 5),
    "nearly clustered": (lambda g: [*(3 + 1e-3 * np.arange(7)), *g.uniform(-2, 2.9, size=293)], 5),
    "five-fold": (lambda g: [4] * 5 + [*g.uniform(-1, 1, size=200)], 5),
    "nine-fold": (lambda g: [4] * 9 + [*g.uniform(-1, 1, size=200)], 5),
    "identity": (lambda g: [1] * 300, 5),
    "zero": (lambda g: [], 5),
    "rank one": (lambda g: [3], 1),
    "rank three": (lambda g: [3, 2, 2], 3),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", SPECTRA)
def test_known_spectra(name: str, dtype: torch.dtype) -> None:
    make, resolved = SPECTRA[name]
    values = np.array([*make(np.random.default_rng(3)), *[0.0] * 300])[:300]
    found = of_bowl(turned(values, dtype=dtype), probes=1)
    truth = np.sort(values)[::-1]
    truth[np.abs(truth) < 1e-14] = 0
    assert found.resolved[:resolved] == (True,) * resolved
    honest(found, truth + 0.0)


def test_what_is_zero_to_rounding_has_no_relative_error() -> None:
    found = of_bowl(turned([3.0]))
    assert found.resolved == (True, False, False, False, False) and not found.converged
    assert found.lambda_max == pytest.approx(3.0) and all(abs(v) <= 1e-12 for v in found.eigenvalues[1:])
    assert str(found).count("zero to within its error") == 4


ACTIVATIONS = (nn.Tanh, nn.ReLU, nn.GELU, nn.Softplus)


@pytest.mark.parametrize("seed", range(8))
def test_random_nets_have_no_silent_error(seed: int) -> None:
    torch.manual_seed(seed)
    dtype = (torch.float32, torch.float64)[seed % 2]
    act = ACTIVATIONS[seed // 2]
    model = nn.Sequential(nn.Linear(10, 16), act(), nn.Linear(16, 8), act(), nn.Linear(8, 3)).to(dtype)
    x, y = torch.randn(24, 10, dtype=dtype), torch.randint(3, (24,))
    found = tr.curvature(model, (x, y), loss=F.cross_entropy)
    truth = full(model, x, lambda out: F.cross_entropy(out, y))
    assert found.converged
    honest(found, truth)
    assert abs(found.trace - truth.sum()) < 5 * found.trace_error


def test_small_nets_are_made_whole() -> None:
    model = nn.Linear(3, 2).double()
    x, y = torch.randn(20, 3).double(), torch.randn(20, 2).double()
    found = tr.curvature(model, (x, y), loss=F.mse_loss, top=20)
    truth = full(model, x, lambda out: F.mse_loss(out, y))
    assert np.allclose(found.eigenvalues, truth, rtol=1e-10) and len(found.eigenvalues) == 8
    assert found.trace == pytest.approx(truth.sum()) and found.smallest == pytest.approx(truth[-1])
    assert found.condition == pytest.approx(truth[0] / truth[-1]) == pytest.approx(found.condition_bound)
    assert found.products == 8


def test_a_budget_that_is_too_small_is_confessed() -> None:
    values = np.random.default_rng(0).normal(size=300)
    for products in (1, 8, 16, 40):
        found = of_bowl(turned(values), products=products, probes=1, steps=4)
        assert not found.converged
        honest(found, np.sort(values)[::-1])


def test_the_ceiling_is_exceeded_as_rarely_as_it_says() -> None:
    """Over start vectors, at a risk of one in ten, with one eigenvalue that sticks out."""
    matrix, hidden, risk, trials = torch.diag(torch.tensor([1.2, *[1.0] * 50, *[-1.0] * 49]).double()), 0, 0.1, 2000
    for _ in range(trials):
        run = Run(lambda v: matrix @ v, torch.randn(100).double(), torch.empty(0, 100).double(), 100)
        run.grow(1)
        hidden += run.ceiling(risk) < 1.2
    assert hidden / trials < risk + 3 * math.sqrt(risk * (1 - risk) / trials)
    run = Run(lambda v: matrix @ v, torch.randn(100).double(), torch.empty(0, 100).double(), 100)
    run.grow(3)  # three different eigenvalues
    assert run.ceiling() == pytest.approx(1.2) and run.floor() == pytest.approx(-1.0)


def test_ceiling_and_floor_close_in() -> None:
    matrix = turned(np.linspace(-1, 2, 300))
    run = Run(lambda v: matrix @ v, torch.randn(300).double(), torch.empty(0, 300).double(), 300)
    last = math.inf
    for _ in range(6):
        run.grow(20)
        assert 2 <= run.ceiling() <= last + 1e-9 and run.floor() <= -1
        assert run.excludes(run.ceiling() + 1e-6) and not run.excludes(float(run.values[-1]) - 1e-6)
        last = run.ceiling()
    assert last < 2.005


def test_density_and_shares() -> None:
    values = np.concatenate([[10.0], np.linspace(-1, 1, 999)])
    found = of_bowl(turned(values, 1000), top=1)
    drawn = found.density(800)
    assert np.trapezoid(drawn.density, drawn.values) == pytest.approx(1.0, rel=1e-3)
    exact = np.exp(-(((drawn.values[:, None] - values) / drawn.width) ** 2) / 2).mean(1)
    exact /= drawn.width * math.sqrt(2 * math.pi)
    assert np.abs(drawn.density - exact).mean() < 0.1 * exact.mean()
    below, error = found.spectrum.below(0.0)
    assert below == pytest.approx(0.5, abs=5 * error + 0.01) and error < 0.05
    assert abs(found.trace - 10) < 5 * found.trace_error


def test_condition_number() -> None:
    """Bounds hold where the spectrum is unknown between them; an indefinite matrix has no upper one."""
    values = np.geomspace(1e-2, 1, 300)
    found = of_bowl(turned(values), steps=150)
    assert 1 < found.condition <= 100 * (1 + 1e-9) <= found.condition_bound < 200
    assert found.condition > 50
    values = np.array([4.0, 2.0, 0.5, -1.0])
    found = of_bowl(turned(values, 4))
    assert found.condition == pytest.approx(8.0) and found.condition_bound == math.inf
    downhill = of_bowl(-torch.eye(3))
    assert math.isnan(downhill.condition) and "No direction curves upwards" in downhill.verdict
    assert downhill.steps["gradient descent"] == math.inf


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x.reshape(len(x), 3, 8)).mean(1)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(8, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cells(x.reshape(len(x), 3, 8))[0][:, -1]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 4, 6)), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Linear(32, 3)
    ),
    "dropout": lambda: nn.Sequential(nn.Linear(24, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 3)),
    "attention": Attention,
    "recurrent": Recurrent,
}


@pytest.mark.parametrize("name", MODELS)
def test_products_are_differences_of_gradients(name: str) -> None:
    model = MODELS[name]().double()
    x, y = torch.randn(6, 24).double(), torch.randint(3, (6,))
    parameters = list(model.parameters())
    with hessian(model, (x, y), F.cross_entropy) as operator:
        vector = torch.randn(operator.size).double()
        state = torch.get_rng_state()
        made = operator(vector)
        ends = []
        for sign in (1, -1):
            torch.set_rng_state(state)
            moved = [p + sign * 1e-5 * part for p, part in zip(parameters, unflat(vector, parameters), strict=True)]
            names = [name for name, _ in model.named_parameters()]
            model.eval() if name == "dropout" else None
            out = functional_call(model, dict(zip(names, moved, strict=True)), (x,))
            ends.append(torch.autograd.grad(F.cross_entropy(out, y), moved))
        slope = torch.cat([((a - b) / 2e-5).reshape(-1) for a, b in zip(*ends, strict=True)])
        if name == "dropout":  # its own mask is not that of another pass
            assert torch.equal(operator(vector), made)
        else:
            assert torch.allclose(made, slope, atol=1e-7 * float(made.abs().max()) + 1e-9)


def test_gauss_newton() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = torch.randn(10, 4).double(), torch.randint(3, (10,))
    found = tr.curvature(model, (x, y), loss=F.cross_entropy, matrix="gauss-newton", top=8)
    names = [name for name, _ in model.named_parameters()]
    parameters = [p.detach() for p in model.parameters()]

    def outputs(vector: Tensor) -> Tensor:
        parts = dict(zip(names, unflat(vector, parameters), strict=True))
        return functional_call(model, parts, (x,)).reshape(-1)

    where = torch.cat([p.reshape(-1) for p in parameters])
    jacobian = torch.func.jacrev(outputs)(where)
    bend = torch.func.hessian(lambda out: F.cross_entropy(out.view(10, 3), y))(outputs(where))
    truth = torch.linalg.eigvalsh(jacobian.T @ bend @ jacobian).flip(0)
    assert np.allclose(found.eigenvalues, truth[:8], rtol=1e-9)
    assert found.smallest > -1e-12


def test_nothing_is_changed() -> None:
    model = nn.Sequential(nn.Linear(24, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 3))
    model[4].weight.grad = torch.ones(3, 16)
    x, y = torch.randn(8, 24), torch.randint(3, (8,))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    with torch.no_grad():
        found = tr.curvature(model, (x, y), loss=F.cross_entropy)
    assert torch.equal(torch.get_rng_state(), random) and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model[4].weight.grad, torch.ones(3, 16)) and model[0].weight.grad is None
    assert found.modes == ("batch norm on this batch's statistics", "dropout: one fixed mask")
    model.eval()
    found = tr.curvature(model, (x, y), loss=F.cross_entropy, top=1)
    assert found.modes == ("batch norm on running statistics",)
    again = tr.curvature(model, (x, y), loss=F.cross_entropy, top=1)
    assert again.eigenvalues == found.eigenvalues


class Whole(nn.Module):
    """A model that returns its loss, has a frozen and an unused parameter, and is linear in another."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.frozen = nn.Linear(4, 1), nn.Linear(4, 4).requires_grad_(False)
        self.unused, self.line = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": self.inner(self.frozen(x)).square().mean() + self.line.sum()}


def test_models_that_return_their_loss() -> None:
    model, x = Whole(), torch.randn(16, 4)
    found = tr.curvature(model, x, top=3)
    features = torch.cat([model.frozen(x), torch.ones(16, 1)], 1).detach()
    truth = torch.linalg.eigvalsh(2 * features.T @ features / 16).flip(0)
    assert np.allclose(found.eigenvalues, truth[:3], rtol=1e-5) and found.parameters == 10
    flat = tr.curvature(nn.Linear(4, 2), x, loss=lambda out: out.mean())  # linear: nothing curves
    assert flat.eigenvalues == (0.0,) * 5 and flat.converged and flat.steps["gradient descent"] == math.inf


RATES: dict[str, tuple[Callable[[list[Any]], torch.optim.Optimizer], bool]] = {
    "plain": (lambda p: torch.optim.SGD(p, 0.1), False),
    "momentum": (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), False),
    "dampened": (lambda p: torch.optim.SGD(p, 0.1, momentum=0.8, dampening=0.5), False),
    "nesterov": (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True), False),
    "decay": (lambda p: torch.optim.SGD(p, 0.1, momentum=0.5, weight_decay=3.0), False),
    "rmsprop": (lambda p: torch.optim.RMSprop(p, 0.1, alpha=1.0, momentum=0.5), True),
    "adam": (lambda p: torch.optim.Adam(p, 0.1), True),
    "adam with decay": (lambda p: torch.optim.Adam(p, 0.1, weight_decay=2.0), True),
    "adamw": (lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.7), True),
    "amsgrad": (lambda p: torch.optim.Adam(p, 0.1, amsgrad=True), True),
}


def hold(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> None:
    """Give an adaptive optimizer a preconditioner, and make it so old that it keeps it."""
    optimizer.state[parameter] |= {}
    square = torch.linspace(1, 3, parameter.numel(), dtype=parameter.dtype).square()
    state = optimizer.state[parameter]
    for group in optimizer.param_groups:
        if "betas" in group:
            group["betas"] = (group["betas"][0], 1 - 1e-14)
    state["step"] = torch.tensor(1e18, dtype=torch.float64)
    for name in ("exp_avg_sq", "max_exp_avg_sq", "square_avg"):
        if name in state:
            state[name] = square.clone()
    if "exp_avg" in state:
        state["exp_avg"].zero_()


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_the_stable_rate_is_where_the_optimizer_turns(name: str, factor: float) -> None:
    make, adaptive = RATES[name]
    model = Bowl(turned([9.0, 4.0, 2.0, 1.0], 4))
    optimizer = make([model.weight])
    if adaptive:
        model(torch.ones(1)).backward()
        optimizer.step()
        hold(optimizer, model.weight)
    found = tr.curvature(model, torch.ones(1), optimizer=optimizer)
    assert found.step is not None and found.step.rate == 0.1
    with torch.no_grad():
        model.weight.copy_(1e-6 * torch.randn(4))
    optimizer.param_groups[0]["lr"] = factor * found.step.largest
    for group in optimizer.param_groups:
        group["momentum_buffer"] = None
    norms = []
    for _ in range(300):
        optimizer.zero_grad()
        model(torch.ones(1)).backward()
        optimizer.step()
        norms.append(float(model.weight.detach().norm()))
    assert (max(norms) > 100 * norms[0]) == (factor > 1)
    assert found.step.ratio == pytest.approx(0.1 / found.step.largest)


def test_rates_of_groups_and_of_nets() -> None:
    """Each group's rate scales its part of the Hessian; Adam's eigenvalue against the full matrix."""
    model = nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 2)).double()
    x, y = torch.randn(32, 12).double(), torch.randn(32, 2).double()
    optimizer = torch.optim.Adam([
        {"params": [*model[0].parameters()], "lr": 1e-3}, {"params": [*model[2].parameters()], "lr": 4e-3}
    ])  # fmt: skip
    assert tr.curvature(model, (x, y), loss=F.mse_loss, optimizer=optimizer, top=1).step is None  # no state yet
    for _ in range(3):
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
    found = tr.curvature(model, (x, y), loss=F.mse_loss, optimizer=optimizer, top=1)
    with hessian(model, (x, y), F.mse_loss) as operator:
        matrix = torch.stack([operator(row) for row in torch.eye(operator.size).double()])
    scales = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            second = optimizer.state[p]["exp_avg_sq"] / (1 - 0.999**3)
            scales.append((group["lr"] / 1e-3 / (second.sqrt() + 1e-8)).reshape(-1))
    root = torch.cat(scales).sqrt()
    sharpness = float(torch.linalg.eigvalsh(root[:, None] * matrix * root)[-1])
    assert found.step is not None and found.step.sharpness == pytest.approx(sharpness, rel=1e-4)
    assert found.step.largest == pytest.approx(3.8 / (0.1 * sharpness), rel=1e-3)
    assert "Adam: largest stable rate" in str(found)
    assert tr.curvature(model, (x, y), loss=F.mse_loss, optimizer=torch.optim.Adagrad(model.parameters())).step is None


def test_standardising_makes_the_bowl_round() -> None:
    """Inputs of mean 1: a largest eigenvalue of about the number of features beside 1 (Marchenko, Pastur 1967)."""
    size, features = 2048, 16
    x = 1 + torch.randn(size, features).double()
    y = torch.randn(size, 1).double()
    model = nn.Linear(features, 1).double()
    raw = tr.curvature(model, (x, y), loss=lambda out, t: F.mse_loss(out, t) / 2)
    model.bias.requires_grad_(False)
    scaled = tr.curvature(model, ((x - x.mean(0)) / x.std(0), y), loss=lambda out, t: F.mse_loss(out, t) / 2)
    edge = math.sqrt(features / size)
    assert raw.lambda_max == pytest.approx(1 + 1 + features, rel=0.05)
    assert scaled.condition == pytest.approx(((1 + edge) / (1 - edge)) ** 2, rel=0.1)
    change = scaled.against(raw)
    assert change.step == pytest.approx(raw.lambda_max / scaled.lambda_max, rel=1e-6)
    low, high = change.sharpness
    assert low <= scaled.lambda_max / raw.lambda_max <= high
    assert "times as long" in str(change) and str(change).splitlines()[0].split() == ["before", "after"]


def test_says_what_it_found() -> None:
    model = Bowl(turned([9.0, 4.0, -2.0], 3))
    text = str(tr.curvature(model, torch.ones(1), optimizer=torch.optim.SGD(model.parameters(), 1.0)))
    assert "Hessian of 3 parameters" in text and "eigenvalue 1" in text
    assert "4.5 times the largest stable one" in text


def net() -> nn.Module:
    return nn.Linear(4, 2)


X, Y = torch.ones(3, 4), torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("act", "kind", "words"),
    [
        (lambda: tr.curvature(net(), (X, Y), loss=F.mse_loss, top=0), InputError, "top is 0"),
        (lambda: tr.curvature(net(), (X, Y), loss=F.mse_loss, tolerance=2.0), InputError, "tolerance is 2"),
        (lambda: tr.curvature(net(), (X, Y), loss=F.mse_loss, matrix="fisher"), InputError, "matrix is 'fisher'"),  # type: ignore[arg-type]
        (lambda: tr.curvature(net(), X), InputError, r"shape \(3, 2\)"),
        (lambda: tr.curvature(net(), X, loss=lambda out: out), InputError, "the loss is a tensor"),
        (lambda: tr.curvature(net(), X, loss=lambda out: out.mean() * math.nan), InputError, "the loss is nan"),
        (lambda: tr.curvature(net(), X, loss=lambda out: torch.tensor(1.0)), RecordError, "depends on no parameter"),
        (lambda: tr.curvature(net(), torch.ones(3, 5), loss=torch.sum), RecordError, "mat1 and mat2"),
        (lambda: tr.curvature(Whole(), X, matrix="gauss-newton"), InputError, "computes its loss itself"),
        (lambda: tr.curvature(F.relu, X), InputError, "no torch.nn.Module"),  # type: ignore[arg-type]
        (
            lambda: tr.curvature(Bowl(torch.eye(2)), X, optimizer=torch.optim.SGD(net().parameters(), 0.0)),
            InputError,
            "rate of the first group is 0",
        ),
    ],
)
def test_says_what_is_wrong(act: Callable[[], object], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        act()
