"""A chart's interpolation against adaptive quadrature of each element."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from tightrope.roles import default_axes
from tightrope.rules.chart import chart
from tightrope.rules.expectation import latent
from tightrope.rules.state import State

ELEMENTS = 4000


def laws(span: float, ratio: float) -> tuple[Tensor, Tensor]:
    """Means over `span` and standard deviations over a factor `ratio`, at random."""
    generator = torch.Generator().manual_seed(0)
    u, v = torch.rand(2, ELEMENTS, generator=generator, dtype=torch.float64)
    return (u - 0.5) * span, torch.exp(v * math.log(ratio))


def step(mean: Tensor, std: Tensor) -> Tensor:
    """P(z > 0)."""
    return torch.as_tensor(stats.norm.cdf((mean / std).numpy()))


def hinge(mean: Tensor, std: Tensor) -> Tensor:
    """E max(z, 0)."""
    return mean * step(mean, std) + std * torch.as_tensor(stats.norm.pdf((mean / std).numpy()))


@pytest.mark.parametrize(("span", "ratio"), [(0.01, 1.00001), (0.2, 1.01), (4.0, 1.5), (3.0, 8.0), (15.0, 1.2)])
def test_closed_forms_are_reproduced(span: float, ratio: float) -> None:
    mean, std = laws(span, ratio)
    points = chart(mean, std)
    assert points is not None
    assert len(points.mean) < ELEMENTS / 4
    for function in (step, hinge):
        made = points.fill(function(points.mean, points.std))
        torch.testing.assert_close(made, function(mean, std), rtol=1e-5, atol=1e-5)


def test_laws_that_are_all_alike_take_one_point() -> None:
    mean = torch.full((4, 5), 0.3, dtype=torch.float64)
    points = chart(mean, mean + 1)
    assert points is not None
    assert len(points.mean) == 1
    torch.testing.assert_close(points.fill(points.std), mean + 1)


@pytest.mark.parametrize("std", [0.0, math.nan, math.inf])
def test_laws_without_spread_or_number_have_no_chart(std: float) -> None:
    mean = torch.zeros(100, dtype=torch.float64)
    assert chart(mean, mean + torch.where(torch.arange(100) == 7, std, 1.0)) is None


def test_a_few_elements_have_no_chart() -> None:
    assert chart(*(field[:6] for field in laws(1.0, 2.0))) is None


def test_a_row_of_other_laws_does_not_cost_the_rest_its_chart() -> None:
    mean, std = (field.reshape(40, 100).clone() for field in laws(0.5, 1.1))
    mean[7] = torch.linspace(-8, 8, 100, dtype=torch.float64)
    std[7] = 0.01
    points = chart(mean, std)
    assert points is not None
    assert len(points.strays) >= 99
    torch.testing.assert_close(points.fill(hinge(points.mean, points.std)), hinge(mean, std), rtol=1e-5, atol=1e-5)


def test_trailing_dimensions_are_kept() -> None:
    mean, std = (field.reshape(40, 100) for field in laws(1.0, 1.1))
    points = chart(mean, std)
    assert points is not None
    both = torch.stack([points.mean, points.std], -1)
    torch.testing.assert_close(points.fill(both), torch.stack([mean, std], -1), rtol=1e-5, atol=1e-5)


def test_a_charted_variable_has_the_laws_of_a_resolved_one() -> None:
    mean, std = (field[:1000] for field in laws(3.0, 1.5))
    axes = default_axes((8, 1000), 8)
    state = State.of(axes, mean[None], sample=0.3 * std[None].square(), residual=0.7 * std[None].square())
    made = []
    for charted in (False, True):
        variable = latent(state, (0.0,), charted=charted)
        assert (variable.chart is not None) is charted
        made.append(variable.state(torch.relu(variable.z)))
    for left, right in zip(made[0].fields, made[1].fields, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=2e-5)
