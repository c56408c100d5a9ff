"""Operations that move, join and overwrite elements."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tightrope as tr
from oracles import check_rule


def overwritten(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :, 1:3] = 2 * x[:, :, :2]
    return y


def masked(x: Tensor) -> Tensor:
    return x.masked_fill(torch.ones(6, 6, dtype=torch.bool).triu(1), 0.5)


CASES = {
    "view": lambda x: x.view(8, 4, 36) * 2,
    "merge": lambda x: x.reshape(8, -1) * 2,
    "tokens": lambda x: x.flatten(2).transpose(1, 2) * 2,
    "batch-time": lambda x: x.permute(0, 2, 3, 1).reshape(8 * 6, 6, 4) * 2,
    "einops-patch": lambda x: x.view(8, 4, 3, 2, 3, 2).permute(0, 2, 4, 3, 5, 1).reshape(8, 9, 16) * 2,
    "cat": lambda x: torch.cat([x, 3 * x[:, :2]], 1),
    "cat-sites": lambda x: torch.cat([x, 3 * x], 3),
    "stack": lambda x: torch.stack([x, 2 * x], 1),
    "expand": lambda x: x[:, :, :1, :1].expand(8, 4, 6, 6) * 2,
    "setitem": overwritten,
    "masked-fill": masked,
    "pad": lambda x: F.pad(x, (1, 2, 0, 1)),
    "pad-value": lambda x: F.pad(x, (1, 1), value=2.0),
    "pad-reflect": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "nearest": lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
    "bilinear": lambda x: F.interpolate(x, size=(9, 11), mode="bilinear", align_corners=False),
    "bicubic": lambda x: F.interpolate(x, size=(9, 9), mode="bicubic"),
    "cumsum": lambda x: x.cumsum(2),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_laws_and_gradients(name: str, mean: float) -> None:
    check_rule(CASES[name], (8, 4, 6, 6), mean=mean, forward=0.03, backward=0.05)


def test_moving_is_trivial() -> None:
    class Net(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).reshape(8, 2, 3).permute(0, 2, 1).flatten(1)

    forecast = tr.predict(Net(4, 6), torch.randn(8, 4))
    ops = {e.op for e in forecast.tape.entries if e.index in forecast.trivial}
    assert {"reshape", "permute", "flatten"} <= ops
    assert "linear" not in ops


class Merging(nn.Module):
    """Averages tokens of a window, after the four tokens of each square became channels of one."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.reduce = nn.Linear(16, 16), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        mixed = (x.new_zeros(n, 64, 64) + 1 / 64 + 0 * x.sum(-1, keepdim=True)) @ self.value(x)
        square = mixed.reshape(n, 4, 2, 4, 2, 16).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduce(square).mean((1, 2))


def test_sites_that_became_channels_share_no_gradient() -> None:
    """The gradient that all squares share reaches the four places of a square through different weights."""
    torch.manual_seed(0)
    model, x = Merging(), torch.randn(64, 64, 16)
    rows = tr.compare(tr.predict(model, x), tr.measure(model, x)).rows
    value = next(row for row in rows if row.module == "value")
    assert value.measured_grad_rms is not None
    assert value.predicted_grad_rms == pytest.approx(value.measured_grad_rms, rel=0.1)
