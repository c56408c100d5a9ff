"""Selections: the law follows the elements, the gradient returns to where they came from."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tightrope as tr
from oracles import check_rule

INDEX = torch.tensor([0, 2, 2])
CASES = {
    "slice": lambda x: x[:, 1:3] * 2,
    "step": lambda x: x[..., ::2] * 2,
    "integer": lambda x: x[:, 0] * 2,
    "ellipsis": lambda x: x[..., -1] * 2,
    "none": lambda x: x[:, None, :, 0] * 2,
    "tensor": lambda x: x[:, INDEX] * 2,
    "narrow": lambda x: x.narrow(2, 1, 3) * 2,
    "select": lambda x: x.select(3, 2) * 2,
    "index-select": lambda x: x.index_select(1, INDEX) * 2,
    "split": lambda x: x.split([1, 3], 1)[1] * 2,
    "chunk": lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1],
    "unbind": lambda x: x.unbind(2)[1] * 2,
    "flip": lambda x: x.flip(2) * 2,
    "roll": lambda x: torch.roll(x, (1, 2), (2, 3)) * 2,
    "tril": lambda x: x.tril() * 2,
    "repeat-interleave": lambda x: x.repeat_interleave(2, dim=1),
    "shuffle": lambda x: F.pixel_shuffle(x, 2) * 2,
    "unshuffle": lambda x: F.pixel_unshuffle(x, 2) * 2,
}


@pytest.mark.parametrize("name", CASES)
def test_laws_and_gradients(name: str) -> None:
    check_rule(CASES[name], (16, 4, 6, 6), mean=0.5, forward=0.02, backward=0.05)


def test_first_samples_get_all_the_gradient() -> None:
    check_rule(lambda x: x[:4] * 2, (16, 4, 6, 6), backward=0.05)


def test_channels_keep_their_own_law() -> None:
    layer = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0])))
    x = torch.randn(4096, 4)
    forecast = tr.predict(nn.Sequential(layer, Last()), x)
    out = next(e for e in forecast.tape.entries if e.op == "getitem").outputs[0]
    assert forecast.laws[out].std == pytest.approx(4.0, rel=0.05)


class Last(nn.Module):
    """The last channel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 3]
