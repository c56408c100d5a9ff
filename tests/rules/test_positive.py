"""Positive variables: Gamma quantiles against scipy, and a normaliser spelled out against real batches."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor

from oracles import check_rule
from tightrope.rules.positive import quantiles


@pytest.mark.parametrize("shape", [0.6, 1.0, 4.0, 8.0, 50.0, 500.0])
def test_quantiles(shape: float) -> None:
    xi = torch.linspace(-5, 2, 29, dtype=torch.float64)
    mean = torch.tensor(2.0, dtype=torch.float64)
    expected = stats.gamma.ppf(stats.norm.cdf(xi.numpy()), shape, scale=2.0 / shape)
    error = quantiles(mean, mean / shape**0.5, xi).numpy() / expected - 1
    assert abs(error[xi < 0]).max() < 1e-3
    assert abs(error).max() < 0.05


def test_gradients_pass_a_norm_of_few_channels() -> None:
    def norm(x: Tensor) -> Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()

    # What a channel has to do with the norm of all is left out: one part in the number of channels.
    check_rule(norm, (32, 5, 16), forward=0.2, backward=0.2)
    check_rule(lambda x: x / x.norm(dim=-1, keepdim=True), (32, 5, 16), forward=0.2, backward=0.2)
