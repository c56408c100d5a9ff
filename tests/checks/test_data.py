from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from torch import Tensor, nn

from tightrope.checks.data.unscaled_input import scale
from tightrope.finding import Finding, Severity
from tightrope.measure.probes import features
from tightrope.roles import default_axes

Judge = Callable[..., list[Finding]]
CHECK = "unscaled-input"


def table(name: str) -> tuple[Tensor, Tensor]:
    data = {"digits": load_digits, "cancer": load_breast_cancer, "wine": load_wine}[name]()
    chosen = torch.randperm(len(data.target))[:64]
    return torch.tensor(data.data, dtype=torch.float32)[chosen], torch.tensor(data.target)[chosen]


def net(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 10))


@pytest.mark.parametrize("name", ["cancer", "wine"])
def test_raw_tables_are_faults_and_standardised_ones_are_not(judge: Judge, name: str) -> None:
    x, y = table(name)
    assert [f.severity for f in judge(CHECK, net(x.shape[1]), (x, y))] == [Severity.FAULT]
    assert judge(CHECK, net(x.shape[1]), ((x - x.mean(0)) / x.std(0), y)) == []


@pytest.mark.parametrize(
    ("factor", "found"), [(1.0, [Severity.WARNING]), (1 / 16, []), (1 / 16 / 255, [Severity.WARNING])]
)
def test_digits(judge: Judge, factor: float, found: list[Severity]) -> None:
    x, y = table("digits")
    assert [f.severity for f in judge(CHECK, net(64), (x * factor, y))] == found


def test_a_table_divided_by_its_maximum_is_still_uneven(judge: Judge) -> None:
    """Breast-cancer features differ a thousandfold; one number cannot level them."""
    x, y = table("cancer")
    (found,) = judge(CHECK, net(30), (x / x.max(), y))
    assert "feature scales" in found.summary


def test_what_all_samples_share(judge: Judge) -> None:
    x = 1.0 + 0.02 * torch.randn(32, 5)
    (found,) = judge(CHECK, net(5), (x, torch.arange(32) % 10))
    assert found.evidence[0].quantity == "shared mean over spread"
    assert found.evidence[0].measured == pytest.approx(50, rel=0.2)


@pytest.mark.parametrize("samples", [1, 2, 64])
def test_images_in_the_unit_interval_are_fine(judge: Judge, samples: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    assert judge(CHECK, model, (torch.rand(samples, 3, 8, 8), torch.arange(samples) % 10)) == []
    found = judge(CHECK, model, (255 * torch.rand(samples, 3, 8, 8), torch.arange(samples) % 10))
    assert [f.severity for f in found] == [Severity.FAULT]


def test_bytes_cast_inside_the_model(judge: Judge) -> None:
    class Bytes(nn.Module):
        def __init__(self, top: float) -> None:
            super().__init__()
            self.top, self.net = top, net(12)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.float().flatten(1) / self.top)

    data = (torch.randint(0, 256, (16, 3, 4), dtype=torch.uint8), torch.arange(16) % 10)
    assert judge(CHECK, Bytes(255.0), data) == []
    assert [f.severity for f in judge(CHECK, Bytes(1.0), data)] == [Severity.FAULT]


def test_a_scale_that_the_model_removes_is_none(judge: Judge) -> None:
    data = (255 * torch.rand(32, 12), torch.arange(32) % 10)
    assert judge(CHECK, nn.Sequential(nn.BatchNorm1d(12), net(12)), data) == []
    after = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))
    assert judge(CHECK, after, data) == []


def test_indices_words_and_one_hot_are_no_scale(judge: Judge) -> None:
    ids = torch.randint(0, 500, (16, 9))
    bag = nn.Sequential(nn.Embedding(500, 8), nn.Flatten(), net(72))
    assert judge(CHECK, bag, (ids, torch.arange(16) % 10)) == []
    hot = F.one_hot(ids[:, 0], 500).float()
    assert judge(CHECK, net(500), (hot, torch.arange(16) % 10)) == []
    counts = torch.zeros(16, 500).scatter_add_(1, ids, torch.ones(16, 9))
    assert judge(CHECK, net(500), (counts, torch.arange(16) % 10)) == []


def test_numbers_beside_an_embedding(judge: Judge) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.net = nn.Embedding(10, 4), net(7)

        def forward(self, numbers: Tensor, word: Tensor) -> Tensor:
            return self.net(torch.cat([numbers, self.words(word)], -1))

    word, target = torch.randint(0, 10, (16,)), torch.arange(16) % 10

    def loss(out: Tensor) -> Tensor:
        return F.cross_entropy(out, target)

    assert judge(CHECK, Mixed(), {"numbers": torch.randn(16, 3), "word": word}, loss) == []
    assert len(judge(CHECK, Mixed(), {"numbers": 1e3 * torch.randn(16, 3), "word": word}, loss)) == 1


def test_recurrent_layers_read_data_too(judge: Judge) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.LSTM(3, 8, batch_first=True), nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x)[0][:, -1])

    target = torch.arange(8) % 10
    assert judge(CHECK, Last(), (torch.randn(8, 5, 3), target)) == []
    assert [f.module for f in judge(CHECK, Last(), (400 * torch.randn(8, 5, 3), target))] == ["body"]


def test_a_step_of_a_sequence_has_the_scale_of_the_whole(judge: Judge) -> None:
    """Prices over the first price: the second step barely differs between samples, the sequence does."""

    class Unrolled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer, self.head = nn.Linear(2, 8), nn.Linear(8, 8), nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.zeros(len(x), 8)
            for t in range(x.shape[1]):
                h = torch.tanh(self.inner(x[:, t]) + self.outer(h))
            return self.head(h)

    walk = torch.cat([torch.zeros(16, 1, 2), torch.randn(16, 1, 2) * 0.01, torch.randn(16, 10, 2)], 1).cumsum(1)
    assert judge(CHECK, Unrolled(), (1 + walk, torch.arange(16) % 10)) == []
    assert len(judge(CHECK, Unrolled(), (1e3 * walk, torch.arange(16) % 10))) == 1


def test_scale_in_closed_form() -> None:
    """Two features, one a hundred times the other: n_eff = (1 + 1e4)^2 / (1 + 1e8) / 2."""
    x = torch.tensor([[1.0, 100.0], [-1.0, -100.0]]).repeat(8, 1)
    found = features(x, default_axes((16, 2), 16))
    assert found is not None
    size = scale(found)
    assert size.rms == pytest.approx((0.5 * (1 + 1e4)) ** 0.5)
    assert size.offset == pytest.approx(0, abs=1e-12)
    assert size.counting == pytest.approx((1 + 1e4) ** 2 / (1 + 1e8) / 2)
    assert size.spread == pytest.approx(95.05 / 5.95, rel=1e-6)


def test_a_weight_that_is_made_of_parameters_is_a_weight(judge: Judge) -> None:
    model = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(6, 16)), nn.ReLU(), nn.Linear(16, 10))
    target = torch.arange(16) % 10
    assert judge(CHECK, model, (torch.randn(16, 6), target)) == []
    assert len(judge(CHECK, model, (300 * torch.randn(16, 6), target))) == 1
