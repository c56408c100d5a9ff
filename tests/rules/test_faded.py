"""A signal that has faded below what rounding leaves of its covariance between channels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tightrope.roles import Axes, Axis, Role
from tightrope.rules.linear import mapped
from tightrope.rules.state import State


@pytest.mark.parametrize(("covariance", "variance"), [(0.5, 3.0), (-1.5, 2.0)])
def test_a_covariance_counts_where_it_is_one(covariance: float, variance: float) -> None:
    axes = Axes(((Axis(Role.SAMPLE, 8),), (Axis(Role.CHANNEL, 2),)))
    held = torch.tensor([[1.0, covariance], [covariance, 1.0]], dtype=torch.float64)
    x = replace(State.of(axes, torch.zeros(2), sample=1.0), covariance=held)
    weight = State.of_content(Axes(((Axis(Role.SITE, 1),), (Axis(Role.CHANNEL, 2),))), torch.ones(1, 2))
    out = mapped(x, weight, Axes(((Axis(Role.SAMPLE, 8),), (Axis(Role.CHANNEL, 1),))))
    # 2 + 2 c; a correlation of -1.5 is no covariance but rounding, and is not used: 1 + 1
    assert out.law().variance == pytest.approx(variance)
