"""Estimated components against tensors drawn from known ones, and the standard error against repeated draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tightrope import Law
from tightrope.measure import estimate
from tightrope.measure.laws import arrange
from tightrope.roles import Axes, Axis, Role

S, T, C = Role.SAMPLE, Role.SITE, Role.CHANNEL


def layout(n: int, s: int, k: int) -> Axes:
    return Axes(((Axis(S, n),), (Axis(T, s),), (Axis(C, k),)))


def draw(law: Law, n: int, s: int, k: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)

    def noise(variance: float, *shape: int) -> torch.Tensor:
        return math.sqrt(variance) * torch.randn(shape, generator=g, dtype=torch.float64)

    x = law.mean + noise(law.constant, 1, 1, k) + noise(law.sample, n, 1, k) + noise(law.site, 1, s, k)
    return x + noise(law.residual, n, s, k)


CASES = {
    "all components": Law(0.3, 0.5, 0.4, 0.3, 0.2),
    "samples only": Law(0.0, sample=1.0),
    "sites only": Law(0.0, site=1.0),
    "residual only": Law(-1.0, residual=2.0),
    "constant only": Law(1.0, constant=1.0),
    "a large mean": Law(100.0, sample=0.3, residual=0.1),
}


@pytest.mark.parametrize("name", [name for name in CASES if name != "constant only"])
def test_shares_of_the_components_are_unbiased(name: str) -> None:
    """Their averages over repeated draws agree with the truth within five standard errors of that average.

    Shares, because the components add up to the variance over the batch's own elements, which is a little
    smaller than that of the population.
    """
    law, repeats = CASES[name], 60
    found = [estimate(draw(law, 12, 9, 40, seed), layout(12, 9, 40)) for seed in range(repeats)]
    for component in ("sample", "site", "residual"):
        shares = np.array([getattr(f, component) / (f.variance - f.constant) for f in found])
        error = shares.std(ddof=1) / math.sqrt(repeats)
        truth = getattr(law, component) / (law.variance - law.constant)
        assert shares.mean() == pytest.approx(truth, abs=5 * error + 0.02), component


def test_what_differs_between_channels_alone_is_constant() -> None:
    law = estimate(draw(CASES["constant only"], 12, 9, 4000, 0), layout(12, 9, 4000))
    assert law.constant == pytest.approx(1.0, rel=0.1)
    assert law.sample + law.site + law.residual < 1e-12


def test_mean_and_deviation_are_those_of_all_elements() -> None:
    x = draw(CASES["all components"], 7, 5, 11, 0)
    law = estimate(x, layout(7, 5, 11))
    assert law.mean == pytest.approx(float(x.mean()), abs=1e-6)
    assert law.std == pytest.approx(float(x.std(unbiased=False)), rel=1e-6)
    assert law.rms == pytest.approx(float(x.square().mean().sqrt()), rel=1e-6)


@pytest.mark.parametrize(("n", "s", "k"), [(1, 6, 8), (6, 1, 8), (1, 1, 8), (6, 5, 1), (1, 1, 1), (2, 2, 1)])
def test_degenerate_layouts_still_add_up(n: int, s: int, k: int) -> None:
    x = torch.randn(n, s, k, dtype=torch.float64)
    law = estimate(x, layout(n, s, k))
    assert law.std == pytest.approx(float(x.std(unbiased=False)), rel=1e-6, abs=1e-12)
    assert law.finite
    assert min(law.constant, law.sample, law.site, law.residual) >= 0.0
    assert math.isfinite(law.error)


def test_the_order_of_dimensions_does_not_matter() -> None:
    x = draw(CASES["all components"], 6, 5, 8, 1)
    turned = Axes(((Axis(C, 8),), (Axis(S, 6),), (Axis(T, 5),)))
    found, expected = estimate(x.permute(2, 0, 1).contiguous(), turned), estimate(x, layout(6, 5, 8))
    assert found.to_dict() == pytest.approx(expected.to_dict(), rel=1e-9)


def test_merged_dimensions_are_taken_apart() -> None:
    x = draw(CASES["all components"], 6, 5, 8, 1)
    merged = layout(6, 5, 8).reshape((30, 8))
    assert estimate(x.reshape(30, 8), merged) == estimate(x, layout(6, 5, 8))
    assert torch.equal(arrange(x.reshape(30, 8), merged), x)


@pytest.mark.parametrize("name", ["all components", "samples only", "residual only"])
def test_the_standard_error_is_calibrated(name: str) -> None:
    """The spread of ln(std) over repeated batches, the channels' own constants held, is the stated error."""
    law, repeats = CASES[name], 200
    n, s, k = 24, 6, 10
    constants = math.sqrt(law.constant) * torch.randn(1, 1, k, dtype=torch.float64)
    sites = math.sqrt(law.site) * torch.randn(1, s, k, dtype=torch.float64)
    free = Law(law.mean, 0.0, law.sample, 0.0, law.residual)
    found = [estimate(draw(free, n, s, k, seed) + constants + sites, layout(n, s, k)) for seed in range(repeats)]
    spread = float(np.std([math.log(f.std) for f in found], ddof=1))
    stated = float(np.median([f.error for f in found]))
    assert 0.6 < stated / spread < 1.7


def test_half_precision_is_measured_in_single() -> None:
    x = torch.full((4, 3, 5), 300.0, dtype=torch.float16)
    x[0] = 200.0
    law = estimate(x, layout(4, 3, 5))  # 300 squared is past float16
    assert law.std == pytest.approx(float(x.double().std(unbiased=False)), rel=1e-3)


def test_what_is_not_finite_stays_so() -> None:
    x = torch.randn(4, 3, 5)
    x[1, 2, 3] = math.inf
    assert not estimate(x, layout(4, 3, 5)).finite


def test_an_empty_tensor_has_no_spread() -> None:
    assert estimate(torch.zeros(0, 3, 5), layout(0, 3, 5)) == Law(0.0)


def test_a_constant_tensor_has_no_spread_and_no_error() -> None:
    law = estimate(torch.full((4, 3, 5), 2.0), layout(4, 3, 5))
    assert (law.mean, law.std, law.error) == (2.0, 0.0, 0.0)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_numbers_whose_squares_leave_single_precision(scale: float) -> None:
    """A gradient that has almost vanished is small, not zero; a signal that explodes is large, not infinite."""
    x = draw(CASES["all components"], 6, 5, 40, 1).float()
    found, expected = estimate(x * scale, layout(6, 5, 40)), estimate(x, layout(6, 5, 40))
    assert found.std == pytest.approx(expected.std * scale, rel=1e-4)
    assert found.error == pytest.approx(expected.error, rel=1e-3)
    assert found.sample / found.variance == pytest.approx(expected.sample / expected.variance, rel=1e-3)
