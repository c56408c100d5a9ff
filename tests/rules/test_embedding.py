"""Gradients of tables, against autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tightrope as tr
from tightrope.tape.tape import Kind


class Tokens(nn.Module):
    """Each position's row, and a loss in which all positions have gradients of a common part and one of their own."""

    def __init__(self, padding: int | None) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 32, padding_idx=padding)
        self.register_buffer("common", torch.randn(32))

    def forward(self, ids: Tensor, noise: Tensor) -> Tensor:
        return (self.table(ids) * (0.5 * self.common + noise)).sum()


def _ratio(model: nn.Module, inputs: Any) -> float:
    """Predicted rms of the table's gradient over the measured one."""
    mine, theirs = (
        next(made.gradients[v.id].rms for v in made.tape.value_of(Kind.PARAMETER) if v.name == "table.weight")
        for made in (tr.predict(model, inputs), tr.measure(model, inputs))
    )
    return mine / theirs


@pytest.mark.parametrize("padding", [None, 0])
@pytest.mark.parametrize("even", [False, True])
def test_occurrences_add_up(even: bool, padding: int | None) -> None:
    torch.manual_seed(0)
    chances = torch.ones(40) if even else 1 / torch.arange(1.0, 41.0)
    ids = chances.multinomial(32 * 24, replacement=True).reshape(32, 24)
    model, inputs = Tokens(padding), {"ids": ids, "noise": torch.randn(32, 24, 32)}
    assert _ratio(model, inputs) == pytest.approx(1, abs=0.06)


class Positions(Tokens):
    """The rows of a table in order, read once by all samples together."""

    def forward(self, noise: Tensor) -> Tensor:  # type: ignore[override]
        ids = torch.arange(noise.shape[1])[None]
        return (self.table(ids) * (0.5 * self.common + noise)).sum()


def test_a_table_of_positions() -> None:
    torch.manual_seed(0)
    assert _ratio(Positions(None), torch.randn(32, 24, 32)) == pytest.approx(1, abs=0.06)
