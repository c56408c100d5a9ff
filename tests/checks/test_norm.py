from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.check import study
from tightrope.checks.norm.tiny_batch_norm import ADVICE, ENOUGH, FAULT, WARNING, noise
from tightrope.checks.registry import get
from tightrope.diagnose import diagnose
from tightrope.finding import Finding, Safety, Severity
from tightrope.nn import BlendedNorm
from tightrope.remedies.registry import prescribe

Judge = Callable[..., list[Finding]]


def dense(n: int, *, norm: nn.Module | None = None) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    model = nn.Sequential(nn.Linear(8, 32), norm or nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))
    return model, (torch.randn(n, 8), torch.arange(n) % 3)


def images(n: int, side: int) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3),
    )  # fmt: skip
    return model, (torch.randn(n, 3, side, side), torch.arange(n) % 3)


@pytest.mark.parametrize(("m", "tolerance"), [(6, 0.2), (14, 0.08), (64, 0.03)])
def test_the_law_of_the_noise(m: int, tolerance: float) -> None:
    """A value of the batch is held, the others are drawn anew: the spread of its normalised value."""
    draws = 1000
    z = torch.randn(100, dtype=torch.float64)
    others = torch.randn(draws, 100, m - 1, dtype=torch.float64)
    batch = torch.cat([z.view(1, -1, 1).expand(draws, -1, 1), others], 2)
    held = (batch[..., 0] - batch.mean(2)) / batch.std(2, correction=0)
    rms = held.var(0).mean().sqrt().item()
    expected = float((1 / m + z.square() / (2 * (m - 1))).mean() ** 0.5)
    assert rms == pytest.approx(expected, rel=tolerance)
    assert noise(m) == pytest.approx((1 / m + 1 / (2 * (m - 1))) ** 0.5)


def test_levels_are_those_of_the_page() -> None:
    assert noise(2) == FAULT and noise(3) < FAULT
    assert noise(6) >= WARNING > noise(7)
    assert noise(ENOUGH - 1) >= ADVICE > noise(ENOUGH)


@pytest.mark.parametrize(
    ("n", "severity"),
    [(2, Severity.FAULT), (3, Severity.WARNING), (6, Severity.WARNING), (8, Severity.ADVICE), (14, None), (32, None)],
)
def test_vectors(judge: Judge, n: int, severity: Severity | None) -> None:
    found = judge("tiny-batch-norm", *dense(n))
    assert [f.severity for f in found] == ([severity] if severity else [])


def test_sites_count_and_the_worst_layer_is_named(judge: Judge) -> None:
    (found,) = judge("tiny-batch-norm", *images(2, 4))
    assert found.modules == ("1", "4") and found.module == "4"
    assert found.evidence[0].measured == 2 and found.severity is Severity.FAULT
    assert judge("tiny-batch-norm", *images(2, 16)) == []
    assert judge("tiny-batch-norm", *images(1, 64)) == []


def test_frozen_batch_norm_is_left_alone(judge: Judge) -> None:
    model, data = dense(2)
    model[1].eval()  # type: ignore[index]
    assert judge("tiny-batch-norm", model, data) == []


@pytest.mark.parametrize("norm", [nn.LayerNorm(32), nn.GroupNorm(4, 32), BlendedNorm(32)])
def test_other_normalisers_are_left_alone(judge: Judge, norm: nn.Module) -> None:
    assert judge("tiny-batch-norm", *dense(2, norm=norm)) == []


def test_no_gradient_passes_two_values(judge: Judge) -> None:
    """The normalised values are the signs of a difference, up to eps; the check explains what others see of it."""
    x = torch.linspace(-1, 1, 32).double().view(2, 16).requires_grad_()
    (F.batch_norm(x, None, None, training=True, eps=1e-12) * torch.randn(2, 16)).sum().backward()
    assert float(x.grad.abs().max()) < 1e-10  # type: ignore[union-attr]
    model, data = dense(2)
    findings = diagnose([study(model, data, loss=F.cross_entropy)])
    causes = [f.check for f in findings if f.caused_by is None and f.severity is not Severity.ADVICE]
    assert causes == ["tiny-batch-norm"]


def test_the_last_batch_of_an_epoch_is_no_alarm() -> None:
    from dataclasses import replace

    model, data = dense(2)
    late = replace(study(model, data, loss=F.cross_entropy), step=9)
    assert [f.severity for f in get("tiny-batch-norm").judge(late)] == [Severity.ADVICE]


@pytest.mark.parametrize("name", ["group-norm", "blended-norm"])
def test_weights_are_carried_over(name: str) -> None:
    model, data = images(2, 4)
    assert isinstance(model, nn.Sequential)
    for norm in (model[1], model[4]):
        nn.init.uniform_(norm.weight)  # type: ignore[arg-type]
        nn.init.uniform_(norm.bias)  # type: ignore[arg-type]
    before = [(model[i].weight, model[i].bias) for i in (1, 4)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    made = study(model, data, loss=F.cross_entropy, optimizer=optimizer)
    (finding,) = get("tiny-batch-norm").judge(made)
    (remedy,) = prescribe(made, finding, [name])
    assert remedy.safety is Safety.SAFE
    remedy.apply()
    assert [(model[i].weight, model[i].bias) for i in (1, 4)] == before
    assert get("tiny-batch-norm").judge(study(model, data, loss=F.cross_entropy)) == []
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert {id(parameter) for parameter in model.parameters()} == held
    F.cross_entropy(model(data[0]), data[1]).backward()
    optimizer.step()


def test_a_trained_batch_norm_is_not_replaced_unasked() -> None:
    model, data = dense(4)
    for _ in range(3):
        model(torch.randn(64, 8))
    made = study(model, data, loss=F.cross_entropy)
    (finding,) = get("tiny-batch-norm").judge(made)
    assert {r.safety for r in prescribe(made, finding, ["group-norm", "blended-norm"])} == {Safety.REVIEW}


def test_where_the_batch_is_nearly_enough_nothing_is_swapped_unasked() -> None:
    model, data = dense(8)
    made = study(model, data, loss=F.cross_entropy)
    (finding,) = get("tiny-batch-norm").judge(made)
    assert {r.safety for r in prescribe(made, finding, ["group-norm", "blended-norm"])} == {Safety.REVIEW}


def test_the_batch_that_is_asked_for_is_enough(judge: Judge) -> None:
    model, data = images(2, 6)
    made = study(model, data, loss=F.cross_entropy)
    (finding,) = get("tiny-batch-norm").judge(made)
    (remedy,) = prescribe(made, finding, ["larger-batch"])
    wanted = int(remedy.patch.split("batch_size=")[1].split(",")[0])
    assert judge("tiny-batch-norm", *images(wanted, 6)) == []
    assert judge("tiny-batch-norm", *images(wanted - 1, 6)) != []
