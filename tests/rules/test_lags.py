"""Laws of maps whose sites are alike, against Gaussian fields of a known autocorrelation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tightrope as tr
from tightrope.roles import default_axes
from tightrope.rules.lags import aligned, autocovariance, filtered_alone, reach, resized, trimmed, white
from tightrope.rules.state import State

SIZE = 40


def pictures(count: int, channels: int = 3, seed: int = 0) -> Tensor:
    """Smooth Gaussian fields whose channels are correlated, with a level of each sample."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 1, SIZE + 8, SIZE + 8, generator=generator)
    own = torch.randn(count, channels, SIZE + 8, SIZE + 8, generator=generator)
    kernel = torch.ones(1, 1, 9, 9) / 9
    smooth = F.conv2d((noise + 0.5 * own).flatten(0, 1).unsqueeze(1), kernel).reshape(count, channels, SIZE, SIZE)
    level = torch.randn(count, 1, 1, 1, generator=generator)
    return smooth + 0.5 * level * torch.tensor([1.0, 0.5, -0.5, 0.2])[:channels, None, None] + 0.3


def test_autocovariance_is_the_mean_product_at_each_lag() -> None:
    x = torch.randn(5, 2, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    table = autocovariance(x)
    rows, columns = reach(table)
    assert (rows, columns) == (3, 3)
    direct = (x[:, 0, :-2, 3:] * x[:, 1, 2:, :-3]).mean()
    torch.testing.assert_close(table[0, 1, rows + 2, columns - 3], direct)
    torch.testing.assert_close(table[1, 1, rows, columns], x[:, 1].square().mean())


def test_tables_are_cut_and_filled_around_their_centre() -> None:
    small, wide = aligned([white(torch.zeros((), dtype=torch.float64)), torch.ones(4, 5, 3, dtype=torch.float64)])
    assert small.shape[1:] == wide.shape[1:] == (5, 3)
    assert small.sum() == small[0, 2, 1] == 1
    faint = resized(white(small), 4, 4).clone()
    assert trimmed(faint) is None
    faint[0, 4, 6] = faint[0, 4, 2] = 0.2
    cut = trimmed(faint)
    assert cut is not None
    assert reach(cut) == (0, 2)


def test_content_of_pictures() -> None:
    state = State.of_content(default_axes((400, 3, SIZE, SIZE), 400), pictures(400).double())
    assert state.lags is not None
    rows, columns = reach(state.lags)
    triangle = 1 - torch.arange(5, dtype=torch.float64) / 9
    measured = state.lags[:, rows, columns : columns + 5].mean(0)
    torch.testing.assert_close(measured, triangle, rtol=0, atol=0.04)  # of a box of nine, less the samples' own
    assert state.sample.reshape(-1).tolist() == pytest.approx([0.31, 0.11, 0.11], abs=0.06)


def measured(layers: nn.Sequential, batches: int = 12) -> Tensor:
    """Standard deviation and mean of the last result, and its standard error over batches."""
    found = []
    with torch.no_grad():
        for seed in range(batches):
            out = layers(pictures(32, seed=seed + 1))
            found.append(torch.stack([out.std(), out.mean()]))
    all_ = torch.stack(found)
    return torch.stack([all_.mean(0), all_.std(0) / batches**0.5])


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [nn.Conv2d(3, 32, 5, 2)],
        lambda: [nn.Conv2d(3, 32, 3, dilation=2), nn.ReLU(), nn.AvgPool2d(3)],
        lambda: [nn.Conv2d(3, 8, 1), nn.MaxPool2d(3, 2)],
        lambda: [nn.Conv2d(3, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(64, 64, 3)],
        lambda: [nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)],
        lambda: [nn.Conv2d(3, 64, 3, 2), nn.Tanh(), nn.AdaptiveAvgPool2d(1)],
    ],
    ids=["conv", "dilated-average", "maximum", "maximum-conv", "norm-maximum", "global-average"],
)
def test_layers_on_pictures(layers: object) -> None:
    assert callable(layers)
    torch.manual_seed(0)
    model = nn.Sequential(*layers())
    forecast = tr.predict(model, pictures(256))
    outputs = [e.outputs[0] for e in forecast.tape.entries if e.module]
    law = forecast.laws[outputs[-1]]
    (std, mean), (std_error, mean_error) = measured(model).tolist()
    assert law.std == pytest.approx(std, rel=0.04, abs=3 * std_error)
    assert law.mean == pytest.approx(mean, abs=0.05 * std + 3 * mean_error)


def test_a_filter_of_one_channel_is_exact() -> None:
    """Against the autocovariance of filtered noise that neighbours share."""
    torch.manual_seed(0)
    weight = torch.randn(3, 3, 3, dtype=torch.float64)
    noise = torch.randn(400, 3, 34, 34, dtype=torch.float64)
    blur = torch.ones(3, 1, 2, 2, dtype=torch.float64) / 2
    x = F.conv2d(noise, blur, groups=3)
    lags = torch.tensor([[[0.25, 0.5, 0.25], [0.5, 1.0, 0.5], [0.25, 0.5, 0.25]]], dtype=torch.float64)
    for stride in (1, 2):
        table = filtered_alone(lags, weight, (stride, stride), (1, 1))
        z = F.conv2d(x, weight[:, None], stride=stride, groups=3)
        found = autocovariance(z)[range(3), range(3)]
        rows, columns = reach(table)
        own, near = reach(found)
        measured = found[:, own - rows : own + rows + 1, near - columns : near + columns + 1]
        assert torch.allclose(table, measured, atol=0.02 * float(table.max()))
