"""Masks drawn by hand: those that change the mean, and the many that do not or that mean to."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tightrope.finding import Finding, Severity

Judge = Callable[..., list[Finding]]
Act = Callable[[Tensor, bool], Tensor]
KEEP = 0.4


class Masked(nn.Module):
    """Dropout, as a function of the data and the mode."""

    def __init__(self, act: Act) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x, self.training)


class Block(nn.Module):
    """A residual branch that is dropped for whole samples."""

    def __init__(self, act: Act) -> None:
        super().__init__()
        self.branch, self.act = nn.Sequential(nn.Linear(64, 64), nn.ReLU()), act

    def forward(self, x: Tensor) -> Tensor:
        return x + self.act(self.branch(x), self.training)


def units(x: Tensor) -> Tensor:
    return torch.rand_like(x) < KEEP


def samples(x: Tensor) -> Tensor:
    return torch.bernoulli(torch.full((len(x), 1), KEEP))


def chain(act: Act) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(16, 64), nn.ReLU(), Masked(act), nn.Linear(64, 64), nn.ReLU(), Masked(act), nn.Linear(64, 4)
    )


def blocks(act: Act) -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 64), *(Block(act) for _ in range(4)), nn.Linear(64, 4))


def data(n: int = 256) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 16), torch.arange(n) % 4


SICK = {
    "a product with a comparison": chain(lambda x, on: x * units(x) if on else x),
    "a product with numbers": chain(lambda x, on: x * torch.bernoulli(torch.full_like(x, KEEP)) if on else x),
    "drawn in place": chain(lambda x, on: x * x.new_empty(x.shape).bernoulli_(KEEP) if on else x),
    "divided by the share that is dropped": chain(lambda x, on: x * units(x) / (1 - KEEP) if on else x),
    "scaled in training and in evaluation": chain(lambda x, on: x * units(x) / KEEP**2 if on else x),
    "whole branches": blocks(lambda x, on: x * samples(x) if on else x),
}
HEALTHY = {
    "inverted": chain(lambda x, on: x * units(x) / KEEP if on else x),
    "inverted before": chain(lambda x, on: x.div(KEEP) * units(x) if on else x),
    "inverted in the mask": chain(lambda x, on: x * (units(x).float() / KEEP) if on else x),
    "inverted in place": chain(lambda x, on: x * torch.empty_like(x).bernoulli_(KEEP).div_(KEEP) if on else x),
    "by what is kept indeed": chain(lambda x, on: x * (m := units(x).float()) * (m.numel() / m.sum()) if on else x),
    "classic: evaluation is scaled": chain(lambda x, on: x * units(x) if on else x * KEEP),
    "in both modes": chain(lambda x, on: x * units(x)),
    "noise that multiplies": chain(lambda x, on: x * (1 + 0.5 * torch.randn_like(x)) if on else x),
    "samples without a condition": chain(lambda x, on: x * samples(x) if on else x),
    "branches, inverted": blocks(lambda x, on: x * (samples(x) / KEEP) if on else x),
    "branches, classic": blocks(lambda x, on: x * samples(x) if on else x * KEEP),
    "a mask of the data's own": chain(lambda x, on: x * (x > 0.5) if on else x),
    "torch's own": chain(lambda x, on: nn.functional.dropout(x, 1 - KEEP, on)),
}


@pytest.mark.parametrize("name", SICK)
def test_masks_that_nothing_makes_up_for(judge: Judge, name: str) -> None:
    torch.manual_seed(0)
    (finding,) = judge("train-eval-mismatch", SICK[name], data())
    assert finding.severity is Severity.FAULT
    assert finding.remedies == () and "of the mean" in finding.summary


@pytest.mark.parametrize("name", HEALTHY)
def test_masks_that_keep_the_mean_or_mean_to_change_it(judge: Judge, name: str) -> None:
    torch.manual_seed(0)
    assert judge("train-eval-mismatch", HEALTHY[name], data()) == []


def test_features_of_the_data_may_be_hidden(judge: Judge) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        Masked(lambda x, on: x * units(x) if on else x), nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4)
    )
    assert judge("train-eval-mismatch", model, data()) == []


def test_the_share_is_measured(judge: Judge) -> None:
    torch.manual_seed(0)
    (finding,) = judge("train-eval-mismatch", SICK["whole branches"], data(4096))
    found = finding.evidence[0]
    assert found.error is not None and abs(found.measured - KEEP) < 4 * found.error < 0.04
