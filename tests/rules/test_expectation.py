"""Quadrature and products of laws against closed forms and sampling."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tightrope.roles import Axes, Axis, Role, default_axes
from tightrope.rules.expectation import from_levels, latent, legendre, levels, product
from tightrope.rules.state import State

AXES = Axes(((Axis(Role.SAMPLE, 2),), (Axis(Role.CHANNEL, 3),)))


def test_nodes_integrate_polynomials_exactly() -> None:
    x, w = legendre(8)
    for degree in range(16):
        assert float((w * x**degree).sum()) == pytest.approx(0.0 if degree % 2 else 2 / (degree + 1), abs=1e-14)


@pytest.mark.parametrize("kinks", [(), (0.0,), (-1.0, 2.0), (50.0,)])
def test_moments_of_the_variable_itself(kinks: tuple[float, ...]) -> None:
    variable = latent(State.of(AXES, 0.7, sample=1.5, residual=0.75), kinks)
    z = variable.z
    assert variable.expect(torch.ones_like(z)).flatten()[0] == pytest.approx(1.0, rel=1e-12)
    assert variable.expect(z).flatten()[0] == pytest.approx(0.7, rel=1e-10)
    assert variable.expect((z - 0.7) ** 2).flatten()[0] == pytest.approx(2.25, rel=1e-7)
    assert variable.expect((z - 0.7) ** 4).flatten()[0] == pytest.approx(3 * 2.25**2, rel=1e-6)


def test_a_split_at_the_kink_makes_relu_exact() -> None:
    variable = latent(State.of(AXES, 0.0, sample=4.0), (0.0,))
    mean = variable.expect(variable.z.clamp(min=0)).flatten()[0]
    assert mean == pytest.approx(2.0 / math.sqrt(2 * math.pi), rel=1e-9)


def test_the_covariance_of_relus_is_the_arc_cosine_kernel() -> None:
    """Cho and Saul (2009): E relu(u) relu(v) = (sin t + (pi - t) cos t) / 2 pi for unit variances, cos t = rho."""
    for rho in (0.1, 0.5, 0.9):
        variable = latent(State.of(AXES, 0.0, sample=rho, residual=1 - rho), (0.0,))
        found = variable.state(variable.z.clamp(min=0))
        angle = math.acos(rho)
        kernel = (math.sin(angle) + (math.pi - angle) * rho) / (2 * math.pi)
        assert found.sample.flatten()[0] == pytest.approx(kernel - 1 / (2 * math.pi), abs=2e-4)


def test_levels_and_back() -> None:
    state = State.of(AXES, 0.5, constant=0.1, sample=0.2, site=0.3, residual=0.4)
    back = from_levels(state, state.mean, levels(state))
    for name in ("constant", "sample", "site", "residual"):
        assert float(getattr(back, name).mean()) == pytest.approx(float(getattr(state, name).mean()))


def test_the_product_of_independent_tensors() -> None:
    left, right = State.of(AXES, 0.5, sample=0.2, residual=0.4), State.of(AXES, -1.0, sample=0.3, residual=0.1)
    law = product(left, right).law()
    n = 1_000_000
    draws = torch.randn(6, n, dtype=torch.float64)
    common = [0.2**0.5 * draws[0], 0.3**0.5 * draws[1]]
    first = (0.5 + common[0] + 0.4**0.5 * draws[2]) * (-1.0 + common[1] + 0.1**0.5 * draws[3])
    second = (0.5 + common[0] + 0.4**0.5 * draws[4]) * (-1.0 + common[1] + 0.1**0.5 * draws[5])
    assert law.mean == pytest.approx(float(first.mean()), abs=5e-3)
    assert law.variance == pytest.approx(float(first.var()), rel=0.01)
    assert law.sample == pytest.approx(float(((first - first.mean()) * (second - second.mean())).mean()), abs=5e-3)


def test_covariances_of_a_product_are_those_of_its_factors() -> None:
    generator = torch.Generator().manual_seed(0)
    axes = default_axes((400_000, 3), 400_000)
    draws, states = [], []
    for _ in range(2):
        mix, mean = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((3, 3), (3,)))
        draws.append(mean + torch.randn(400_000, 3, generator=generator, dtype=torch.float64) @ mix.T)
        covariance = mix @ mix.T
        states.append(replace(State.of(axes, mean, sample=covariance.diagonal()), covariance=covariance))
    found = product(*states).covariance
    real = draws[0] * draws[1]
    batches = torch.stack([torch.cov(part.T) for part in real.chunk(40)])
    assert found is not None
    assert bool(((found - batches.mean(0)).abs() < 5 * batches.std(0) / 40**0.5).all())


@pytest.mark.parametrize("turns", [[1.0, 1.0, 1.0, 1.0], [1.0, -1.0, 1.0, -1.0], [2.0, 1.0, -1.0, 1.0]])
def test_a_mean_that_turns_from_site_to_site_shares_less(turns: list[float]) -> None:
    """A sum over sites keeps its variance: (sum of m)^2 of what a sample shares, whatever the signs of m."""
    axes = Axes(((Axis(Role.SAMPLE, 8),), (Axis(Role.SITE, 4),), (Axis(Role.CHANNEL, 3),)))
    mean = torch.tensor(turns, dtype=torch.float64).reshape(1, 4, 1)
    made = product(State.of(axes, mean, residual=0.3), State.of(axes, 0.0, sample=0.8, residual=0.2))
    generator = torch.Generator().manual_seed(0)
    left, own = torch.randn(2, 400_000, 4, generator=generator, dtype=torch.float64)
    shared = torch.randn(400_000, 1, generator=generator, dtype=torch.float64)
    real = (mean.squeeze(-1) + 0.3**0.5 * left) * (0.8**0.5 * shared + 0.2**0.5 * own)
    variance = made.variance.expand(made.shape)[0, :, 0]
    assert torch.allclose(variance, real.var(0), rtol=0.02)
    total = (
        made.sample.expand(made.shape)[0, :, 0].sqrt().sum().square() + made.residual.expand(made.shape)[0, :, 0].sum()
    )
    # What is left of a covariance below zero is cut off.
    assert float(total) == pytest.approx(max(float(real.sum(1).var()), float(variance.sum())), rel=0.03)
