"""Margins against closed forms, scikit-learn, and the law of gradient descent."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tightrope as tr
from tightrope.errors import InputError
from tightrope.instruments.separator import separator

svm = pytest.importorskip("sklearn.svm")


def halves(samples: int, features: int, gap: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    weight = F.normalize(torch.randn(features, dtype=torch.float64), dim=0)
    x = torch.randn(samples, features, dtype=torch.float64)
    side = (x @ weight).sign()
    return x + gap * side[:, None] * weight, (side > 0).long()


@pytest.mark.parametrize(("samples", "features"), [(20, 2), (120, 6), (30, 60)])
def test_the_separator_is_that_of_scikit_learn(samples: int, features: int) -> None:
    x, y = halves(samples, features, 0.3)
    side = 2 * y.numpy() - 1
    found = separator(x.numpy() * side[:, None])
    other = svm.LinearSVC(fit_intercept=False, C=1e5, loss="hinge", max_iter=1_000_000, tol=1e-9).fit(x.numpy(), side)
    cosine = float(other.coef_[0] @ found.weight / np.linalg.norm(other.coef_) / np.linalg.norm(found.weight))
    assert cosine == pytest.approx(1.0, abs=1e-6)
    assert found.margin >= float((x.numpy() @ other.coef_[0] * side).min() / np.linalg.norm(other.coef_)) - 1e-9
    assert found.margin <= found.bound <= found.margin * (1 + 1e-10) and found.angle < 1e-4


def test_two_points_have_a_margin_in_closed_form() -> None:
    found = separator(np.array([[0.5, 1.5], [1.5, 0.5], [3.0, 3.0]]))
    assert found.margin == pytest.approx(math.sqrt(2)) and found.weight == pytest.approx([0.5, 0.5])
    assert found.support == (0, 1)


def test_what_cannot_be_separated_is_said() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(60, 3), torch.randint(3, (60,))
    found = tr.margin(nn.Linear(3, 3), (x, y))
    assert not found.separable and math.isnan(found.angle) and "separates" in str(found)
    assert found.bound < 1e-6  # the origin is in the hull: no margin is larger


def test_margins_of_a_linear_layer() -> None:
    x, y = halves(50, 4, 0.2)
    model = nn.Linear(4, 1, bias=False).double()
    found = tr.margin(model, (x, y))
    expected = (x @ model.weight[0]) * (2 * y - 1)
    assert torch.allclose(found.margins, expected.detach())
    assert found.order == 1 and found.normalised == pytest.approx(
        float((expected.min() / model.weight.norm()).detach())
    )
    assert found.reached == pytest.approx(found.normalised) and found.largest >= 0.2
    with torch.no_grad():
        model.weight.copy_(torch.as_tensor(separator(x.numpy() * (2 * y.numpy() - 1)[:, None]).weight)[None])
    best = tr.margin(model, (x, y))
    assert best.angle < 1e-5 and best.reached == pytest.approx(best.largest) and best.wrong == 0
    assert torch.allclose(best.margins[list(best.support)], best.margins.min().expand(len(best.support)))


def test_the_order_of_a_net_is_its_depth() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(40, 5), torch.randint(3, (40,))
    deep = nn.Sequential(
        nn.Linear(5, 8, bias=False), nn.ReLU(), nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)
    )
    found = tr.margin(deep, (x, y))
    norm = math.sqrt(sum(float(p.square().sum()) for p in deep.parameters()))
    assert found.order == 3 and found.normalised == pytest.approx(found.smallest / norm**3)
    assert found.layer == "4"
    assert tr.margin(nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)), (x, y)).order is None


def test_several_classes_against_a_quadratic_program() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    torch.manual_seed(1)
    y = torch.arange(12) % 3
    x = 3 * torch.eye(3)[y][:, :2] + 0.3 * torch.randn(12, 2)
    found = tr.margin(nn.Linear(2, 3), (x, y))
    features = np.concatenate([x.double().numpy(), np.ones((12, 1))], 1)

    def sides(w: np.ndarray) -> np.ndarray:
        logits = features @ w.reshape(3, 3).T
        return np.concatenate([logits[range(12), y] - logits[range(12), (y + k) % 3] for k in (1, 2)])

    made = optimize.minimize(
        lambda w: w @ w / 2, np.zeros(9), jac=lambda w: w, constraints={"type": "ineq", "fun": lambda w: sides(w) - 1},
        options={"maxiter": 500, "ftol": 1e-14},
    )  # fmt: skip
    assert found.largest == pytest.approx(1 / np.linalg.norm(made.x), rel=1e-5)


def test_gradient_descent_turns_to_the_largest_margin() -> None:
    x = torch.tensor([[0.5, 1.5], [1.5, 0.5], [3.0, 1.0], [4.0, 0.0]], dtype=torch.float64)
    x, y = torch.cat([x, -x]), torch.arange(8) < 4
    model = nn.Linear(2, 1, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    angles = []
    for step in range(1001):
        if step in (10, 100, 1000):
            angles.append(tr.margin(model, (x, y)).angle)
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(x)[:, 0], y.double()).backward()
        optimizer.step()
    assert angles[0] > angles[1] > angles[2] > 0


def test_nothing_is_changed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    tr.margin(model, (torch.randn(16, 4), torch.randint(2, (16,))))
    assert model.training and all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


def test_refusals() -> None:
    x = torch.randn(6, 4)
    with pytest.raises(InputError, match="Pass \\(inputs, target\\)"):
        tr.margin(nn.Linear(4, 2), x)
    with pytest.raises(InputError, match="classes go up to 4"):
        tr.margin(nn.Linear(4, 2), (x, torch.tensor([0, 1, 4, 0, 1, 0])))
    with pytest.raises(InputError, match="the output is"):
        tr.margin(nn.Linear(4, 2), (x, torch.zeros(5).long()))
