from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.check import study
from tightrope.checks.registry import get
from tightrope.factory import check_factory
from tightrope.finding import Finding, Safety
from tightrope.remedies.registry import prescribe
from tightrope.subject import Subject

Cure = Callable[[str, str, Subject], tuple[list[Finding], list[Finding]]]


def net(*last: nn.Module, std: float | None = None) -> nn.Sequential:
    head = nn.Linear(32, 10)
    if std is not None:
        nn.init.normal_(head.weight, std=std)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), head, *last)


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(64, 16), torch.arange(64) % 10


@pytest.mark.parametrize("loss", [F.cross_entropy, F.nll_loss])
def test_the_activation_goes(cure: Cure, loss: Callable[..., Tensor]) -> None:
    model = net(nn.Softmax(-1))
    x, y = data()
    scores = model[:3](x)
    before, after = cure("double-softmax", "remove-softmax", Subject(model, (x, y), loss))
    assert len(before) == 1
    assert after == []
    assert float(loss(model(x), y).detach()) == pytest.approx(float(F.cross_entropy(scores, y).detach()), rel=1e-6)


def test_a_loss_that_fits_is_named() -> None:
    made = study(net(), data(), loss=F.nll_loss)
    (finding,) = get("double-softmax").judge(made)
    (remedy,) = prescribe(made, finding, ["remove-softmax"])
    assert "cross_entropy" in remedy.patch
    assert remedy.safety is Safety.REVIEW


SCRIPT = """\
import torch
from torch import nn
import torch.nn.functional as F

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(16, 10)
        LAST

    def forward(self, x):
        return CALL

def build():
    return Net(), (torch.randn(64, 16), torch.arange(64) % 10), LOSS
"""


@pytest.mark.parametrize(
    ("last", "call", "loss", "line", "after"),
    [
        ("self.last = nn.Softmax(dim=1)", "self.last(self.body(x))", "F.cross_entropy", 9, "nn.Identity()"),
        ("self.last = nn.Softmax(dim=1)", "self.last(self.body(x))", "F.nll_loss", 9, "nn.LogSoftmax(dim=1)"),
        ("", "F.softmax(self.body(x), dim=1)", "F.cross_entropy", 12, "self.body(x)"),
        ("", "self.body(x).softmax(1)", "F.cross_entropy", 12, "self.body(x)"),
        ("", "torch.softmax(self.body(x), -1)", "nn.NLLLoss()", 12, "torch.log_softmax(self.body(x), -1)"),
    ],
)
def test_the_source_is_edited(tmp_path: Path, last: str, call: str, loss: str, line: int, after: str) -> None:
    path = tmp_path / "train.py"
    path.write_text(SCRIPT.replace("LAST", last or "pass").replace("CALL", call).replace("LOSS", loss))
    report = check_factory(f"{path}:build")
    (finding,) = (f for f in report.findings if f.check == "double-softmax")
    assert finding.location.endswith(f"train.py:{line}")
    assert finding.remedy is not None and finding.remedy.edit is not None
    assert finding.remedy.edit.after == after


def test_the_head_is_scaled(cure: Cure) -> None:
    model = net(std=3.0)
    x, y = data()
    before, after = cure("loss-at-init", "scale-head", Subject(model, (x, y), F.cross_entropy))
    assert len(before) == 1
    assert after == []
    assert float(F.cross_entropy(model(x), y).detach()) == pytest.approx(math.log(10), abs=0.4)


def test_outputs_of_a_regression_come_to_the_targets_scale(cure: Cure) -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))
    nn.init.normal_(model[2].weight, std=10.0)  # type: ignore[arg-type]
    before, after = cure(
        "loss-at-init", "scale-head", Subject(model, (torch.randn(64, 16), torch.randn(64, 1)), F.mse_loss)
    )
    assert len(before) == 1
    assert after == []


def test_an_unscaled_target_is_standardised() -> None:
    model = nn.Sequential(nn.Linear(16, 1))
    made = study(model, (torch.randn(64, 16), 1e4 * torch.randn(64, 1)), loss=F.mse_loss)
    (finding,) = get("unscaled-target").judge(made)
    (remedy,) = prescribe(made, finding, ["scale-head", "standardize-target"])
    assert remedy.name == "standardize-target"
    assert remedy.action is not None


def test_tied_weights_are_not_touched() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.body = nn.Embedding(10, 32), nn.Linear(32, 32)
            nn.init.normal_(self.words.weight, std=4.0)

        def forward(self, ids: Tensor) -> Tensor:
            return F.linear(self.body(self.words(ids)), self.words.weight)

    ids = torch.arange(64) % 10
    made = study(Tied(), (ids, (ids + 3) % 10), loss=F.cross_entropy)
    (finding,) = get("loss-at-init").judge(made)
    (remedy,) = prescribe(made, finding, ["scale-head"])
    assert remedy.action is None
