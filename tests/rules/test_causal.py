"""Causal attention by cumulative sums, against the real operation on draws."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tightrope.roles import Axes, Axis, Role
from tightrope.rules.causal import _ratios, causal
from tightrope.rules.state import State

HEADS, LENGTH, WIDTH, DRAWS = 4, 24, 16, 1500
AXES = Axes(
    ((Axis(Role.SAMPLE, 2),), (Axis(Role.CHANNEL, HEADS),), (Axis(Role.SITE, LENGTH),), (Axis(Role.CHANNEL, WIDTH),))
)
UP = torch.linspace(0.5, 2.0, LENGTH, dtype=torch.float64).reshape(1, 1, LENGTH, 1)


def measured() -> dict[str, torch.Tensor]:
    """Standard deviations by position of output and gradients, over draws of independent operands."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = (
        torch.randn(DRAWS, HEADS, LENGTH, WIDTH, generator=generator).mul(std).requires_grad_() for std in (0.5, 0.5, 1)
    )
    out = scaled_dot_product_attention(q, k, v, is_causal=True)
    out.backward(torch.randn(out.shape, generator=generator) * UP.float().sqrt())
    found = {"out": out.detach(), "q": q.grad, "k": k.grad, "v": v.grad}
    return {name: x.double().square().mean((0, 1, 3)).sqrt() for name, x in found.items()}


def test_rows_of_a_causal_mask_by_position() -> None:
    q = k = State.of(AXES, 0.0, residual=0.25)
    v = State.of(AXES, 0.0, residual=1.0)
    rows = causal(q, k, v, WIDTH**-0.5, 0.0, 10**9)
    assert rows is not None
    real = measured()
    mean, constant, sample, site, residual = rows.output(v)
    out = (mean.square() + constant + sample + site + residual).sqrt().flatten()
    torch.testing.assert_close(out, real["out"], rtol=0.02, atol=0)
    found = dict(zip("qkv", rows.gradients(q, k, v, State.of(AXES, 0.0, residual=UP)), strict=True))
    for name, state in found.items():
        rms = state.second_moment.expand(1, 1, LENGTH, 1).sqrt().flatten()
        torch.testing.assert_close(rms, real[name], rtol=0.02 if name == "v" else 0.06, atol=1e-6, msg=name)


def test_keys_that_differ_are_left_to_the_map() -> None:
    uneven = State.of(AXES, 0.0, residual=torch.linspace(0.1, 4, LENGTH).double().reshape(1, 1, LENGTH, 1))
    q = v = State.of(AXES, 0.0, residual=1.0)
    assert causal(q, uneven, v, WIDTH**-0.5, 0.0, HEADS * WIDTH) is None


@pytest.mark.parametrize("variance", [0.01, 1.0, 9.0, 30.0])
def test_shares_of_rows_of_many_lengths(variance: float) -> None:
    lengths = (1, 2, 5, 40, 300)
    generator = torch.Generator().manual_seed(0)
    for n, ratio in zip(lengths, _ratios(lengths, variance).tolist(), strict=True):
        rows = torch.randn(20000, n, generator=generator).mul(variance**0.5).softmax(-1).square().sum(-1)
        assert ratio / n == pytest.approx(float(rows.mean()), rel=0.02)
