"""Losses and the gradients that they start, against Monte Carlo over logits of a known law."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.predict import Forecast, forecast
from tightrope.roles import Axes, Axis, Role
from tightrope.rules.state import State
from tightrope.tape.tracer import Tracer

Loss = Callable[[Tensor], Tensor]
SAMPLES, CLASSES, SITES = 32, 10, 6
GENERATOR = torch.Generator().manual_seed(1)
CENTRE = 0.5 * torch.randn(CLASSES, generator=GENERATOR)
IDS = torch.randint(CLASSES, (SAMPLES,), generator=GENERATOR)
SITE_IDS = torch.randint(CLASSES, (SAMPLES, SITES), generator=GENERATOR)
SITE_IDS[:, -1] = -100
SITE_IDS[:8, 1] = -100
WEIGHT = 0.1 + torch.rand(CLASSES, generator=GENERATOR)
SHARES = torch.rand(SAMPLES, CLASSES, generator=GENERATOR).softmax(-1)
LABELS = (torch.rand(SAMPLES, CLASSES, generator=GENERATOR) < 0.2).float()
VALUES = 1 + 2 * torch.randn(SAMPLES, CLASSES, generator=GENERATOR)
HARD = torch.randint(CLASSES, (SAMPLES,), generator=GENERATOR)

FLAT: dict[str, Loss] = {
    "indices": lambda z: F.cross_entropy(z, IDS),
    "sum": lambda z: F.cross_entropy(z, IDS, reduction="sum"),
    "none": lambda z: F.cross_entropy(z, IDS, reduction="none").mean(),
    "weighted": lambda z: F.cross_entropy(z, IDS, weight=WEIGHT),
    "smoothed": lambda z: F.cross_entropy(z, IDS, label_smoothing=0.2),
    "smoothed-weighted": lambda z: F.cross_entropy(z, IDS, weight=WEIGHT, label_smoothing=0.2),
    "probabilities": lambda z: F.cross_entropy(z, SHARES),
    "likelihood": lambda z: F.nll_loss(F.log_softmax(z, -1), IDS),
    "likelihood-weighted": lambda z: F.nll_loss(F.log_softmax(z, -1), IDS, weight=WEIGHT),
    "divergence": lambda z: F.kl_div(F.log_softmax(z, -1), SHARES, reduction="batchmean"),
    "by-hand": lambda z: -(SHARES * F.log_softmax(z, -1)).sum(-1).mean(),
    "squared": lambda z: F.mse_loss(z, VALUES),
    "squared-by-hand": lambda z: ((z - VALUES) ** 2).mean(),
    "squared-none": lambda z: F.mse_loss(z, VALUES, reduction="none").sum(),
    "absolute": lambda z: F.l1_loss(z, VALUES),
    "smooth-absolute": lambda z: F.smooth_l1_loss(z, VALUES, beta=0.5),
    "huber": lambda z: F.huber_loss(z, VALUES, delta=2.0, reduction="sum"),
    "binary-logits": lambda z: F.binary_cross_entropy_with_logits(z, LABELS),
    "binary-positive-weight": lambda z: F.binary_cross_entropy_with_logits(z, LABELS, pos_weight=5 * WEIGHT),
    "binary": lambda z: F.binary_cross_entropy(torch.sigmoid(z), LABELS),
    "binary-none": lambda z: F.binary_cross_entropy(torch.sigmoid(z), LABELS, reduction="none").sum(),
}
SPATIAL: dict[str, Loss] = {
    "flattened": lambda z: F.cross_entropy(z.view(-1, CLASSES), SITE_IDS.view(-1)),
    "flattened-sum-weighted": lambda z: F.cross_entropy(
        z.view(-1, CLASSES), SITE_IDS.view(-1), weight=WEIGHT, reduction="sum"
    ),
    "classes-second": lambda z: F.cross_entropy(z.transpose(1, 2), SITE_IDS),
}


def predicted(loss: Loss, shape: tuple[int, ...], law: State) -> tuple[Forecast, int]:
    """The forecast of a loss of logits with a given law, and the id of the logits."""
    meta = torch.empty(shape, device="meta", requires_grad=True)
    logits = nn.Identity()
    tapes = []
    with Tracer(roots={"": logits}, on_backward=tapes.append):
        loss(logits(meta * 1.0)).backward()
    source = next(v.id for v in tapes[0].values.values() if v.producer is None and v.shape == shape and v.is_float)
    return forecast(tapes[0], {source: law}), source


def law_of(shape: tuple[int, ...], std: float) -> State:
    roles = (Role.SAMPLE, Role.SITE, Role.CHANNEL) if len(shape) == 3 else (Role.SAMPLE, Role.CHANNEL)
    axes = Axes(tuple((Axis(role, size),) for role, size in zip(roles, shape, strict=True)))
    return State.of(axes, CENTRE.double(), residual=std**2)


def check(loss: Loss, shape: tuple[int, ...], std: float, accuracy: float = 0.01, gradient: float = 0.03) -> None:
    found, source = predicted(loss, shape, law_of(shape, std))
    assert not found.unknown and not found.simulated
    values, energies = [], []
    generator = torch.Generator().manual_seed(3)
    for _ in range(60):
        noise = torch.randn(shape, generator=generator)
        for sign in (1, -1):
            z = (CENTRE + sign * std * noise).requires_grad_(True)
            value = loss(z)
            value.backward()
            values.append(value.item())
            energies.append(z.grad.square().mean().item())
    pairs = torch.tensor(values).view(-1, 2).mean(1)
    error = 3 * float(pairs.std()) / math.sqrt(len(pairs))
    assert found.tape.loss is not None
    mean = float(pairs.mean())
    assert abs(found.laws[found.tape.loss].mean - mean) < accuracy * abs(mean) + error
    rms = math.sqrt(sum(energies) / len(energies))
    assert found.gradients[source].rms == pytest.approx(rms, rel=gradient)


@pytest.mark.parametrize("std", [0.1, 3.0])
@pytest.mark.parametrize("name", FLAT)
def test_one_target_a_sample(name: str, std: float) -> None:
    check(FLAT[name], (SAMPLES, CLASSES), std)


@pytest.mark.parametrize("name", ["indices", "weighted", "smoothed", "probabilities", "likelihood", "squared",
                                  "absolute",
                                  "binary-logits", "divergence"])  # fmt: skip
def test_wide_logits(name: str) -> None:
    check(FLAT[name], (SAMPLES, CLASSES), 10.0)


@pytest.mark.parametrize("std", [0.1, 10.0])
@pytest.mark.parametrize("name", SPATIAL)
def test_one_target_a_site(name: str, std: float) -> None:
    check(SPATIAL[name], (SAMPLES, SITES, CLASSES), std)


def test_what_all_classes_share_cancels() -> None:
    """Logits that rise and fall together have the loss and the gradient of constant ones."""
    shape = (SAMPLES, CLASSES)
    axes = law_of(shape, 1.0).axes
    together = replace(
        State.of(axes, torch.zeros(CLASSES), sample=4.0), covariance=4 * torch.ones(CLASSES, CLASSES).double()
    )
    found, source = predicted(FLAT["indices"], shape, together)
    assert found.laws[found.tape.loss].mean == pytest.approx(math.log(CLASSES), rel=1e-6)
    z = torch.zeros(shape, requires_grad=True)
    F.cross_entropy(z, IDS).backward()
    assert found.gradients[source].rms == pytest.approx(z.grad.square().mean().sqrt().item(), rel=1e-6)


def test_class_frequencies_stand_in_the_gradients_mean() -> None:
    rare = torch.zeros(SAMPLES, dtype=torch.long)
    rare[0] = 1
    found, source = predicted(lambda z: F.cross_entropy(z, rare), (SAMPLES, CLASSES), law_of((SAMPLES, CLASSES), 1e-4))
    z = CENTRE.expand(SAMPLES, CLASSES).clone().requires_grad_(True)
    F.cross_entropy(z, rare).backward()
    law = found.gradients[source]
    spread = z.grad.mean(0).var(unbiased=False)
    assert law.constant == pytest.approx(float(spread), rel=1e-2)


def test_large_vocabulary_from_the_law_alone() -> None:
    """ln V + s^2 / 2 for many classes that are alike, and a gradient of 1 / sqrt(V) at a position."""
    classes = 50_000
    axes = Axes(((Axis(Role.SAMPLE, 4),), (Axis(Role.SITE, 8),), (Axis(Role.CHANNEL, classes),)))
    ids = torch.randint(classes, (4, 8), generator=torch.Generator().manual_seed(0))
    law = State.of(axes, 0.0, residual=0.25)
    found, source = predicted(lambda z: F.cross_entropy(z.view(-1, classes), ids.view(-1)), axes.shape, law)
    assert found.laws[found.tape.loss].mean == pytest.approx(math.log(classes) + 0.125, rel=1e-3)
    assert found.gradients[source].rms == pytest.approx(1 / (32 * math.sqrt(classes)), rel=1e-2)
    assert found.states[source].mean.numel() == 1
