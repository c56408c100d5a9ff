from __future__ import annotations

import copy
import doctest

import pytest
import torch
from torch import Tensor, nn

import tightrope as tr
import tightrope.nn.stochastic_depth
from tightrope.errors import InputError
from tightrope.nn import StochasticDepth


def inverted(x: Tensor, drop: float, mode: str, training: bool) -> Tensor:
    """The rule of `torchvision.ops.stochastic_depth`, as its documentation states it."""
    if not training:
        return x
    shape = [x.shape[0] if mode == "row" else 1] + [1] * (x.dim() - 1)
    gate = torch.bernoulli(torch.full(shape, 1 - drop))
    return x * gate / (1 - drop)


@pytest.mark.parametrize("mode", ["row", "batch"])
@pytest.mark.parametrize("training", [True, False])
def test_the_other_convention(mode: str, training: bool) -> None:
    x = torch.randn(64, 3, 4, 4)
    layer = StochasticDepth(0.3, mode, scale="training").train(training)
    torch.manual_seed(1)
    mine = layer(x)
    kept = (mine.flatten(1).abs().sum(1) > 0).float()
    if training:
        assert torch.allclose(mine, x * kept.view(-1, 1, 1, 1) / 0.7)
        draws = [inverted(x, 0.3, mode, True).flatten(1).abs().sum(1).gt(0).float().mean() for _ in range(200)]
        mean = torch.stack([(layer(x).flatten(1).abs().sum(1) > 0).float().mean() for _ in range(200)]).mean()
        error = 0.46 / (200 * (64 if mode == "row" else 1)) ** 0.5
        assert abs(float(mean) - 0.7) < 4 * error and abs(float(torch.stack(draws).mean()) - 0.7) < 4 * error
    else:
        assert torch.equal(mine, inverted(x, 0.3, mode, False))


def test_inference_is_the_mean_of_training() -> None:
    x = torch.randn(1, 8).expand(20_000, 8)
    layer = StochasticDepth(0.2)
    drawn = layer(x)
    assert set(drawn[:, 0].unique().tolist()) == {0.0, float(x[0, 0])}
    error = (0.2 * 0.8 / 20_000) ** 0.5 * x[0].abs()
    expected = layer.eval()(x)[0]
    assert torch.equal(expected, x[0] * 0.8)
    assert bool(((drawn.mean(0) - expected).abs() < 5 * error).all())


def test_a_row_is_dropped_whole_and_a_batch_too() -> None:
    x = torch.ones(100, 3, 2)
    rows = StochasticDepth(0.5)(x).flatten(1)
    assert torch.equal(rows.amin(1), rows.amax(1)) and 20 < int(rows[:, 0].sum()) < 80
    batches = [StochasticDepth(0.5, "batch")(x) for _ in range(20)]
    assert all(len(b.unique()) == 1 for b in batches) and len(torch.stack(batches).unique()) == 2


@pytest.mark.parametrize("scale", ["inference", "training"])
@pytest.mark.parametrize("drop", [0.0, 1.0])
def test_the_ends(drop: float, scale: str) -> None:
    x = torch.randn(4, 3)
    layer = StochasticDepth(drop, scale=scale)  # type: ignore[arg-type]
    assert torch.equal(layer(x), x * (1 - drop))


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_gradient_dtype_copy_and_script(kind: torch.dtype) -> None:
    layer = StochasticDepth(0.5)
    x = torch.randn(6, 4, dtype=kind, requires_grad=True)
    scripted, copied = torch.jit.script(layer), copy.deepcopy(layer)
    torch.manual_seed(0)
    y = layer(x)
    y.sum().backward()
    assert y.dtype is kind and x.grad is not None
    assert torch.equal(x.grad, torch.where(y == 0, 0.0, 1.0).to(kind))
    for twin in (scripted, copied):
        torch.manual_seed(0)
        assert torch.equal(twin(x), y)


def test_the_forecast_covers_it() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.depth = nn.Linear(64, 64), StochasticDepth(0.4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.depth(self.inner(x))

    x = torch.randn(512, 64)
    forecast = tr.predict(Net(), x)
    found = tr.compare(forecast, tr.measure(Net(), x))
    assert not forecast.simulated and not forecast.unknown
    assert found.rows


@pytest.mark.parametrize(
    ("options", "words"), [((1.5,), "drop is 1.5"), ((0.5, "column"), "mode is 'column'"), ((float("nan"),), "drop is")]
)
def test_says_what_is_wrong(options: tuple[object, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        StochasticDepth(*options)  # type: ignore[arg-type]


def test_the_example_in_the_docstring_and_the_repr() -> None:
    assert doctest.testmod(tightrope.nn.stochastic_depth).failed == 0
    assert repr(StochasticDepth(0.25)) == "StochasticDepth(drop=0.25, mode=row, scale=inference)"
