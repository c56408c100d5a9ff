"""Pooling against real pools."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oracles import check_rule, outcome

CASES = {
    "average": (nn.AvgPool2d(2), (8, 16, 8, 8)),
    "average-overlap": (nn.AvgPool2d(3, stride=1, padding=1), (8, 16, 8, 8)),
    "average-uncounted": (nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False), (8, 16, 8, 8)),
    "average-1d": (nn.AvgPool1d(3), (8, 16, 12)),
    "global": (nn.AdaptiveAvgPool2d(1), (16, 16, 6, 6)),
    "adaptive": (nn.AdaptiveAvgPool2d(3), (8, 16, 7, 7)),
    "adaptive-up": (nn.AdaptiveAvgPool2d(7), (8, 16, 2, 2)),
    "max": (nn.MaxPool2d(2), (8, 16, 8, 8)),
    "max-1d": (nn.MaxPool1d(3), (8, 16, 12)),
    "max-overlap": (nn.MaxPool2d(3, stride=2, padding=1), (8, 16, 9, 9)),
    "adaptive-max": (nn.AdaptiveMaxPool2d(2), (8, 16, 8, 8)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mean", [0.0, 0.7])
def test_laws_and_gradients(name: str, mean: float) -> None:
    layer, shape = CASES[name]
    # Zero padding of an average and small windows at the border make a map, which a law without one averages.
    check_rule(layer, shape, mean=mean, forward=0.02, backward=0.06)


@pytest.mark.parametrize("name", ["average", "max", "global"])
def test_what_a_window_shares_survives(name: str) -> None:
    layer, shape = CASES[name]
    check_rule(layer, (32, *shape[1:]), shared=1.5, forward=0.03, backward=0.06)


def test_max_follows_the_function_before_it() -> None:
    """After a ReLU a window is no Gaussian: half of it is zero; and its winner is positive, so its gradient passes."""

    def pooled(x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(x), 2)

    check_rule(pooled, (16, 16, 8, 8), forward=0.01, backward=0.03)
    check_rule(lambda x: F.max_pool2d(F.gelu(x), 2), (16, 16, 8, 8), forward=0.01, backward=0.03)


def test_global_mean_of_what_sites_share() -> None:
    found = outcome(lambda x: x.mean((2, 3)), (64, 16, 4, 4), shared=1.0, batches=60)
    assert found.predicted_std == pytest.approx(1 + 1 / 16, rel=1e-6)
    assert found.std.agrees(found.predicted_std, relative=0.01)


def test_maximum_of_two_is_known_in_closed_form() -> None:
    found = outcome(nn.MaxPool1d(2), (8, 16, 16))
    assert found.predicted_std == pytest.approx(1 - 1 / torch.pi, rel=1e-3)


def test_overlapping_windows_make_neighbours_alike() -> None:
    """Means over the maxima of overlapping windows vary more than independent ones would."""

    def pooled(x: Tensor) -> Tensor:
        return F.avg_pool2d(F.max_pool2d(F.relu(x), 3, stride=2), 2)

    found = outcome(pooled, (32, 16, 17, 17), batches=40)
    assert found.std.agrees(found.predicted_std, relative=0.04)
    alone = outcome(lambda x: F.max_pool2d(F.relu(x), 3, stride=2), (32, 16, 17, 17))
    assert found.predicted_std > 1.3 * alone.predicted_std / 4
