"""The compass against closed forms of ridge regression, and against training again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tightrope as tr
from tightrope.errors import InputError, RecordError
from tightrope.instruments.solve import solve

Data = tuple[Tensor, Tensor]


def square(output: Tensor, target: Tensor) -> Tensor:
    return (output[:, 0] - target).square().mean()


def regression(features: int = 20, samples: int = 40, noise: float = 2.0, seed: int = 0) -> tuple[Data, Data]:
    torch.manual_seed(seed)
    weight = torch.randn(features, dtype=torch.float64) / features**0.5
    x = torch.randn(2 * samples, features, dtype=torch.float64)
    y = x @ weight + noise * torch.randn(2 * samples, dtype=torch.float64)
    return (x[:samples], y[:samples]), (x[samples:], y[samples:])


def linear(weight: Tensor, *before: nn.Module) -> nn.Sequential:
    layer = nn.Linear(len(weight), 1, bias=False, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight[None])
    return nn.Sequential(*before, layer)


def ridge(train: Data, penalty: Tensor | float) -> Tensor:
    """Minimum of the mean square and w' penalty w / 2."""
    x, y = train
    matrix = torch.as_tensor(penalty, dtype=x.dtype) * torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.solve(2 / len(x) * x.T @ x + matrix, 2 / len(x) * x.T @ y)


def closed(train: Data, val: Data, penalty: Tensor | float, slope: Tensor | float) -> float:
    """dE_val/dh at the ridge minimum whose penalty has this derivative in h."""
    (x, _), (xv, yv) = train, val
    w = ridge(train, penalty)
    eye = torch.eye(x.shape[1], dtype=x.dtype)
    bend = 2 / len(x) * x.T @ x + torch.as_tensor(penalty, dtype=x.dtype) * eye
    response = -torch.linalg.solve(bend, torch.as_tensor(slope, dtype=x.dtype) * w)
    return float(2 / len(xv) * xv.T @ (xv @ w - yv) @ response)


@pytest.mark.parametrize("features", [20, 300])
def test_ridge_is_the_closed_form(features: int) -> None:
    train, val = regression(features, 200)
    model = linear(ridge(train, 0.3))
    found = tr.compass(model, train=train, val=val, loss=square, hyperparameters={"weight_decay": 0.3})
    assert found.derivatives["weight_decay"] == pytest.approx(closed(train, val, 0.3, 1.0), rel=1e-10)
    assert found.converged and found.residual < 1e-10
    assert found.headings["weight_decay"].numerical < 1e-9 * abs(found.derivatives["weight_decay"])


def test_the_second_derivative_of_ridge() -> None:
    train, val = regression()
    found = tr.compass(
        linear(ridge(train, 0.3)), train=train, val=val, loss=square, hyperparameters={"weight_decay": 0.3}
    )
    h = 1e-4
    difference = (closed(train, val, 0.3 + h, 1.0) - closed(train, val, 0.3 - h, 1.0)) / (2 * h)
    assert found.headings["weight_decay"].second == pytest.approx(difference, rel=1e-5)


def test_single_precision_says_what_it_reached() -> None:
    train, val = regression(300, 200)
    single = [tuple(t.float() for t in data) for data in (train, val)]
    model = linear(ridge(train, 0.3).float())
    found = tr.compass(model, train=single[0], val=single[1], loss=square, hyperparameters={"weight_decay": 0.3})
    h = found.headings["weight_decay"]
    assert abs(h.derivative - closed(train, val, 0.3, 1.0)) <= h.numerical
    assert h.numerical < 0.01 * abs(h.derivative)


@pytest.mark.parametrize("value", [0.01, 10.0])
def test_both_sides_of_the_curve(value: float) -> None:
    train, val = regression(40, 50, noise=2.0)
    val = tuple(torch.cat([t] * 40) for t in val)  # type: ignore[assignment]
    found = tr.compass(
        linear(ridge(train, value)), train=train, val=val, loss=square, hyperparameters={"weight_decay": value}
    )
    assert found.side == ("overfitting" if value < 1 else "underfitting")
    assert (found.overfitting, found.underfitting) == (value < 1, value > 1)
    assert (found.proposal["weight_decay"] > value) == (value < 1)
    assert found.verdict and ("raise" if value < 1 else "lower") in found.verdict and found.side in str(found)


def test_the_sampling_error_is_that_of_other_validation_sets() -> None:
    train, _ = regression(10, 40)
    x, y = regression(10, 40 * 200, seed=1)[0]
    model = linear(ridge(train, 0.1))
    found = [
        tr.compass(model, train=train, val=part, loss=square, hyperparameters={"weight_decay": 0.1}).headings[
            "weight_decay"
        ]
        for part in zip(x.split(80), y.split(80), strict=True)
    ]
    spread = torch.tensor([h.derivative for h in found]).std()
    assert float(spread) == pytest.approx(sum(h.sampling for h in found) / len(found), rel=0.15)


def test_away_from_the_minimum_the_error_holds_the_distance() -> None:
    train, val = regression()
    exact = closed(train, val, 0.3, 1.0)
    model = linear(ridge(train, 0.3) + 0.05 * torch.randn(20, dtype=torch.float64))
    found = tr.compass(model, train=train, val=val, loss=square, hyperparameters={"weight_decay": 0.3})
    h = found.headings["weight_decay"]
    assert h.solver + 1e-9 < abs(h.derivative - exact) <= 1.5 * h.stationarity
    assert found.distance > 0.01


def test_dropout_of_inputs_is_ridge() -> None:
    """Over masks, the square of a linear net is that of the plain one and p / (1 - p) of each feature's mean square."""
    train, val = regression(10, 60)
    rate, scale = 0.3, 2 * train[0].square().mean(0)
    model = linear(ridge(train, rate / (1 - rate) * scale), nn.Dropout(rate)).eval()
    exact = closed(train, val, rate / (1 - rate) * scale, scale / (1 - rate) ** 2)
    found = tr.compass(model, train=train, val=val, loss=square, hyperparameters={"dropout": rate}, draws=100)
    h = found.headings["dropout"]
    assert abs(h.derivative - exact) < h.numerical
    assert 0 < h.draws < 0.5 * abs(exact)
    assert not model.training and found.repeats == 100


def test_noise_on_inputs_is_ridge() -> None:
    train, val = regression(10, 60)
    strength = 0.5

    def augment(x: Tensor, s: float) -> Tensor:
        return x + s * torch.randn_like(x)

    model = linear(ridge(train, 2 * strength**2))
    exact = closed(train, val, 2 * strength**2, 4 * strength)
    found = tr.compass(
        model, train=train, val=val, loss=square, hyperparameters={"augmentation": strength}, augment=augment, draws=100
    )
    h = found.headings["augmentation"]
    assert abs(h.derivative - exact) < h.numerical
    assert 0 < h.draws < 0.5 * abs(exact) and h.difference < 0.01 * abs(exact)


def test_a_penalty_of_ones_own_is_weight_decay() -> None:
    train, val = regression()

    def penalty(net: nn.Module, values: dict[str, Tensor]) -> Tensor:
        return values["own"].exp() * sum(p.square().sum() for p in net.parameters()) / 2

    at = torch.tensor(0.3, dtype=torch.float64)
    model = linear(ridge(train, float(at.exp())))
    found = tr.compass(model, train=train, val=val, loss=square, hyperparameters={"own": 0.3}, penalty=penalty)
    assert found.derivatives["own"] == pytest.approx(closed(train, val, at.exp(), at.exp()), rel=1e-10)


def trained(model: nn.Module, loss: Callable[[], Tensor]) -> nn.Module:
    """At the minimum to rounding, by L-BFGS."""
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=2000, max_eval=4000, tolerance_grad=1e-12, tolerance_change=1e-16,
        line_search_fn="strong_wolfe", history_size=50,
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return model


def fitted(train: Data, decay: float, smooth: float) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()

    def loss() -> Tensor:
        norm = sum(p.square().sum() for p in model.parameters())
        return F.cross_entropy(model(train[0]), train[1], label_smoothing=smooth) + decay / 2 * norm

    return trained(model, loss)


def test_decay_and_smoothing_against_training_again() -> None:
    torch.manual_seed(1)
    x = torch.randn(120, 6, dtype=torch.float64)
    y = (x[:, :3] + torch.randn(120, 3, dtype=torch.float64)).argmax(1)
    train, val = (x[:60], y[:60]), (x[60:], y[60:])
    values = {"weight_decay": 0.02, "label_smoothing": 0.1}
    model = fitted(train, 0.02, 0.1)
    found = tr.compass(model, train=train, val=val, loss=F.cross_entropy, hyperparameters=values)

    def validation(decay: float, smooth: float) -> float:
        return float(F.cross_entropy(fitted(train, decay, smooth)(val[0]), val[1]).detach())

    h = 1e-3
    decay = (validation(0.02 + h / 4, 0.1) - validation(0.02 - h / 4, 0.1)) / (h / 2)
    smooth = (validation(0.02, 0.1 + h) - validation(0.02, 0.1 - h)) / (2 * h)
    assert found.derivatives["weight_decay"] == pytest.approx(decay, rel=2e-3)
    assert found.derivatives["label_smoothing"] == pytest.approx(smooth, rel=2e-3)
    assert not found.lowest < 0 and found.damping == 0


def test_negative_curvature_is_damped_and_said() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    x = torch.randn(50, 4, dtype=torch.float64)
    data = (x, x[:, 0] * x[:, 1])
    found = tr.compass(model, train=data, val=data, loss=square, hyperparameters={"weight_decay": 1e-4})
    assert found.lowest < 0 and found.damping == pytest.approx(-2 * found.lowest)
    assert found.headings["weight_decay"].damping > 0 and "damping" in str(found)


class Twin(nn.Module):
    """Batch norm and dropout, named inputs and an output in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm, self.drop, self.head = (
            nn.Linear(5, 8),
            nn.BatchNorm1d(8),
            nn.Dropout(0.2),
            nn.Linear(8, 2),
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.drop(self.norm(self.enter(x)).relu()))}


def test_nothing_is_changed_and_modes_are_said() -> None:
    torch.manual_seed(0)
    model = Twin()
    model.drop.eval()
    x, y = torch.randn(32, 5), torch.randint(2, (32,))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    random = torch.get_rng_state()
    found = tr.compass(
        model, train=(x[:16], y[:16]), val=(x, y), draws=3,
        loss=lambda out, target: F.cross_entropy(out["logits"], target),
        hyperparameters={"weight_decay": 0.1, "dropout": 0.2},
    )  # fmt: skip
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert modes == [m.training for m in model.modules()] and torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters()) and "forward" not in model.drop.__dict__
    assert any("batch norm" in mode for mode in found.modes) and set(found.errors) == {"weight_decay", "dropout"}


def test_batches_of_a_loader_are_the_whole() -> None:
    train, val = regression()
    model = linear(ridge(train, 0.3))
    parts = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*train), 7)
    one, many = (
        tr.compass(model, train=data, val=val, loss=square, hyperparameters={"weight_decay": 0.3})
        for data in (train, parts)
    )
    assert many.derivatives["weight_decay"] == pytest.approx(one.derivatives["weight_decay"], rel=1e-10)


def test_what_did_not_converge_is_said() -> None:
    train, val = regression(300, 100)
    model = linear(ridge(train, 1e-3))
    found = tr.compass(
        model, train=train, val=val, loss=square, hyperparameters={"weight_decay": 1e-3}, products=6
    )  # fmt: skip
    exact = closed(train, val, 1e-3, 1.0)
    assert not found.converged and found.residual > 1e-4 and "not converged" in str(found)
    assert abs(found.derivatives["weight_decay"] - exact) <= found.headings["weight_decay"].solver


def test_solve_with_damping_is_direct() -> None:
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(300, 300, dtype=torch.float64)).Q
    values = torch.linspace(-0.5, 4, 300, dtype=torch.float64)
    matrix, b = (basis * values) @ basis.T, torch.randn(300, dtype=torch.float64)
    found = solve(lambda v: matrix @ v, [b], tolerance=1e-9, products=400, damping=0.0)
    assert found.negative and found.damping == pytest.approx(1.0, rel=0.01)
    exact = torch.linalg.solve(matrix + found.damping * torch.eye(300, dtype=torch.float64), b)
    assert torch.allclose(found.solutions[0].vector, exact, atol=1e-7)
    assert found.solutions[0].converged


def test_the_walk_ends_at_the_bottom() -> None:
    train, val = regression(40, 50)
    curve = [
        (float((val[0] @ ridge(train, lam) - val[1]).square().mean()), lam)
        for lam in torch.logspace(-3, 3, 601).tolist()
    ]

    def fit(values: dict[str, float]) -> nn.Module:
        return linear(ridge(train, values["weight_decay"]))

    found = tr.walk(fit, {"weight_decay": 1e-3}, train=train, val=val, loss=square, past_noise=True, steps=15)
    assert found.reason == "small steps" and len(found.readings) < 12
    assert found.best["weight_decay"] == pytest.approx(min(curve)[1], rel=0.05)
    assert min(found.losses) == pytest.approx(min(curve)[0], rel=1e-4) and "lowest at" in str(found)
    honest = tr.walk(fit, {"weight_decay": 1e-3}, train=train, val=val, loss=square, steps=15)
    assert honest.reason == "best" and len(honest.readings) <= len(found.readings)
    with pytest.raises(InputError, match="fit returned"):
        tr.walk(lambda _: None, {"weight_decay": 1.0}, train=train, val=val, loss=square)  # type: ignore[arg-type,return-value]


def test_refusals() -> None:
    train, val = regression()
    model = linear(ridge(train, 0.3))

    def refused(match: str, **options: object) -> None:
        asked = {"train": train, "val": val, "loss": square, "hyperparameters": {"weight_decay": 0.1}, **options}
        with pytest.raises(InputError, match=match):
            tr.compass(model, **asked)  # type: ignore[arg-type]

    refused("no hyperparameter", hyperparameters={})
    refused("momentum is none of", hyperparameters={"momentum": 0.9})
    refused("no dropout module", hyperparameters={"dropout": 0.5})
    refused("weight_decay is -1", hyperparameters={"weight_decay": -1.0})
    refused("augment", hyperparameters={"augmentation": 1.0})
    refused("no such argument", hyperparameters={"label_smoothing": 0.1})
    refused("draws is 1", draws=1)
    with pytest.raises(RecordError, match="size"):
        tr.compass(model, train=train, val=(val[0], val[1][:3]), loss=square, hyperparameters={"weight_decay": 0.1})
