"""Products in Einstein's notation against real batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from oracles import check_rule

BATCH, SITES, WIDTH = 24, 6, 16


class Weighed(nn.Module):
    """A product with a tensor of weights."""

    def __init__(self, equation: str, *shape: int, turned: bool = False) -> None:
        super().__init__()
        self.equation, self.turned = equation, turned
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(shape, generator=generator) * 0.25)

    def forward(self, x: Tensor) -> Tensor:
        operands = (self.weight, x) if self.turned else (x, self.weight)
        return torch.einsum(self.equation, *operands)


WEIGHED = {
    "a matrix": Weighed("bld,ed->ble", 12, WIDTH),
    "heads": Weighed("bld,hde->bhle", 4, WIDTH, 8),
    "weights first": Weighed("od, bld -> bol", 5, WIDTH, turned=True),
    "over sites": Weighed("bld,ml->bmd", 9, SITES),
    "an ellipsis": Weighed("...d,de->...e", WIDTH, 7),
    "no arrow": Weighed("bld,de", WIDTH, 7),
}


@pytest.mark.parametrize("name", WEIGHED)
def test_weights(name: str) -> None:
    check_rule(WEIGHED[name], (BATCH, SITES, WIDTH), forward=0.03, backward=0.05, parameters=0.15)


class Pair(nn.Module):
    """A product of two maps of the input."""

    def __init__(self, equation: str) -> None:
        super().__init__()
        self.equation = equation
        generator = torch.Generator().manual_seed(2)
        self.weights = nn.Parameter(torch.randn(2, 48, WIDTH, generator=generator) / 4)

    def forward(self, x: Tensor) -> Tensor:
        left, right = (x @ w.T for w in self.weights)
        return self.product(left, right)

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.einsum(self.equation, left, right)


class Added(Pair):
    """A batched product, scaled, and a bias."""

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        bias = torch.linspace(0, 1, SITES).expand(len(left), 1, SITES)
        return torch.baddbmm(bias, left, right.transpose(1, 2), beta=0.5, alpha=0.1)


@pytest.mark.parametrize("model", [Pair("bid,bjd->bij"), Added("")])
def test_two_random_tensors(model: nn.Module) -> None:
    check_rule(model, (BATCH, SITES, WIDTH), forward=0.15, backward=0.15, parameters=0.3)


def test_what_has_no_matrix_form_is_simulated() -> None:
    found = check_rule(lambda x: torch.einsum("bid,bjd->bij", x, x), (BATCH, SITES, WIDTH), forward=0.06,
                       backward=0.1, may_simulate=True)  # fmt: skip
    assert found.simulated == ("einsum",)
