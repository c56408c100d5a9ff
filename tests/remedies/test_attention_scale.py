from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.finding import Finding
from tightrope.subject import Subject

Cure = Callable[[str, str, Subject], tuple[list[Finding], list[Finding]]]


class Attention(nn.Module):
    """Self-attention whose queries come out of a shared projection in one of several layouts."""

    def __init__(self, layout: str, factor: float | None) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(64, 192), nn.Linear(64, 4)
        nn.init.normal_(self.qkv.weight, std=1 / 4)
        nn.init.normal_(self.qkv.bias)
        self.layout, self.factor = layout, factor

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        y = self.qkv(x)
        if self.layout == "chunk":
            q, k, v = (part.view(b, t, 2, 32).transpose(1, 2) for part in y.chunk(3, -1))
        elif self.layout == "unbind":
            q, k, v = y.reshape(b, t, 3, 2, 32).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.layout == "inner":
            q, k, v = y.view(b, t, 2, 96).transpose(1, 2).chunk(3, -1)
        else:
            z = y.view(b, t, 2, 3, 32)
            q, k, v = (z[:, :, :, i].transpose(1, 2) for i in range(3))
        if self.factor is None:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            out = ((q @ k.mT) * self.factor).softmax(-1) @ v
        return self.head(out.transpose(1, 2).reshape(b, t, 64)).mean(1)


@pytest.mark.parametrize("layout", ["chunk", "unbind", "inner", "index"])
def test_gives_the_function_with_the_factor(cure: Cure, layout: str) -> None:
    """After the remedy the unscaled model computes what the scaled one does with the old weights."""
    data = torch.randn(8, 16, 64), torch.arange(8) % 4
    sick, right = Attention(layout, 1.0), Attention(layout, None)
    right.load_state_dict(sick.state_dict())
    before, after = cure("unscaled-attention", "attention-scale", Subject(sick, data, F.cross_entropy))
    assert len(before) == 1
    assert after == []
    assert torch.allclose(sick(data[0]), right(data[0]), atol=1e-5)


def test_a_wrong_scale_argument(cure: Cure) -> None:
    class Fused(Attention):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            return self.head(F.scaled_dot_product_attention(q, k, v, scale=2.0)).mean(1)

    before, after = cure(
        "unscaled-attention", "attention-scale", Subject(Fused("", None), (torch.randn(8, 16, 64), torch.arange(8) % 4),
        F.cross_entropy),
    )  # fmt: skip
    assert len(before) == 1
    assert after == []
