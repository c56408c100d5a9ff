from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.finding import Finding, Severity

Judge = Callable[..., list[Finding]]
CHECK = "rank-collapse"


class Mix(nn.Module):
    """Self-attention, fused or written out, small or default weights."""

    def __init__(self, *, fused: bool = True, std: float | None = None) -> None:
        super().__init__()
        self.qkv, self.fused = nn.Linear(32, 96), fused
        if std is not None:
            nn.init.normal_(self.qkv.weight, std=std)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v)
        return F.dropout(((q @ k.mT) / 32**0.5).softmax(-1), 0.0) @ v


class Stack(nn.Module):
    def __init__(self, mixers: list[nn.Module], *, skip: bool = False) -> None:
        super().__init__()
        self.mixers, self.skip, self.head = nn.ModuleList(mixers), skip, nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        for mixer in self.mixers:
            y = mixer(x)
            x = x + y if self.skip else y
        scores: Tensor = self.head(x).mean(1)
        return scores


def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(16, 12, 32), torch.arange(16) % 4


@pytest.mark.parametrize("fused", [True, False])
def test_attentions_upon_each_other(judge: Judge, fused: bool) -> None:
    (found,) = judge(CHECK, Stack([Mix(fused=fused) for _ in range(4)]), data())
    assert found.severity in (Severity.WARNING, Severity.FAULT)
    assert found.evidence[0].expected == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("fused", [True, False])
def test_skips_keep_tokens_apart(judge: Judge, fused: bool) -> None:
    for std in (None, 0.02):
        assert judge(CHECK, Stack([Mix(fused=fused, std=std) for _ in range(6)], skip=True), data()) == []


@pytest.mark.parametrize("fused", [True, False])
def test_one_attention_of_even_weights_is_a_pooling_layer(judge: Judge, fused: bool) -> None:
    assert judge(CHECK, Stack([Mix(fused=fused, std=0.02)]), data()) == []


def test_learned_queries_beside_skips(judge: Judge) -> None:
    class Latents(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.latents, self.head = nn.Parameter(0.02 * torch.randn(6, 32)), nn.Linear(32, 4)
            self.cross = nn.MultiheadAttention(32, 4, batch_first=True)
            self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(2))
            self.mix = nn.ModuleList(Mix() for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            z = self.latents.expand(len(x), -1, -1)
            z = z + self.cross(z, x, x, need_weights=False)[0]
            for norm, mix in zip(self.norms, self.mix, strict=True):
                z = z + mix(norm(z))
            scores: Tensor = self.head(z.mean(1))
            return scores

    assert judge(CHECK, Latents(), data()) == []


def test_sigmoid_layers_on_tokens_are_no_collapse(judge: Judge) -> None:
    body = [nn.Sequential(nn.Linear(32, 32), nn.Sigmoid()) for _ in range(3)]
    assert judge(CHECK, Stack(list(body)), data()) == []
