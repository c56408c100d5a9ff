from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.errors import InputError
from tightrope.nn import KernelAttention, kernel_attention
from tightrope.nn.kernels import KERNELS, weights

CLASSICAL: dict[str, Callable[[Tensor], Tensor]] = {
    "gaussian": lambda u: torch.exp(-u.square() / 2),
    "cauchy": lambda u: 1 / (1 + u.square()),
    "epanechnikov": lambda u: torch.where(u.abs() < 1, 1 - u.square(), 0.0),
    "biweight": lambda u: torch.where(u.abs() < 1, (1 - u.square()) ** 2, 0.0),
    "triweight": lambda u: torch.where(u.abs() < 1, (1 - u.square()) ** 3, 0.0),
}


def qkv(n: int = 3, length: int = 7, keys: int = 9, width: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    made = torch.randn(n, 2, length, width), torch.randn(n, 2, keys, width), torch.randn(n, 2, keys, 5)
    return made[0].double(), made[1].double(), made[2].double()


MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "causal": {"is_causal": True},
    "boolean": {"attn_mask": torch.arange(9).unsqueeze(0) <= torch.arange(7).unsqueeze(1)},
    "float": {"attn_mask": torch.linspace(-2, 2, 63, dtype=torch.float64).view(7, 9)},
    "holes": {
        "attn_mask": torch.linspace(-2, 2, 63).view(7, 9).double().masked_fill(torch.eye(7, 9).bool(), -math.inf)
    },
}


@pytest.mark.parametrize("name", MASKS)
def test_the_exponential_kernel_is_scaled_dot_product_attention(name: str) -> None:
    mine, theirs = [[t.clone().requires_grad_() for t in made] for made in [qkv()] * 2]
    found = kernel_attention(mine[0], mine[1], mine[2], **MASKS[name])
    expected = F.scaled_dot_product_attention(theirs[0], theirs[1], theirs[2], **MASKS[name])
    (found**2).sum().backward()
    (expected**2).sum().backward()
    assert torch.allclose(found, expected, rtol=1e-12)
    assert all(torch.allclose(a.grad, b.grad, atol=1e-12) for a, b in zip(mine, theirs, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("kernel", CLASSICAL)
@pytest.mark.parametrize("h", [0.1, 0.4])
def test_is_the_classical_estimator_on_a_line(kernel: str, h: float) -> None:
    x, at = torch.rand(200).double(), torch.linspace(0.1, 0.9, 30).double()
    y = torch.sin(6 * x) + 0.1 * torch.randn(200)
    k = CLASSICAL[kernel]((at.unsqueeze(1) - x.unsqueeze(0)) / h)
    expected = (k @ y) / k.sum(1)
    found = kernel_attention(at.unsqueeze(1), x.unsqueeze(1), y.unsqueeze(1), kernel=kernel, bandwidth=h).squeeze(1)
    assert torch.allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_and_weights(kernel: str) -> None:
    q, k, _ = qkv(1, 4, 5)
    h = torch.tensor(1.3 if kernel in ("exponential", "gaussian", "cauchy") else 9.0).double().requires_grad_()
    rows = weights(q, k, kernel, h)
    assert torch.allclose(rows.sum(-1), torch.ones(()).double()) and bool((rows >= 0).all())
    assert torch.autograd.gradcheck(
        lambda a, b, c: weights(a, b, kernel, c), (q.requires_grad_(), k.requires_grad_(), h)
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_row_without_keys_is_zero(kernel: str) -> None:
    q, k, v = (t.requires_grad_() for t in qkv())
    mask = torch.ones(7, 9, dtype=torch.bool)
    mask[2] = False
    added = torch.zeros(7, 9).double().masked_fill(~mask, -math.inf)
    for given in (mask, added):
        y = kernel_attention(q, k, v, given, kernel=kernel)
        assert torch.all(y[:, :, 2] == 0) and bool((y[:, :, 3] != 0).all())
        for gradient in torch.autograd.grad(y.sum(), (q, k, v)):
            assert torch.isfinite(gradient).all()


def test_a_query_beyond_reach_gets_zeros() -> None:
    q, k, v = qkv()
    y = kernel_attention(q + 100, k, v, kernel="epanechnikov")
    assert torch.all(y == 0)


def test_dropout_keeps_the_mean() -> None:
    q, k, v = qkv(1, 3, 4)
    drawn = torch.stack([kernel_attention(q, k, v, dropout_p=0.5, kernel="gaussian") for _ in range(4000)])
    error = drawn.std(0) / 4000**0.5
    assert bool(((drawn.mean(0) - kernel_attention(q, k, v, kernel="gaussian")).abs() < 5 * error).all())


# -- the module ----------------------------------------------------------------------------------


def pair(**options: Any) -> tuple[nn.MultiheadAttention, KernelAttention]:
    theirs = nn.MultiheadAttention(16, 4, **options).double()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    return theirs, KernelAttention.from_attention(theirs)


CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no-weights": {"need_weights": False},
    "heads": {"average_attn_weights": False},
    "padding": {"key_padding_mask": torch.arange(6).unsqueeze(0) >= torch.tensor([[4], [6], [2]])},
    "causal": {"attn_mask": torch.ones(6, 6, dtype=torch.bool).triu(1)},
    "causal-float": {"attn_mask": nn.Transformer.generate_square_subsequent_mask(6, dtype=torch.float64)},
    "by-head": {"attn_mask": torch.randn(12, 6, 6).double()},
    "both": {
        "attn_mask": torch.ones(6, 6, dtype=torch.bool).triu(1),
        "key_padding_mask": torch.arange(6).unsqueeze(0) >= torch.tensor([[4], [6], [2]]),
    },
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("batch_first", [True, False])
def test_equals_multihead_attention(name: str, batch_first: bool) -> None:
    theirs, mine = pair(batch_first=batch_first)
    x = torch.randn(3, 6, 16).double()
    y = torch.randn(3, 6, 16).double()
    args = [t if batch_first else t.transpose(0, 1) for t in (x, y, y)]
    expected, found = theirs(*args, **CALLS[name]), mine(*args, **CALLS[name])
    assert torch.allclose(found[0], expected[0], rtol=1e-10)
    assert (found[1] is None) == (expected[1] is None)
    assert found[1] is None or torch.allclose(found[1], expected[1], rtol=1e-10)


def test_one_sequence_without_a_batch() -> None:
    theirs, mine = pair(batch_first=True)
    x = torch.randn(6, 16).double()
    hidden = torch.arange(6) > 3
    expected, found = (layer(x, x, x, key_padding_mask=hidden) for layer in (theirs, mine))
    assert torch.allclose(found[0], expected[0]) and torch.allclose(found[1], expected[1])


@pytest.mark.parametrize("bias", [True, False])
def test_states_pass_both_ways(bias: bool) -> None:
    theirs, mine = pair(batch_first=True, bias=bias)
    assert set(theirs.state_dict()) == set(mine.state_dict())
    theirs.load_state_dict(mine.state_dict())
    fresh = KernelAttention(16, 4, bias=bias).double()
    fresh.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 6, 16).double()
    assert torch.allclose(fresh(x, x, x)[0], theirs(x, x, x)[0])
    assert torch.allclose(mine.to_attention()(x, x, x)[0], theirs(x, x, x)[0])


@pytest.mark.parametrize("options", [{"bandwidth": 0.7}, {"learn_bandwidth": True}])
def test_any_bandwidth_goes_into_torchs_attention(options: dict[str, Any]) -> None:
    mine = KernelAttention(16, 4, dropout=0.0, **options).double()
    for parameter in mine.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(3, 6, 16).double()
    assert torch.allclose(mine.to_attention()(x, x, x)[0], mine(x, x, x)[0])


@pytest.mark.parametrize("kernel", KERNELS)
def test_bandwidths_are_learnt_for_each_head(kernel: str) -> None:
    layer = KernelAttention(16, 4, kernel=kernel, learn_bandwidth=True)
    fixed = KernelAttention(16, 4, kernel=kernel)
    assert layer.load_state_dict(fixed.state_dict(), strict=False).missing_keys == ["log_bandwidth"]
    x = torch.randn(3, 6, 16)
    y = layer(x, x, x)[0]
    assert torch.allclose(y, fixed(x, x, x)[0], atol=1e-6)
    y.square().sum().backward()
    gradient = layer.log_bandwidth.grad  # type: ignore[union-attr]
    assert gradient is not None and gradient.shape == (4,) and bool((gradient != 0).all())


def test_inside_torchs_encoder_the_kernel_is_used_at_inference_too() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    layer.self_attn = KernelAttention(16, 4, kernel="gaussian")  # type: ignore[assignment]
    x = torch.randn(3, 6, 16)
    trained = layer(x)
    with torch.no_grad():
        assert torch.allclose(layer.eval()(x), trained, atol=1e-6)


def test_one_kernel_of_all_keys_at_one_distance_is_the_mean() -> None:
    k = torch.eye(8).double()
    v = torch.randn(8, 3).double()
    for kernel in KERNELS:
        y = kernel_attention(torch.zeros(1, 8).double(), k, v, kernel=kernel)
        assert torch.allclose(y, v.mean(0, keepdim=True)), kernel


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_dtype_device_and_copy(kind: torch.dtype) -> None:
    for kernel in KERNELS:
        layer = KernelAttention(16, 4, kernel=kernel, dtype=kind)
        x = torch.randn(3, 6, 16).to(kind)
        y = layer(x, x, x)[0]
        assert y.dtype is kind and torch.equal(copy.deepcopy(layer)(x, x, x)[0], y)
        meta = KernelAttention(16, 4, kernel=kernel, device="meta")
        assert meta(x.to("meta").float(), x.to("meta").float(), x.to("meta").float())[0].is_meta


class Net(nn.Module):
    def __init__(self, kernel: str) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(32, 32), nn.Linear(32, 8)
        self.attention = KernelAttention(32, 4, kernel=kernel)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.leave(x + self.attention(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize("kernel", ["exponential", "gaussian", "cauchy", "epanechnikov"])
def test_the_forecast_covers_it(kernel: str, covered: Callable[..., None]) -> None:
    covered(Net(kernel), torch.randn(32, 20, 32), simulated=1)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: KernelAttention(16, 3), "3 heads do not divide"),
        (lambda: KernelAttention(16, 4, kernel="box"), "no kernel 'box'"),
        (lambda: KernelAttention(16, 4, kernel="cauchy").to_attention(), "its kernel is cauchy"),
        (lambda: KernelAttention.from_attention(nn.MultiheadAttention(16, 4, kdim=8)), "kdim"),
        (lambda: kernel_attention(*qkv(), torch.ones(7, 9).bool(), is_causal=True), "both attn_mask and is_causal"),
    ],
)
def test_says_what_is_wrong(act: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        act()


def test_repr() -> None:
    text = repr(KernelAttention(16, 4, kernel="gaussian"))
    assert "16, heads=4, kernel=gaussian, bandwidth=1.414, dropout=0, batch_first=True" in text
