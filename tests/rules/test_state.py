"""A state holds the moments of a tensor, and moves as its tensor does."""

from __future__ import annotations

import pytest
import torch

from tightrope.roles import Axes, Axis, Role
from tightrope.rules.state import State

S, T, C = Role.SAMPLE, Role.SITE, Role.CHANNEL


def layout(n: int, s: int, k: int) -> Axes:
    return Axes(((Axis(S, n),), (Axis(T, s),), (Axis(C, k),)))


def content(n: int, s: int, k: int) -> torch.Tensor:
    """Samples with a share of their own at all sites, and channels with means."""
    own = torch.randn(n, 1, k, dtype=torch.float64)
    return torch.randn(k, dtype=torch.float64) + own + 0.5 * torch.randn(n, s, k, dtype=torch.float64)


def test_the_state_of_data_has_the_datas_moments() -> None:
    x = content(64, 7, 5)
    state = State.of_content(layout(64, 7, 5), x)
    assert state.shape == (1, 7, 5)
    # A position's own 64 samples are off the population by sqrt(2 / 64) of their variance.
    assert torch.allclose(state.second_moment[0], x.square().mean(0), rtol=0.5)
    assert torch.allclose(state.second_moment[0].mean(0), x.square().mean((0, 1)), rtol=0.15)
    assert torch.allclose(state.mean[0], x.mean(0), rtol=0.1, atol=0.02)  # less what the sampling of few explains
    law = state.law()
    assert law.rms == pytest.approx(float(x.square().mean().sqrt()), rel=0.02)
    assert law.std == pytest.approx(float(x.std(unbiased=False)), rel=0.02)
    assert law.sample / (law.sample + law.residual) == pytest.approx(1 / 1.25, abs=0.08)


def test_a_weight_is_exact() -> None:
    state = State.of_content(Axes(((Axis(T, 3),), (Axis(C, 4),))), torch.randn(3, 4))
    assert state.exact
    assert not State.of(layout(2, 3, 4), 0.0, residual=1.0).exact


def test_the_ensemble_form_keeps_the_moments_of_all_elements() -> None:
    state = State.of_content(layout(64, 7, 5), content(64, 7, 5))
    moved = state.moved()
    assert moved.mean.numel() == 1
    assert moved.law().mean == pytest.approx(state.law().mean)
    assert moved.law().variance == pytest.approx(state.law().variance)
    assert moved.law().constant == pytest.approx(state.law().constant, rel=0.05)


def test_scaling_is_squared_in_the_components() -> None:
    state = State.of(layout(2, 3, 4), 1.0, constant=0.1, sample=0.2, site=0.3, residual=0.4)
    law, scaled = state.law(), state.scaled(-3.0).law()
    assert scaled.mean == pytest.approx(-3 * law.mean)
    for component in ("constant", "sample", "site", "residual"):
        assert getattr(scaled, component) == pytest.approx(9 * getattr(law, component))


def test_sums_of_independent_tensors_add_every_moment() -> None:
    left = State.of(layout(2, 3, 4), 1.0, sample=0.2, residual=0.4, width=0.1)
    right = State.of(layout(2, 3, 4), -2.0, site=0.3, residual=0.1, width=0.3)
    law = left.plus(right).law()
    assert (law.mean, law.sample, law.site) == (pytest.approx(-1.0), pytest.approx(0.2), pytest.approx(0.3))
    assert law.residual == pytest.approx(0.5)
    assert 0 < left.plus(right).width < 0.3  # independent bands partly cancel


def test_a_channels_mean_map_becomes_the_constant_component() -> None:
    means = torch.tensor([1.0, -1.0, 3.0, -3.0])
    law = State.of(layout(2, 3, 4), means, residual=0.5).law()
    assert law.mean == pytest.approx(0.0)
    assert law.constant == pytest.approx(5.0)
    assert law.variance == pytest.approx(5.5)


def test_what_two_tensors_hold_at_different_sites_is_shared_by_neither() -> None:
    """One holds a draw at the first site, the other a draw at all: the sum over sites adds both in variance."""
    axes = layout(1, 5, 1)
    first = State.of(axes, 0.0, sample=torch.tensor([4.0, 0, 0, 0, 0], dtype=torch.float64).reshape(1, 5, 1))
    every = State.of(axes, 0.0, sample=torch.full((1, 5, 1), 0.25, dtype=torch.float64))
    both = first.plus(every)
    assert torch.allclose(both.variance, first.variance + every.variance)
    draws = torch.randn(200_000, 2, dtype=torch.float64)
    real = (2 * draws[:, 0] + 5 * 0.5 * draws[:, 1]).var()
    found = both.sample.sqrt().sum().square() + both.residual.sum()
    assert float(found) == pytest.approx(float(real), rel=0.02)
    assert float(first.plus(first).residual.sum()) == pytest.approx(0, abs=1e-9)
