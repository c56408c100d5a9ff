"""Comparisons of all samples with all, meant and not meant."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.checks.loss.loss_broadcast import crossed
from tightrope.finding import Finding, Severity

Judge = Callable[..., list[Finding]]
Loss = Callable[[Tensor, Tensor], Tensor]


def body(*last: nn.Module, out: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, out), *last)


def batch(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(24, 16), torch.randn(*shape)


def pairwise(output: Tensor, target: Tensor) -> Tensor:
    """Each pair's order: an all-pairs ranking loss."""
    scores = output.squeeze(1)
    return F.softplus(-(scores[:, None] - scores) * torch.sign(target[:, None] - target)).mean()


def quantile(output: Tensor, target: Tensor) -> Tensor:
    error = target.unsqueeze(1) - output.unsqueeze(2)
    return F.huber_loss(error, torch.zeros_like(error))


@pytest.mark.parametrize(
    ("a", "b", "pairs"),
    [
        ((8, 1), (8,), 8), ((8,), (8, 1), 8), ((8, 1, 4, 4), (8, 4, 4), 8), ((8, 1, 1), (8, 1), 8),
        ((8, 3), (8, 1), 1), ((8, 1), (1,), 1), ((8, 1), (3,), 1), ((8, 1), (1, 8), 1), ((8, 8), (8,), 1),
    ],
)  # fmt: skip
def test_what_is_stretched(a: tuple[int, ...], b: tuple[int, ...], pairs: int) -> None:
    assert crossed(a, b) == pairs


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize(
    "loss",
    [
        F.mse_loss, F.l1_loss, F.smooth_l1_loss, lambda o, t: ((o - t) ** 2).mean(), lambda o, t: (t - o).abs().sum(),
        lambda o, t: -(torch.log(torch.sigmoid(o)) * t).mean(), nn.MSELoss(),
        lambda o, t: (F.logsigmoid(o) * t).mean(), lambda o, t: torch.sqrt(F.mse_loss(o, t)),
    ],
)  # fmt: skip
def test_columns_against_rows(judge: Judge, loss: Loss) -> None:
    (found,) = judge("loss-broadcast", body(), batch(24), loss)
    assert found.severity is Severity.FAULT
    assert found.evidence[1].measured == 24
    (found,) = judge("loss-broadcast", body(nn.Flatten(0)), batch(24, 1), loss)
    assert "24 x 24" in found.summary


def test_the_smallest_loss_is_the_variance_of_the_target(judge: Judge) -> None:
    x, y = batch(24)
    with pytest.warns(UserWarning, match="Using a target size"):
        (found,) = judge("loss-broadcast", body(), (x, y), F.mse_loss)
    constant = (y.mean().expand(24, 1) - y).square().mean()
    assert found.evidence[2].measured == pytest.approx(float(constant), rel=1e-5)


@pytest.mark.parametrize(
    ("model", "shape", "loss"),
    [
        (body(), (24, 1), F.mse_loss),
        (body(nn.Flatten(0)), (24,), F.mse_loss),
        (body(out=5), (24, 1), lambda o, t: (o - t).abs().mean()),
        (body(out=5), (5,), lambda o, t: (o - t).square().mean()),
        (body(), (24,), pairwise),
        (body(out=7), (24, 5), quantile),
        (body(), (24,), lambda o, t: (o.squeeze(1)[:, None] - t).square().mean()),
        (body(), (1,), lambda o, t: (o - t).square().mean()),
    ],
)
def test_meant(judge: Judge, model: nn.Module, shape: tuple[int, ...], loss: Loss) -> None:
    assert judge("loss-broadcast", model, batch(*shape), loss) == []


class Fourier(nn.Module):
    """A learned coordinate times as many fixed frequencies as there are samples."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.out = nn.Linear(16, 1), nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.sin(self.enter(x) * torch.arange(24.0)))


def test_an_outer_product_that_a_weight_reads_is_no_loss(judge: Judge) -> None:
    assert judge("loss-broadcast", Fourier(), batch(24, 1), F.mse_loss) == []
