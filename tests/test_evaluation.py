from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.evaluation import Evaluation, Evaluations
from tightrope.tape.modules import remember_construction
from tightrope.watch.watcher import Watcher

Evaluate = Callable[[nn.Module, Tensor, Tensor], Any]


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 2))


def watched(evaluate: Evaluate | None, steps: int = 4, every: int = 2) -> tuple[Evaluation | None, list[float]]:
    """The evaluation that was seen while a net trained, and the losses."""
    torch.manual_seed(0)
    losses = []
    with remember_construction(), Watcher(frozenset((1,))) as watcher:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x, y = torch.randn(64, 16), torch.arange(64) % 2
        for i in range(steps):
            model.train()
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            if evaluate is not None and i % every == every - 1:
                evaluate(model, x, y)
        watcher.finish(ended_badly=False)
    assert watcher.failure is None
    return watcher._evaluations.latest, losses


def test_accuracy_under_no_grad() -> None:
    def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> None:
        model.eval()
        with torch.no_grad():
            (model(x).argmax(1) == y).float().mean()

    found, losses = watched(evaluate)
    assert found is not None
    assert found.labels == "eq"
    assert found.step == 2
    assert not found.tape.modules[""].training
    assert list(found.roots) == [""]
    weights = [e for e in found.tape.entries if e.op == "linear"]
    assert len(weights) == 2
    assert found.measurement.laws[weights[-1].outputs[0]].variance > 0

    def plain(model: nn.Module, x: Tensor, y: Tensor) -> None:
        with torch.no_grad():
            model.eval()(x)

    assert losses == watched(plain)[1]


def test_a_decorated_function_in_training_mode() -> None:
    @torch.inference_mode()
    def validate(model: nn.Module, x: Tensor, y: Tensor) -> float:
        total = 0.0
        for rows in torch.arange(64).split(16):
            total += float(F.cross_entropy(model(x[rows]), y[rows]))
        return total

    found, _ = watched(validate)
    assert found is not None
    assert found.labels == "cross_entropy"
    assert found.tape.modules[""].training
    assert len([e for e in found.tape.entries if e.op == "cross_entropy"]) == 1


def test_evaluation_mode_with_gradient() -> None:
    def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> None:
        model.eval()
        (model(x)[:, 0] - y).abs().mean()

    found, _ = watched(evaluate)
    assert found is not None
    assert found.labels == "sub"


def test_sampling_meets_no_labels() -> None:
    def sample(model: nn.Module, x: Tensor, y: Tensor) -> None:
        with torch.no_grad():
            model(torch.randn(8, 16)).argmax(1)

    found, _ = watched(sample)
    assert found is not None
    assert found.labels is None


def test_averaged_weights_are_no_evaluation() -> None:
    shadow: list[Tensor] = []

    def average(model: nn.Module, x: Tensor, y: Tensor) -> None:
        with torch.no_grad():
            if not shadow:
                shadow.extend(p.clone() for p in model.parameters())
            for mean, p in zip(shadow, model.parameters(), strict=True):
                mean.lerp_(p, 0.1)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)

    assert watched(average, steps=12, every=1)[0] is None


def test_layers_frozen_in_a_training_step_are_no_evaluation() -> None:
    def freeze(model: nn.Module, x: Tensor, y: Tensor) -> None:
        model.eval()
        F.cross_entropy(model(x), y).backward()
        model.zero_grad()

    assert watched(freeze, steps=4)[0] is None


def test_what_is_patched_is_put_back() -> None:
    before = [torch.no_grad.__enter__, torch.inference_mode.__exit__, nn.Module.train]
    with Evaluations(lambda: 1, print):
        assert torch.no_grad.__enter__ is not before[0]
    assert [torch.no_grad.__enter__, torch.inference_mode.__exit__, nn.Module.train] == before


def test_an_evaluation_computes_the_same() -> None:
    """Attention takes another path, with other rounding, under a mode of ours: it is not recorded."""
    made: list[list[float]] = []
    x = torch.randn(1, 64, 16)

    def encode(model: nn.Module, data: Tensor | None = None, target: Tensor | None = None) -> None:
        torch.manual_seed(1)
        encoder = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
        with torch.no_grad():
            made.append(encoder(x).flatten().tolist())

    assert watched(encode, steps=3, every=1)[0] is None
    encode(net())
    assert made[0] == made[1] == made[2] == made[3]
