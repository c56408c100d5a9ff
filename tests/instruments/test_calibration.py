"""Calibration errors against numpy and scikit-learn, their null band, temperatures, and coverage of regressions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.calibration import calibration_curve
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import tightrope as tr
from tightrope.errors import InputError
from tightrope.instruments.temperature import fit


def calibrated(samples: int, classes: int = 10, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits, and labels that are drawn from them."""
    torch.manual_seed(seed)
    logits = 2 * torch.randn(samples, classes)
    return logits, torch.distributions.Categorical(logits=logits).sample()


def ece_by_hand(p: np.ndarray, y: np.ndarray, bins: int) -> float:
    """Sample by sample, bins (low, high]."""
    total = 0.0
    confidence, right = p.max(1), p.argmax(1) == y
    for i in range(bins):
        inside = (confidence > i / bins) & (confidence <= (i + 1) / bins)
        if inside.any():
            total += abs(confidence[inside].mean() - right[inside].mean()) * inside.mean()
    return total


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_ece_is_that_of_numpy(bins: int) -> None:
    logits, y = calibrated(3000)
    p = (1.7 * logits).double().softmax(1)
    found = tr.calibration(1.7 * logits, y, bins=bins)
    assert found.ece.value == pytest.approx(ece_by_hand(p.numpy(), y.numpy(), bins), rel=1e-6)
    assert tr.calibration(p, y, bins=bins).ece.value == pytest.approx(found.ece.value, rel=1e-5)


def test_two_classes_are_those_of_scikit_learn() -> None:
    torch.manual_seed(0)
    p = torch.rand(4000, dtype=torch.float64)
    y = (torch.rand(4000) < p.square()).long()
    share, mean = calibration_curve(y.numpy(), p.numpy(), n_bins=10)
    count = np.histogram(p.numpy(), np.linspace(0, 1, 11))[0]
    found = tr.calibration(p, y, bins=10)
    # the error of class 1, and of class 0 alike, is that of the curve
    assert found.classwise.value == pytest.approx(float((np.abs(share - mean) * count).sum() / 4000), rel=1e-9)
    logits = tr.calibration(p.logit(), y, bins=10)
    assert logits.read == "logits" and logits.ece.value == pytest.approx(found.ece.value, rel=1e-6)
    pair = tr.calibration(torch.stack([1 - p, p], 1), y, bins=10)
    assert pair.read == "probabilities" and pair.ece == found.ece


def test_a_confidence_of_one_is_in_the_last_bin() -> None:
    """In float32 a softmax is often exactly 1; 40 rows, of which 21 are right."""
    p = torch.zeros(40, 3)
    p[:, 0] = 1.0
    y = torch.tensor([0] * 21 + [1] * 19)
    found = tr.calibration(p, y)
    assert found.ece.value == pytest.approx(0.475, abs=1e-12)
    assert found.bins[-1].count == 40 and sum(b.count for b in found.bins) == 40
    assert found.adaptive.value == pytest.approx(0.475, abs=1e-12)
    assert found.nll == math.inf
    zero = tr.calibration(torch.zeros(4, 1), torch.tensor([[0], [0], [0], [1]]), head="probabilities", bins=5)
    assert zero.ece.value == pytest.approx(0.25) and zero.samples == 4


def test_reliability_and_proper_scores() -> None:
    logits, y = calibrated(2000, 4)
    found, p = tr.calibration(logits, y), logits.double().softmax(1)
    assert found.nll == pytest.approx(float(F.cross_entropy(logits.double(), y)), rel=1e-9)
    assert found.brier == pytest.approx(float((p - F.one_hot(y, 4)).square().sum(1).mean()), rel=1e-9)
    assert found.accuracy == pytest.approx(float((p.argmax(1) == y).double().mean()))
    assert found.gap == pytest.approx(found.confidence - found.accuracy)
    weighted = sum(b.count * abs(b.confidence - b.accuracy) for b in found.bins if b.count) / 2000
    assert weighted == pytest.approx(found.ece.value)


def test_null_mean_is_the_mean_of_calibrated_models() -> None:
    """At 100 samples of 10 classes a calibrated model shows an ECE near 0.1."""
    logits, _ = calibrated(100)
    found = tr.calibration(logits, torch.zeros(100, dtype=torch.long))
    drawn = [
        ece_by_hand(
            logits.double().softmax(1).numpy(), torch.distributions.Categorical(logits=logits).sample().numpy(), 15
        )
        for _ in range(200)
    ]
    assert found.ece.null == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) * math.sqrt(1 / 200 + 1 / 999))
    assert found.ece.null > 0.05


def test_calibrated_models_are_left_alone() -> None:
    """150 of them: 1 % is flagged on average; benchmarks/uncertainty.py makes 1,000."""
    found = [tr.calibration(*calibrated(150, 5, seed)) for seed in range(150)]
    assert sum(f.miscalibrated for f in found) <= 6  # more has a probability below 0.001
    assert sum(f.verdict is not None for f in found) <= 6
    p = torch.tensor([f.ece.p for f in found])
    assert float(p.mean()) == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / 150))


def test_what_is_wrong_is_named() -> None:
    logits, y = calibrated(1500)
    over, under = tr.calibration(3 * logits, y), tr.calibration(logits / 3, y)
    assert over.verdict is not None and over.verdict.startswith("overconfident")
    assert under.verdict is not None and under.verdict.startswith("underconfident")
    assert [f.check for f in over.findings] == ["overconfident"] and not under.findings
    assert over.findings[0].remedy is not None and "tr.temperature" in over.findings[0].remedy.patch
    torch.manual_seed(1)
    confidence = torch.cat([torch.full((2000,), 0.6), torch.full((2000,), 0.9)]).double()
    crossed = (torch.rand(4000) < torch.cat([confidence[2000:], confidence[:2000]])).long()  # right on average
    mixed = tr.calibration(confidence, crossed).verdict
    assert mixed is not None and mixed.startswith("miscalibrated")


def test_shapes_that_losses_take() -> None:
    logits, y = calibrated(24, 3)
    flat = tr.calibration(logits, y)
    assert tr.calibration(logits.view(4, 6, 3), y.view(4, 6)).ece == flat.ece
    assert tr.calibration(logits.view(4, 6, 3).movedim(2, 1), y.view(4, 6)).ece == flat.ece
    holed = torch.cat([y, torch.full((5,), -100)])
    assert tr.calibration(torch.cat([logits, torch.zeros(5, 3)]), holed).ece == flat.ece
    assert tr.calibration(logits.numpy(), y.numpy()).ece == flat.ece


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounded_probabilities_are_probabilities(dtype: torch.dtype) -> None:
    logits, y = calibrated(200, 50)
    found = tr.calibration(logits.softmax(1).to(dtype), y)
    assert found.read == "probabilities"
    assert found.ece.value == pytest.approx(tr.calibration(logits, y).ece.value, abs=0.01)
    members = logits.softmax(1).to(dtype).expand(3, -1, -1)
    assert tr.decompose(members, head="probabilities").identical


def test_says_what_it_found() -> None:
    logits, y = calibrated(500)
    text = str(tr.calibration(2 * logits, y))
    assert text.startswith("Calibration of 500 predictions of 10 classes, read as logits")
    assert "calibrated:" in text and "overconfident" in text


# temperature


@pytest.mark.parametrize("true", [0.4, 1.0, 2.5])
def test_the_temperature_is_found_and_its_interval_covers(true: float) -> None:
    inside, values = 0, []
    for seed in range(60):
        logits, y = calibrated(400, 6, seed)
        found = fit(true * logits.double(), y)
        inside += found.low <= true <= found.high
        values.append(found.value)
    assert inside >= 52  # 57 of 60 on average; fewer has a probability of 0.004
    mean = torch.tensor(values).log()
    assert float(mean.mean()) == pytest.approx(math.log(true), abs=4 * float(mean.std()) / math.sqrt(60) + 0.005)


def test_the_temperature_is_the_minimum() -> None:
    logits, y = calibrated(800, 5)
    found = tr.temperature(1.8 * logits, y)
    grid = torch.linspace(0.98, 1.02, 41).double() * found.value.value
    losses = torch.stack([F.cross_entropy(1.8 * logits.double() / t, y) for t in grid])
    assert int(losses.argmin()) == 20
    assert found.after.nll == pytest.approx(float(losses[20]), rel=1e-7)
    assert found.before.nll > found.after.nll and found.unchanged == 1.0
    assert found.after.accuracy == found.before.accuracy and not found.after.miscalibrated
    assert found.verdict is not None and found.verdict.startswith("overconfident")
    assert "95 %" in str(found)
    assert tr.temperature(logits, y).verdict is None


class Named(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.net(x), "other": x}


@dataclass
class Output:
    logits: Tensor


class Held(Named):
    def forward(self, x: Tensor) -> Output:  # type: ignore[override]
        return Output(self.net(x))


def test_a_model_is_wrapped_and_left_as_found() -> None:
    x, y = calibrated(600, 4)
    net = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 4, bias=False))
    nn.init.eye_(net[1].weight)
    net[1].weight.data *= 3
    found = tr.temperature(net, DataLoader(TensorDataset(x, y), 100))
    assert net.training and found.model is not None
    assert found.value.value == pytest.approx(3.0, abs=4 * found.value.error)
    wrapped = found.model.eval()
    assert torch.equal(wrapped(x).argmax(1), net(x).argmax(1))
    assert torch.allclose(wrapped(x), 3 * x / found.value.value, rtol=1e-5)
    assert "temperature" in wrapped.state_dict()
    named = tr.temperature(Named(net), (x, y))
    assert named.model is not None and set(named.model.eval()(x)) == {"logits", "other"}
    assert torch.allclose(named.model(x)["logits"], wrapped(x))
    held = tr.temperature(Held(net), (x, y))
    assert held.model is not None and torch.allclose(held.model.eval()(x), wrapped(x))


# coverage


def test_coverage_of_a_right_law_and_of_wrong_ones() -> None:
    torch.manual_seed(0)
    mean, std = torch.randn(3000).double(), torch.rand(3000).double() + 0.2
    y = mean + std * torch.randn(3000)
    found = tr.coverage(mean, std**2, y)
    assert found.verdict is None and found.pit.p > 0.01
    assert found.scale.low < 1 < found.scale.high
    assert found.nll == pytest.approx(float(F.gaussian_nll_loss(mean, y, std**2, full=True, eps=0)), rel=1e-9)
    for level in found.levels:
        assert level.covered == pytest.approx(level.nominal, abs=4 * level.error)
    over, under = tr.coverage(mean, std**2 / 4, y), tr.coverage(mean, 4 * std**2, y)
    assert over.verdict is not None and over.verdict.startswith("overconfident")
    assert over.scale.value == pytest.approx(2 * found.scale.value)
    inside = (y - mean).abs() <= 1.6448536269514722 * std / 2
    assert over.levels[2].covered == pytest.approx(float(inside.double().mean()))
    assert under.verdict is not None and under.verdict.startswith("underconfident")
    assert "90 %" in str(over)
    shape = tr.coverage(mean, std**2, mean + std * torch.where(torch.rand(3000) < 0.5, 1.0, -1.0))
    assert shape.verdict is not None


def test_right_laws_are_left_alone() -> None:
    torch.manual_seed(0)
    zero, one = torch.zeros(200), torch.ones(200)
    found = [tr.coverage(zero, one, torch.randn(200)) for _ in range(300)]
    assert sum(f.verdict is not None for f in found) <= 10  # 1 % on average
    p = torch.tensor([f.pit.p for f in found])
    assert float((p <= 0.05).double().mean()) == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 300))


LOGITS, LABELS = torch.eye(3), torch.arange(3)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: tr.calibration(LOGITS, LABELS, bins=0), "bins is 0"),
        (lambda: tr.calibration(LOGITS, LABELS, head="mean"), "head is 'mean'"),  # type: ignore[arg-type]
        (lambda: tr.calibration(LOGITS, torch.zeros(4)), "have shape"),
        (lambda: tr.calibration(LOGITS, LABELS + 1), "no indices of 3 classes"),
        (lambda: tr.calibration(LOGITS, LABELS + 0.5), "no indices"),
        (lambda: tr.calibration(LOGITS, torch.full((3,), -100)), "every label is ignored"),
        (lambda: tr.calibration(LOGITS * math.nan, LABELS), "NaN"),
        (lambda: tr.calibration(2 * LOGITS, LABELS, head="probabilities"), "no probabilities"),
        (lambda: tr.calibration(LOGITS / 2, LABELS), r"in \[0, 1\], but sums miss 1 by up to 0.5"),
        (lambda: tr.calibration(torch.zeros(0, 3), torch.zeros(0)), "no prediction"),
        (lambda: tr.temperature(LOGITS, LABELS), "all 3 samples is right"),
        (lambda: tr.temperature(LOGITS, (LABELS + 1) % 3), "tell nothing"),
        (
            lambda: tr.temperature(torch.tensor([[0.0, -math.inf], [1.0, 0.0]]), torch.tensor([1, 0])),
            "probability of 0",
        ),
        (lambda: tr.temperature(nn.Linear(3, 3), LOGITS), "a batch is Tensor"),
        (lambda: tr.temperature(nn.Linear(3, 3), []), "no batch"),
        (lambda: tr.temperature("net", (LOGITS, LABELS)), "model is str"),  # type: ignore[arg-type]
        (lambda: tr.coverage(torch.zeros(3), torch.ones(2), torch.zeros(3)), "shapes are"),
        (lambda: tr.coverage(torch.zeros(3), -torch.ones(3), torch.zeros(3)), "3 of 3 variances"),
        (lambda: tr.coverage(torch.zeros(3), torch.ones(3), torch.full((3,), math.nan)), "not finite"),
        (lambda: tr.coverage(torch.zeros(0), torch.ones(0), torch.zeros(0)), "no target"),
    ],
)
def test_says_what_is_wrong(act: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        act()
