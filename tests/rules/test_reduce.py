"""Reductions against real ones."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from oracles import check_rule, outcome

SHAPE = (16, 6, 24)
CASES = {
    "sum": lambda x: x.sum(-1),
    "sum-sites": lambda x: x.sum(1, keepdim=True),
    "mean": lambda x: x.mean((1, 2)),
    "mean-channel": lambda x: x.mean(-1, keepdim=True),
    "var": lambda x: x.var(-1),
    "var-biased": lambda x: torch.var(x, dim=-1, unbiased=False, keepdim=True),
    "std": lambda x: x.std(-1),
    "norm": lambda x: x.norm(dim=-1),
    "linalg-norm": lambda x: torch.linalg.vector_norm(x, dim=-1, keepdim=True),
    "amax": lambda x: x.amax(-1),
    "amin": lambda x: x.amin(1),
    "max": lambda x: x.max(-1).values,
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mean", [0.0, 1.5])
def test_laws_and_gradients(name: str, mean: float) -> None:
    check_rule(CASES[name], SHAPE, mean=mean, batches=40, forward=0.04, backward=0.04)


@pytest.mark.parametrize("name", ["logsumexp", "prod", "median"])
def test_rare_reductions_are_simulated(name: str) -> None:
    functions = {
        "logsumexp": lambda x: x.logsumexp(-1),
        "prod": lambda x: x[..., :3].prod(-1),
        "median": lambda x: x.median(-1).values,
    }
    found = check_rule(functions[name], SHAPE, batches=40, forward=0.1, backward=0.15, may_simulate=True)
    assert name in found.simulated


def test_variance_of_both_outputs() -> None:
    def both(x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=-1, keepdim=True)
        return variance + mean

    found = check_rule(both, SHAPE, batches=40, forward=0.05, backward=0.06)
    assert found.predicted_std == pytest.approx(2 / 23 + 1 / 24, rel=0.05)


def test_largest_of_many() -> None:
    """E and Var of the maximum of n normals, from tables: n = 10 has variance 0.3443."""
    found = outcome(lambda x: x.amax(-1), (16, 4, 10))
    assert found.predicted_std == pytest.approx(0.3443438, rel=1e-3)
    assert math.isfinite(found.predicted_gradient)
