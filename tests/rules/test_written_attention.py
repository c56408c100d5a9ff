"""Attention written out as two products, against many sequences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tightrope as tr


class Attention(nn.Module):
    """Two heads."""

    def __init__(self, width: int, std: float) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        for layer in (self.query, self.key, self.value):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query(x), self.key(x), self.value(x)
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in (q, k, v))
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        return (scores.softmax(-1) @ v).mean(2).flatten(1)


@pytest.mark.parametrize("tokens", [16, 64])
def test_keys_and_values_of_the_same_tokens(tokens: int) -> None:
    torch.manual_seed(0)
    model, x = Attention(96, 0.08), torch.randn(256, tokens, 96)
    rows = tr.compare(tr.predict(model, x), tr.measure(model, x)).rows
    weighed = [row for row in rows if row.op == "matmul"][1]
    assert weighed.predicted_std == pytest.approx(weighed.measured_std, rel=0.03)
    query = next(row for row in rows if row.module == "query")
    assert query.measured_grad_rms is not None
    assert query.predicted_grad_rms == pytest.approx(query.measured_grad_rms, rel=0.07)
