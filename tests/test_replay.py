from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.check import study
from tightrope.replay import Replay
from tightrope.study import Study
from tightrope.tape.modules import remember_construction
from tightrope.tape.rerun import values
from tightrope.watch.watcher import Watcher


class Stateful(nn.Module):
    """Counts, remembers, draws and prints."""

    total = 0

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.out = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 2)
        self.calls, self.memory, self.kept = 0, [1], {"a": 1}
        self.bank, self.dice = torch.zeros(4), random.Random(0)

    def forward(self, x: Tensor, *, scale: float) -> Tensor:
        self.calls += 1
        type(self).total += 1
        self.memory.append(self.calls)
        self.last = x
        self.kept["b"] = self.calls
        self.bank.add_(1.0)
        print(self.dice.random())
        h = self.norm(self.linear(x))
        if self.training:
            h = F.dropout(h, 0.5)
        return self.out(h) * scale


def state(model: Stateful) -> list[Any]:
    return [
        model.calls, list(model.memory), dict(model.kept), model.bank.tolist(), model.dice.getstate(), Stateful.total,
        model.training, model.norm.running_mean.tolist(), hasattr(model, "last"), torch.get_rng_state().tolist(),  # type: ignore[union-attr]
    ]  # fmt: skip


def of(model: nn.Module, data: Any) -> Study:
    return study(model, data, loss=lambda out: out.square().mean())


def test_runs_in_evaluation_mode_and_leaves_no_trace(capsys: Any) -> None:
    model = Stateful()
    found = of(model, {"x": torch.randn(16, 8), "scale": 2.0})
    assert found.replay is not None
    before, said = state(model), capsys.readouterr().out
    tape = found.replay.tape(training=False)
    assert tape is not None
    assert said
    assert capsys.readouterr().out == ""
    assert state(model) == before
    assert [e.op for e in tape.entries if e.op == "dropout"] == []
    assert not any(info.training for info in tape.modules.values())
    last = tape.entries[-1]
    assert last.op == "mul"
    made = values(tape, {last.outputs[0]})[last.outputs[0]]
    x = found.replay.calls[0].kwargs["x"]
    assert torch.allclose(made, model.eval()(x, scale=2.0), atol=1e-6)


def test_refuses_what_cannot_be_put_back() -> None:
    hooked = nn.Linear(4, 4)
    hooked.register_forward_hook(lambda *_: None)
    found = of(hooked, torch.randn(8, 4)).replay
    assert found is None or found.tape() is None

    class Iterating(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 4)
            self.stream = iter([1.0, 2.0])

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * next(self.stream)

    found = of(Iterating(), torch.randn(8, 4)).replay
    assert found is None or found.tape() is None


def test_refuses_arguments_that_have_changed() -> None:
    x = torch.randn(8, 4)
    found = of(nn.Linear(4, 4), x).replay
    assert found is not None
    x.add_(1.0)
    assert found.tape() is None


def losses(*, replayed: bool) -> list[float]:
    """Losses of a short training, with each recorded pass run again in evaluation mode or not."""
    torch.manual_seed(0)
    plain, tapes = Replay.of.__func__, []  # type: ignore[attr-defined]

    def of(recorder: Any, tape: Any) -> Replay | None:
        replay: Replay | None = plain(Replay, recorder, tape)
        assert replay is not None
        tapes.append(replay.tape(training=False))
        return replay

    found = []
    watcher = Watcher(frozenset((1, 2)))
    if replayed:
        Replay.of = of  # type: ignore[method-assign, assignment]
    try:
        with remember_construction(), watcher:
            model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 2))
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
            for _ in range(4):
                loss = F.cross_entropy(model(torch.randn(16, 8)), torch.arange(16) % 2)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                found.append(float(loss.detach()))
    finally:
        Replay.of = classmethod(plain)  # type: ignore[method-assign, assignment]
    assert watcher.failure is None
    assert all(tape is not None for tape in tapes)
    assert len(tapes) == 2 * replayed
    assert all(p.study.tape.modules[""].training for p in watcher.passes)
    return found


def test_a_script_computes_the_same() -> None:
    assert losses(replayed=True) == losses(replayed=False)
