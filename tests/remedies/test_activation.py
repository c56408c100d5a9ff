from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from tightrope.check import study
from tightrope.checks.registry import get
from tightrope.finding import Finding
from tightrope.remedies.registry import prescribe
from tightrope.subject import Subject

Cure = Callable[[str, str, Subject], tuple[list[Finding], list[Finding]]]


def data() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(64, 32), torch.arange(64) % 4


def test_a_dead_rectifier_comes_back(cure: Cure) -> None:
    """After the swap the layer behind has a gradient again, and training moves the units."""
    model = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
    nn.init.constant_(model[0].bias, -20.0)  # type: ignore[arg-type]
    x, y = data()
    F.cross_entropy(model(x), y).backward()
    assert torch.all(model[0].weight.grad == 0)  # type: ignore[union-attr, operator]
    before, after = cure("dead-units", "leaky-activation", Subject(model, (x, y), F.cross_entropy))
    assert len(before) == 1
    assert after == []
    assert isinstance(model[1], nn.LeakyReLU)
    F.cross_entropy(model(x), y).backward()
    assert torch.any(model[0].weight.grad != 0)  # type: ignore[union-attr, operator]


def test_a_saturated_activation_is_swapped(cure: Cure) -> None:
    model = nn.Sequential(nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 4))
    nn.init.normal_(model[0].weight, std=2.0)  # type: ignore[arg-type]
    before, after = cure("saturated-units", "swap-activation", Subject(model, data(), F.cross_entropy))
    assert len(before) == 1
    assert after == []


def test_a_functional_activation_is_shown_not_swapped() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(32, 16), nn.Linear(16, 4)
            nn.init.constant_(self.first.bias, -20.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(F.relu(self.first(x)))

    made = study(Functional(), data(), loss=F.cross_entropy)
    (finding,) = get("dead-units").judge(made)
    (remedy,) = prescribe(made, finding, ["leaky-activation"])
    assert remedy.action is None
    assert "LeakyReLU" in remedy.patch
