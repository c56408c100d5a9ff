from __future__ import annotations

import torch
from torch import nn

from tightrope.checks.signal.moving_target import SCALE, SHIFT, moves
from tightrope.finding import Severity
from tightrope.run import rehearse
from tightrope.study import Study
from tightrope.watch.watcher import Watcher


def studies(norm: bool, rate: float) -> list[Study]:
    """The recorded steps 1 and 10 of a net whose first layer is pushed away."""
    watcher = Watcher(frozenset((1, 10)))
    with watcher:
        _train(norm, rate)
        watcher.finish(ended_badly=False)
    return [found.study for found in watcher.passes]


def _train(norm: bool, rate: float) -> None:
    torch.manual_seed(0)
    between: list[nn.Module] = [nn.BatchNorm1d(32)] if norm else []
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), *between, nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for _ in range(10):
        x = torch.randn(64, 8)
        loss = nn.functional.mse_loss(model(x), x[:, :1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model[0].bias += 0.5  # type: ignore[operator]


def test_a_pushed_layer_moves_what_reads_it() -> None:
    first, last = studies(False, 1e-4)
    (move,) = moves(first, last)
    assert move.far
    assert move.shift > SHIFT
    assert abs(move.stretch) < SCALE
    assert 0 < move.shift_error < 1


def test_layers_behind_a_norm_are_left_out() -> None:
    first, last = studies(True, 1e-4)
    assert list(moves(first, last)) == []


def test_it_is_advice() -> None:
    report = rehearse(lambda: _train(False, 1e-4)).report
    assert report is not None
    found = [f for f in report.findings if f.check == "moving-target"]
    assert len(found) == 1
    assert found[0].severity is Severity.ADVICE
    assert found[0].step == 10
