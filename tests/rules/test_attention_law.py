"""What happens inside attention, against the real scores of many samples."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tightrope as tr
from tightrope.rules.softmax_rows import levels, row_moments

TOKENS, WIDTH, HEADS = 20, 32, 2


class Attention(nn.Module):
    """Self-attention with a position embedding that keeps its scores."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.position = nn.Parameter(0.4 * torch.randn(1, TOKENS, WIDTH, generator=generator))
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        with torch.no_grad():
            self.qkv.weight.copy_(1.2 * torch.randn(3 * WIDTH, WIDTH, generator=generator) / math.sqrt(WIDTH))
        self.kind = kind
        self.register_buffer("padding", torch.arange(TOKENS) < 13)

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        split = self.qkv(x + self.position).reshape(len(x), TOKENS, 3, HEADS, WIDTH // HEADS)
        q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v, q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS)

    def open(self) -> Tensor:
        if self.kind == "padded":
            return self.padding.expand(TOKENS, TOKENS)
        ones = torch.ones(TOKENS, TOKENS, dtype=torch.bool)
        return ones.tril() if self.kind in ("causal", "written") else ones

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, scores = self.scores(x)
        if self.kind == "written":
            return torch.softmax(scores.masked_fill(~self.open(), -math.inf), -1) @ v
        mask = self.padding.expand(TOKENS, TOKENS) if self.kind == "padded" else None
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.kind == "causal")


@pytest.mark.parametrize("kind", ["full", "causal", "padded", "written"])
def test_laws_inside_attention(kind: str) -> None:
    model = Attention(kind)
    x = torch.randn(512, TOKENS, WIDTH, generator=torch.Generator().manual_seed(6))
    (law,) = tr.predict(model, x).attention
    with torch.no_grad():
        scores = model.scores(x)[3].double()
    inside = model.open().expand_as(scores)
    weights = torch.softmax(scores.masked_fill(~inside, -math.inf), -1)
    length = inside.sum(-1)
    centred = torch.where(inside, scores - (scores * inside).sum(-1, keepdim=True) / length.unsqueeze(-1), 0.0)
    spread = float((centred.square().sum(-1) / length).mean().sqrt())
    assert law.length == pytest.approx(float(length.double().mean()))
    assert law.logit_std == pytest.approx(spread, rel=0.03)
    assert law.participation == pytest.approx(float(weights.square().sum(-1).mean()), rel=0.03)
    assert law.entropy == pytest.approx(float(torch.special.entr(weights).sum(-1).mean()), rel=0.02)
    assert law.max_logit == pytest.approx(float(scores[inside].abs().max()), rel=0.2)
    by_position = weights.square().sum(-1).mean((0, 1))
    for bucket in law.buckets:
        expected = float(by_position[bucket.first : bucket.last + 1].mean())
        assert bucket.participation == pytest.approx(expected, rel=0.06)


def test_long_causal_rows_need_no_more_memory_than_short_ones() -> None:
    class Causal(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            x = super().forward(x)
            return F.scaled_dot_product_attention(x, x, x, is_causal=True, scale=1e-9)

    length = 100_000
    (law,) = tr.predict(Causal(16, 16).to("meta"), torch.empty(2, 4, length, 16, device="meta")).attention
    harmonic = math.log(length) + 0.5772156649
    assert law.participation == pytest.approx(harmonic / length, rel=1e-3)
    assert law.entropy == pytest.approx(math.log(length) - 1, rel=1e-3)
    assert law.buckets[0].first == 0
    assert law.buckets[-1].last == length - 1


@pytest.mark.parametrize(("length", "std"), [(2, 1.0), (64, 2.0), (256, 3.0), (64, 64.0)])
def test_row_moments_against_monte_carlo(length: int, std: float) -> None:
    generator = torch.Generator().manual_seed(length)
    weights = torch.softmax(std * torch.randn(8000, length, generator=generator, dtype=torch.float64), -1)
    found = row_moments(torch.tensor([[float(length)]]), std)
    for mine, each in (
        (found.participation, weights.square().sum(-1)),
        (found.entropy, torch.special.entr(weights).sum(-1)),
    ):
        error = float(each.std()) / math.sqrt(len(each))
        assert float(mine) == pytest.approx(float(each.mean()), abs=4 * error)


def test_rows_with_means_and_masks_against_monte_carlo() -> None:
    generator = torch.Generator().manual_seed(3)
    mean = 2 * torch.randn(1, 50, generator=generator, dtype=torch.float64)
    mean[0, 40:] = -math.inf
    weights = torch.softmax(mean + 1.3 * torch.randn(20000, 50, generator=generator, dtype=torch.float64), -1)
    found = row_moments(levels(mean), 1.3)
    square, entropy = weights.square().sum(-1), torch.special.entr(weights).sum(-1)
    assert float(found.participation) == pytest.approx(float(square.mean()), rel=0.01)
    assert float(found.entropy) == pytest.approx(float(entropy.mean()), rel=0.01)


def test_softmax_over_classes_is_no_attention() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Softmax(-1))
    assert tr.predict(model, torch.randn(16, 5, 8)).attention == ()
