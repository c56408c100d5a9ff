from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tightrope.checks.mode import layers
from tightrope.finding import Finding, Severity
from tightrope.run import rehearse

Judge = Callable[..., list[Finding]]
CHECK = "wrong-mode"


def data(n: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(n, 16)
    return x, (x[:, 0] > 0).long()


def net(p: float = 0.5) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(p),
        nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 2),
    )  # fmt: skip


def dropped() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 2))


def found(train: Callable[[], None], check: str = CHECK) -> list[Finding]:
    torch.manual_seed(0)
    report = rehearse(train).report
    assert report is not None
    return [f for f in report.findings if f.check == check]


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    x, y = data()
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def test_batch_norm_that_never_saw_a_batch(judge: Judge) -> None:
    (finding,) = judge(CHECK, net().eval(), data())
    assert finding.severity is Severity.FAULT
    assert "never updated" in finding.summary
    assert judge(CHECK, net(), data()) == []


def test_dropout_that_idles_from_the_start(judge: Judge) -> None:
    (finding,) = judge(CHECK, dropped().eval(), data())
    assert finding.severity is Severity.WARNING
    assert judge(CHECK, dropped(), data()) == []


def test_frozen_norms_in_fine_tuning() -> None:
    def train() -> None:
        model = net()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        with torch.no_grad():  # what a first training has left behind
            for _ in range(60):
                model(data()[0])
        for _ in range(12):
            model.train()
            for module in model.modules():
                if isinstance(module, nn.BatchNorm1d):
                    module.eval()
            step(model, optimizer)

    assert found(train) == []


def test_a_model_that_was_never_put_back() -> None:
    def train() -> None:
        model = dropped()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for i in range(12):
            step(model, optimizer)
            if i == 4:
                model.eval()
                with torch.no_grad():
                    model(data()[0])

    (finding,) = found(train)
    assert finding.step == 10
    assert "left training mode" in finding.summary


def test_a_discriminator_that_stands_still_while_the_generator_steps() -> None:
    def train() -> None:
        generator = nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 16))
        critic = nn.Sequential(nn.Linear(16, 64), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(64, 1))
        of_generator = torch.optim.Adam(generator.parameters(), lr=1e-4)
        of_critic = torch.optim.Adam(critic.parameters(), lr=1e-4)
        for _ in range(2):
            critic.train()
            real, made = critic(torch.randn(64, 16)), critic(generator(torch.randn(64, 8)).detach())
            of_critic.zero_grad()
            (F.softplus(-real) + F.softplus(made)).mean().backward()
            of_critic.step()
            critic.eval()
            of_generator.zero_grad()
            F.softplus(-critic(generator(torch.randn(64, 8)))).mean().backward()
            of_generator.step()

    assert found(train) == []


def test_a_frozen_backbone_as_it_was_drawn(judge: Judge) -> None:
    backbone = net()[:4].eval().requires_grad_(False)
    assert judge(CHECK, nn.Sequential(backbone, nn.Linear(64, 2)).train(False), data()) == []


def evaluated(
    evaluate: Callable[[nn.Module, torch.Tensor, torch.Tensor], object], make: Callable[[], nn.Module] = net
) -> None:
    """Train a little, evaluate now and then."""
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for i in range(6):
        model.train()
        step(model, optimizer)
        if i % 2:
            evaluate(model, *data())


def test_validation_in_training_mode() -> None:
    def validate(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        with torch.no_grad():
            print(float((model(x).argmax(1) == y).float().mean()))

    (finding,) = found(lambda: evaluated(validate))
    assert finding.severity is Severity.WARNING
    assert "evaluated in training mode after step 2" in finding.summary
    assert finding.location.startswith("tests/checks/test_modes.py")


def test_validation_in_evaluation_mode_every_step() -> None:
    @torch.inference_mode()
    def validate(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        model.eval()
        return F.cross_entropy(model(x), y)

    assert found(lambda: evaluated(validate)) == []


def test_monte_carlo_dropout() -> None:
    def validate(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        model.eval()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.train()
        with torch.no_grad():
            mean = torch.stack([model(x).softmax(1) for _ in range(8)]).mean(0)
            (mean.argmax(1) == y).float().mean()

    assert found(lambda: evaluated(validate)) == []

    def of_all(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        with torch.no_grad():
            mean = torch.stack([model(x).softmax(1) for _ in range(8)]).mean(0)
            (mean.argmax(1) == y).float().mean()

    assert found(lambda: evaluated(of_all, dropped)) == []


def test_acting_without_gradient_in_training_mode() -> None:
    """A policy acts, a target network bootstraps: no labels."""

    def act(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        with torch.no_grad():
            model(x).argmax(1)
            advantage = torch.randn(len(x)) - model(x)[:, 0]
            ((advantage - advantage.mean()) / advantage.std()).clamp(-1, 1)
            torch.rand(len(x)) + 0.99 * model(x).max(1).values

    assert found(lambda: evaluated(act)) == []


def test_many_norms_are_compared_in_one_run(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    plain = layers.rerun
    monkeypatch.setattr(layers, "rerun", lambda *args, **kwargs: runs.append(1) or plain(*args, **kwargs))
    (finding,) = judge(CHECK, net().eval(), data())
    assert len(finding.modules) == 2
    assert len(runs) == 1
