from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tightrope.check import study
from tightrope.checks.sequence.chain import recurrences
from tightrope.checks.sequence.exploding_recurrence import growth
from tightrope.diagnose import diagnose
from tightrope.finding import Finding, Severity

Judge = Callable[..., list[Finding]]
EXPLODING, DRIFT = "exploding-recurrence", "time-drift"


def data(n: int = 16, t: int = 40, k: int = 4) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(n, t, k), torch.arange(n) % 2


class Layer(nn.Module):
    """A recurrent layer of torch's in one of several forms, and a head on its last output."""

    def __init__(self, kind: type[nn.RNNBase], form: str = "", scale: float | None = None, **options: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = kind(4, 48, batch_first=form != "time", **options)  # type: ignore[arg-type]
        self.head, self.form = nn.Linear(48 * (2 if self.body.bidirectional else 1), 2), form
        if scale is not None:
            for name, weight in self.body.named_parameters():
                if "weight_hh" in name:
                    nn.init.normal_(weight, std=scale / 48**0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "packed":
            lengths = torch.full((len(x),), x.shape[1])
            lengths[len(x) // 2 :] -= 5
            y = pad_packed_sequence(self.body(pack_padded_sequence(x, lengths, batch_first=True))[0], True)[0]
        else:
            y = self.body(x)[0]
        scores: Tensor = self.head(y[-1] if self.form == "time" else y[:, -1])
        return scores


@pytest.mark.parametrize("form", ["", "time", "packed"])
def test_layers_of_large_radius_explode(judge: Judge, form: str) -> None:
    x, y = data()
    x = x.transpose(0, 1).contiguous() if form == "time" else x
    (found,) = judge(EXPLODING, Layer(nn.RNN, form, 4.0), (x, y))
    assert found.severity is Severity.FAULT
    assert found.evidence[2].measured == pytest.approx(4, rel=0.2)
    assert judge(EXPLODING, Layer(nn.RNN, form, 1.0), (x, y)) == []


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"num_layers": 2, "dropout": 0.2}])
def test_default_layers_are_silent(judge: Judge, kind: type[nn.RNNBase], options: dict[str, object]) -> None:
    model = Layer(kind, **options)
    assert judge(EXPLODING, model, data(t=64)) == judge(DRIFT, model, data(t=64)) == []


class Loop(nn.Module):
    """A loop of cells, with a head on the last state or on all."""

    def __init__(self, cell: str, scale: float, *, every: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.every = cell, every
        if cell == "linear":
            self.enter, self.recur = nn.Linear(4, 48), nn.Linear(48, 48)
            nn.init.normal_(self.recur.weight, std=scale / 48**0.5)
        else:
            self.cell = {"rnn": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}[cell](4, 48)
            nn.init.normal_(self.cell.weight_hh, std=scale / 48**0.5)
        self.head = nn.Linear(48, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = memory = x.new_zeros(len(x), 48)
        states = []
        for t in range(x.shape[1]):
            if self.kind == "linear":
                state = torch.tanh(self.enter(x[:, t]) + self.recur(state))
            elif self.kind == "lstm":
                state, memory = self.cell(x[:, t], (state, memory))
            else:
                state = self.cell(x[:, t], state)
            states.append(state)
        scores: Tensor = self.head(torch.stack(states, 1).mean(1) if self.every else state)
        return scores


@pytest.mark.parametrize("cell", ["linear", "rnn"])
@pytest.mark.parametrize("every", [False, True])
def test_loops_of_cells(judge: Judge, cell: str, every: bool) -> None:
    (found,) = judge(EXPLODING, Loop(cell, 4.0, every=every), data())
    assert found.evidence[2].measured == pytest.approx(4, rel=0.2)
    assert judge(EXPLODING, Loop(cell, 1.0, every=every), data()) == []


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_gated_loops_are_silent(judge: Judge, cell: str) -> None:
    for check in (EXPLODING, DRIFT):
        assert judge(check, Loop(cell, 1.0, every=True), data(t=64)) == []


def test_a_sum_over_targets_is_no_explosion() -> None:
    assert growth(tuple(float(2000 - t) for t in range(2000))) == 1.0
    assert growth(tuple(1.3 ** (60 - t) for t in range(60))) == pytest.approx(1.3**59)
    assert growth((1e9, 1.0)) is None


def test_the_replay_draws_no_number_and_changes_nothing() -> None:
    model = Layer(nn.LSTM, num_layers=2, dropout=0.5)
    x, y = data()
    results = []
    for watched in (False, True):
        model.zero_grad()
        torch.manual_seed(1)
        if watched:
            found = study(model, (x, y), loss=F.cross_entropy)
            results.append(found.measurement.loss)
            assert len(list(recurrences(found))) == 1
        else:
            results.append(float(F.cross_entropy(model(x), y)))
    assert results[0] == results[1]


def test_one_weight_used_side_by_side_is_no_recurrence() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.out = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.out(sum(self.shared(x[:, t]).relu() for t in range(20)))
            return scores

    assert list(recurrences(study(Heads(), data(), loss=F.cross_entropy))) == []


class Normalised(nn.Module):
    """Batch norm over (samples, time) behind a recurrence, whose input may fade in."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.norm, self.head = nn.LSTM(4, 32, batch_first=True), nn.BatchNorm1d(32), nn.Linear(32, 2)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)[0]
        if self.kind == "growing":
            y = y * torch.linspace(0, 3, x.shape[1]).exp()[:, None]
        scores: Tensor = self.head(self.norm(y.transpose(1, 2)).mean(2))
        return scores


def test_batch_norm_that_pools_time(judge: Judge) -> None:
    assert judge(DRIFT, Normalised("steady"), data(t=20)) == []
    (found,) = judge(DRIFT, Normalised("growing"), data(t=20))
    assert found.severity is Severity.WARNING


def test_a_rectified_state_that_grows(judge: Judge) -> None:
    model = Layer(nn.RNN, "", 2.0, nonlinearity="relu")
    (found,) = judge(DRIFT, model, data(t=60))
    assert "goes on growing" in found.summary
    findings = {f.check: f for f in diagnose([study(model, data(t=60), loss=F.cross_entropy)])}
    assert findings[EXPLODING].caused_by is None
    assert findings[DRIFT].caused_by == EXPLODING


def test_levels_that_share_a_norm_are_not_judged(judge: Judge) -> None:
    class Levels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.head(sum(self.norm(2.0**t * x[:, t]) for t in range(12)))
            return scores

    assert judge(DRIFT, Levels(), data()) == []
