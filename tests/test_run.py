"""A training loop in a function, watched as a script is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tightrope.errors import InputError
from tightrope.finding import Finding
from tightrope.run import rehearse
from tightrope.study import Study
from tightrope.watch import judge

STEPS = 12


def train() -> list[float]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(32, 8), torch.arange(32) % 3
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_checks_over_a_run_are_given_its_history(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Study] = []
    plain = judge.diagnose

    def diagnose(studies: list[Study], stages: tuple[str, ...]) -> list[Finding]:
        if "run" in stages:
            seen.extend(studies)
        else:
            assert all(study.history is None for study in studies)
        return plain(studies, stages)

    monkeypatch.setattr(judge, "diagnose", diagnose)
    got: list[float] = []
    rehearse(lambda: got.extend(train()), record=(1, 10))
    assert got == train()
    histories = [study.history for study in seen]
    assert [h.steps for h in histories if h] == [1, 10, STEPS]
    assert [h.ended for h in histories if h] == [False, False, True]
    last = histories[-1]
    assert last is not None
    assert [loss for n in sorted(last.losses) for loss in last.losses[n]] == pytest.approx(got)
    assert [study.step for study in last.earlier] == [1]


def test_a_function_that_trains_nothing_is_an_error() -> None:
    with pytest.raises(InputError, match="no training step"):
        rehearse(lambda: None)
