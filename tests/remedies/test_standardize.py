from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer, load_digits
from torch import nn

from tightrope.finding import Finding
from tightrope.subject import Subject

Cure = Callable[[str, str, Subject], tuple[list[Finding], list[Finding]]]


def cancer() -> tuple[torch.Tensor, torch.Tensor]:
    data = load_breast_cancer()
    order = torch.randperm(len(data.target))
    return torch.tensor(data.data, dtype=torch.float32)[order], torch.tensor(data.target)[order]


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Accuracy on the last quarter after 60 steps on the rest."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    n = 3 * len(y) // 4
    for step in range(60):
        rows = torch.arange(64 * step, 64 * step + 64) % n
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    model.eval()
    return float((model(x[n:]).argmax(1) == y[n:]).float().mean())


def net(width: int) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 2))


def test_training_works_after_it(cure: Cure) -> None:
    """Breast cancer: raw, cured in memory, and standardised by hand beforehand."""
    x, y = cancer()
    sick = train(net(30), x, y)
    model = net(30)
    before, after = cure("unscaled-input", "standardize", Subject(model, (x[:64], y[:64]), F.cross_entropy))
    assert len(before) == 1
    assert after == []
    cured = train(model, x, y)
    healthy = train(net(30), (x - x.mean(0)) / x.std(0), y)
    assert sick < 0.8
    assert cured > 0.93
    assert cured > healthy - 0.03
    assert "0.standardize.mean" in model.state_dict()


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)),
        nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)),
    ],
)
def test_images(cure: Cure, model: nn.Module) -> None:
    data = load_digits()
    x = 16 * torch.tensor(data.images[:64], dtype=torch.float32).unsqueeze(1)
    before, after = cure(
        "unscaled-input", "standardize", Subject(model, (x, torch.tensor(data.target[:64])), F.cross_entropy)
    )
    assert len(before) == 1
    assert after == []


def test_sequences(cure: Cure) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.GRU(3, 8, batch_first=True), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x)[0][:, -1])

    subject = Subject(Last(), (300 * torch.randn(8, 5, 3), torch.arange(8) % 4), F.cross_entropy)
    before, after = cure("unscaled-input", "standardize", subject)
    assert len(before) == 1
    assert after == []


def test_missing_entries(cure: Cure) -> None:
    x = torch.randn(64, 6)
    x[::5, 2] = torch.nan
    before, after = cure("non-finite-input", "impute", Subject(net(6), (x, torch.arange(64) % 2), F.cross_entropy))
    assert len(before) == 1
    assert after == []
