from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor, nn

import tightrope as tr
from tightrope.errors import InputError
from tightrope.nn import StochasticDepth


def test_a_linear_net_has_none() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(16, 32), nn.Dropout(0.2), nn.Linear(32, 3))
    found = tr.jensen_gap(model, torch.randn(4, 16))
    assert found.law == pytest.approx(0.0, abs=1e-6)
    assert found.gap < 4 * found.error
    assert found.z == pytest.approx(1.0, abs=0.6)


def test_against_all_masks() -> None:
    """Dropout of 10 inputs in front of a rectifier: the mean over 2^10 masks, none left out."""
    p, model = 0.4, nn.Sequential(nn.Dropout(0.4), nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 2)).double()
    x = torch.randn(3, 10).double()
    exact = torch.zeros(3, 2).double()
    with torch.no_grad():
        for mask in product((0.0, 1.0), repeat=10):
            kept = torch.tensor(mask).double()
            weight = (1 - p) ** float(kept.sum()) * p ** (10 - float(kept.sum()))
            exact += weight * model[1:](x * kept / (1 - p))
        exact -= model[1:](x)
    found = tr.jensen_gap(model, x, draws=2048)
    assert bool(((found.measured - exact).abs() < 5 * found.standard_error).all())
    assert found.gap == pytest.approx(float(exact.square().mean().sqrt()), abs=4 * found.error)
    assert found.predicted is not None
    assert torch.allclose(found.predicted, exact, atol=0.15 * float(exact.abs().max()))  # the law takes sums as normal


def test_the_law_of_a_deep_net() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 64), nn.GELU(), nn.Dropout(0.3), nn.Linear(64, 4)
    )
    found = tr.jensen_gap(model, torch.randn(8, 16), draws=2000)
    assert found.gap > 10 * found.error
    assert found.law == pytest.approx(found.gap, rel=0.15)
    assert found.z is not None and found.z < 2
    assert found.unknown == ()


def test_a_convex_output_only_rises() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(16, 32), nn.Softplus())
    found = tr.jensen_gap(model, torch.randn(4, 16))
    assert found.predicted is not None
    assert bool((found.measured > -4 * found.standard_error).all()) and bool((found.predicted > -1e-6).all())


def test_without_masks_there_is_nothing() -> None:
    found = tr.jensen_gap(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), torch.randn(4, 4), draws=32)
    assert found.gap == found.spread == 0.0 and found.law == pytest.approx(0.0, abs=1e-6)


class Net(nn.Module):
    """A residual branch that is dropped, a normaliser with running statistics, and named inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm, self.inner = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 16)
        self.depth, self.head = StochasticDepth(0.3), nn.Linear(16, 2)

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
        h = self.norm(self.enter(x * scale))
        return {"logits": self.head(h + self.depth(torch.relu(self.inner(h))))}


def test_stochastic_depth_keeps_the_mean_and_nothing_is_changed() -> None:
    model = Net()
    model(torch.randn(64, 8), torch.ones(64, 1))
    batch = {"x": torch.randn(6, 8), "scale": torch.rand(6, 1)}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.depth.eval()
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    found = tr.jensen_gap(model, batch, samples=4)
    assert found.measured.shape == (4, 2)
    assert found.gap < 4 * found.error and found.spread > 0
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_says_what_it_found() -> None:
    text = str(tr.jensen_gap(nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)), torch.randn(5, 4), draws=64))
    assert text.splitlines()[0] == "Jensen gap of 5 x 3 outputs over 64 masks"
    assert "Monte-Carlo errors" in text


class Whole(nn.Linear):
    """A model that returns classes."""

    def __init__(self) -> None:
        super().__init__(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(1)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: tr.jensen_gap(nn.Linear(2, 2), torch.randn(2, 2), draws=8), "draws is 8"),
        (lambda: tr.jensen_gap(nn.Linear(2, 2), torch.randn(0, 2)), "is empty"),
        (lambda: tr.jensen_gap(nn.PReLU(), torch.tensor(1.0)), "no sample"),
        (lambda: tr.jensen_gap(Whole(), torch.zeros(2, 2)), "no floating-point tensor"),
    ],
)
def test_says_what_is_wrong(act: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        act()
