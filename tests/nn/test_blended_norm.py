from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.errors import InputError
from tightrope.nn import BlendedNorm

SHAPES = [(16, 6), (8, 6, 5), (4, 6, 3, 5), (2, 6, 3, 2, 4)]
NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def batch(shape: tuple[int, ...]) -> Tensor:
    channels = torch.arange(1.0, 7.0).view(1, 6, *[1] * (len(shape) - 2))
    return torch.randn(shape) * channels + channels


def trained(norm: nn.Module, x: Tensor) -> nn.Module:
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    for _ in range(3):
        norm(x + torch.randn_like(x))
    return norm


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_without_layer_statistics_it_is_batch_norm(shape: tuple[int, ...], momentum: float | None) -> None:
    x = batch(shape).double()
    theirs = trained(NORMS[len(shape)](6, momentum=momentum).double(), x)
    mine = BlendedNorm.from_batch_norm(theirs, pseudo=1e-12)
    for _ in range(3):
        y = batch(shape).double().requires_grad_()
        z = y.detach().clone().requires_grad_()
        expected, found = theirs(y), mine(z)
        (expected**3).sum().backward()
        (found**3).sum().backward()
        assert torch.allclose(found, expected, rtol=1e-9) and torch.allclose(z.grad, y.grad, atol=1e-7)  # type: ignore[arg-type]
    for name in ("running_mean", "running_var"):
        assert torch.allclose(getattr(mine, name), getattr(theirs, name))
    assert torch.allclose(mine.eval()(x), theirs.eval()(x), rtol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("training", [True, False])
def test_without_batch_statistics_it_is_layer_norm(shape: tuple[int, ...], training: bool) -> None:
    x = batch(shape).double()
    mine = BlendedNorm(6, pseudo=1e15).double()
    mine(x)
    with torch.no_grad():
        mine.weight.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    expected = F.group_norm(x, 1, mine.weight, mine.bias)
    assert torch.allclose(mine.train(training)(x), expected, rtol=1e-9)


@pytest.mark.parametrize(("m", "share"), [(1, 1 / 9), (8, 0.5), (72, 0.9)])
def test_the_gate_leans_to_the_batch_as_it_grows(m: int, share: float) -> None:
    """Against the mixture by hand."""
    x = batch((m, 6)).double()
    layer = BlendedNorm(6).double()
    mean = share * x.mean(0) + (1 - share) * x.mean(1, keepdim=True)
    variance = share * x.var(0, unbiased=False) + (1 - share) * x.var(1, unbiased=False, keepdim=True)
    assert torch.allclose(layer(x), (x - mean) / (variance + 1e-5).sqrt())
    assert torch.allclose(layer.share(m), torch.full((6,), share, dtype=torch.float64))


def test_the_gate_learns() -> None:
    layer = BlendedNorm(6).double()
    x = batch((4, 6)).double()
    assert torch.autograd.gradcheck(layer, (x.requires_grad_(),))
    layer(x).square().square().sum().backward()
    assert layer.log_pseudo.grad is not None and bool((layer.log_pseudo.grad != 0).all())


def test_inference_has_the_weights_of_training() -> None:
    layer = BlendedNorm(6)
    for _ in range(400):
        layer(batch((4, 6)))
    assert float(layer.values) == 4
    x = batch((2000, 6))
    y = layer.eval()(x)
    share = 4 / 12
    mean = share * layer.running_mean + (1 - share) * x.mean(1, keepdim=True)
    variance = share * layer.running_var + (1 - share) * x.var(1, unbiased=False, keepdim=True)
    assert torch.allclose(y, (x - mean) / (variance + 1e-5).sqrt(), atol=1e-5)


def test_single_values_teach_the_running_variance() -> None:
    layer = BlendedNorm(6, momentum=0.002)
    for _ in range(3000):
        layer(batch((1, 6)))
    expected = torch.arange(1.0, 7.0).square()
    assert torch.allclose(layer.running_var / expected, torch.ones(6), atol=0.25)
    assert torch.isfinite(layer(batch((1, 6)))).all()


def test_the_state_of_a_batch_norm_can_be_loaded() -> None:
    x = batch((16, 6))
    theirs = trained(nn.BatchNorm1d(6), x).eval()
    mine = BlendedNorm(6).eval()
    mine.load_state_dict(theirs.state_dict())
    assert torch.allclose(mine(x), theirs(x), atol=1e-6)
    assert mine.values == math.inf
    mine.train()(x)
    assert mine.values == 16
    again = BlendedNorm(6).eval()
    again.load_state_dict(mine.state_dict())
    assert torch.equal(again(x), mine.eval()(x))


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype_device_and_copy(kind: torch.dtype) -> None:
    layer = BlendedNorm(6, dtype=kind)
    x = batch((16, 6)).to(kind)
    twin = copy.deepcopy(layer)
    assert layer(x).dtype is kind and torch.equal(twin(x), BlendedNorm(6, dtype=kind)(x))
    assert torch.isfinite(layer(1e3 * x)).all()
    assert BlendedNorm(6, device="meta")(x.to("meta")).is_meta


def test_the_forecast_covers_it(covered: Callable[..., None]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), BlendedNorm(16), nn.ReLU(), nn.Conv2d(16, 8, 3))
    covered(model, torch.randn(16, 3, 10, 10))


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: BlendedNorm(6)(torch.randn(4, 5)), r"shape \(4, 5\)"),
        (lambda: BlendedNorm(6)(torch.randn(6)), r"shape \(6,\)"),
        (lambda: BlendedNorm(6, pseudo=0.0), "pseudo is 0"),
        (lambda: BlendedNorm.from_batch_norm(nn.LayerNorm(6)), "LayerNorm"),
    ],
)
def test_says_what_is_wrong(act: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        act()


def test_repr() -> None:
    assert repr(BlendedNorm(6)) == "BlendedNorm(6, eps=1e-05, momentum=0.1, layer worth 8 values)"
