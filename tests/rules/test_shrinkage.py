"""Laws of few known samples: what chance put into their moments must not be counted again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tightrope as tr
from tightrope.rules.shrinkage import population


class Written(nn.Module):
    """Root mean square normalisation, spelled out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def _errors(x: Tensor) -> dict[str, float]:
    model = Written(x.shape[-1])
    rows = tr.compare(tr.predict(model, x), tr.measure(model, x)).rows
    return {row.op: row.predicted_std / row.measured_std - 1 for row in rows if row.measured_std and row.predicted_std}


def test_squares_of_few_samples() -> None:
    torch.manual_seed(0)
    found = _errors(torch.randn(8, 256, 64))
    assert found["pow"] == pytest.approx(0, abs=0.03)
    assert found["mean"] == pytest.approx(0, abs=0.08)
    assert found["rsqrt"] == pytest.approx(0, abs=0.08)


def test_a_position_that_is_the_same_in_all_samples() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 64, 128)
    x[:, 0] = x[0, 0]
    found = _errors(x)
    assert found["pow"] == pytest.approx(0, abs=0.03)
    assert found["rsqrt"] == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_variances_of_the_population(spread: float) -> None:
    """Against the variances that the samples were drawn with."""
    torch.manual_seed(0)
    true = torch.exp(spread * torch.randn(4000, dtype=torch.float64))
    x = torch.randn(8, 4000, dtype=torch.float64) * true.sqrt()
    mean, variance = population(x.mean(0), x.var(0, correction=0), 8)
    assert not bool(mean.any())
    assert float(variance.mean() / true.mean()) == pytest.approx(1, abs=0.05)
    assert float(variance.square().mean() / true.square().mean()) == pytest.approx(1, abs=0.15)
