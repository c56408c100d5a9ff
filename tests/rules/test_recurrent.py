"""Recurrent layers against real ones, forward and backward through time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tightrope as tr
from tightrope.step import Loss
from tightrope.tape.initialisers import remember


class Reader(nn.Module):
    """A recurrent layer whose output is read all along, at its end, on average, or as its last state."""

    def __init__(self, layer: nn.RNNBase, how: str) -> None:
        super().__init__()
        self.layer, self.how = layer, how
        width = (layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1)
        self.head = nn.Linear(layer.hidden_size if how == "state" else width, 64)

    def forward(self, x: Tensor) -> Tensor:
        out, last = self.layer(x)
        if self.how == "state":
            return self.head((last[0] if isinstance(last, tuple) else last)[-1])
        read = {"all": out, "last": out[:, -1], "mean": out.mean(1)}[self.how]
        return self.head(read)


def errors(layer: nn.RNNBase, how: str, steps: int = 12, batch: int = 32) -> tuple[dict[str, float], dict[str, float]]:
    """Relative errors of the layer's results (by shape) and of gradients with respect to its parameters."""
    torch.manual_seed(1)
    model, x = Reader(layer, how), torch.randn(batch, steps, layer.input_size)
    forecast, measured = tr.predict(model, x), tr.measure(model, x)
    assert not forecast.unknown and not forecast.simulated
    rows = [row for row in tr.compare(forecast, measured).rows if row.module == "layer"]
    forward = {
        f"{row.op} {i}": abs(row.predicted_std / row.measured_std - 1) for i, row in enumerate(rows) if row.measured_std
    }
    theirs = {
        v.name: measured.gradients[v.id] for v in measured.tape.values.values() if v.name and v.id in measured.gradients
    }
    theirs = {name: law for name, law in theirs.items() if law.rms > 0}
    backward = {
        v.name: abs(forecast.gradients[v.id].rms / theirs[v.name].rms - 1)
        for v in forecast.tape.values.values()
        if v.name in theirs and "layer.weight" in v.name and v.id in forecast.gradients
    }
    return forward, backward


@pytest.mark.parametrize("how", ["all", "last", "state"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_one_layer(kind: type[nn.RNNBase], how: str) -> None:
    torch.manual_seed(0)
    forward, backward = errors(kind(32, 96, batch_first=True), how)
    assert forward and max(forward.values()) < 0.05
    assert len(backward) == 2 and max(backward.values()) < 0.3


def test_rectified() -> None:
    torch.manual_seed(0)
    forward, backward = errors(nn.RNN(32, 96, nonlinearity="relu", batch_first=True), "last")
    assert max(forward.values()) < 0.06
    assert max(backward.values()) < 0.3


@pytest.mark.parametrize("options", [{"bidirectional": True}, {"proj_size": 24}, {"dropout": 0.3, "num_layers": 2}])
def test_stacks(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    forward, backward = errors(nn.LSTM(32, 64, batch_first=True, **options), "last", steps=8)
    assert max(forward.values()) < 0.1
    assert backward and sorted(backward.values())[len(backward) // 2] < 0.35


def test_time_first_is_time_second_turned() -> None:
    torch.manual_seed(0)
    layer = nn.GRU(8, 16)
    turned = nn.GRU(8, 16, batch_first=True)
    turned.load_state_dict(layer.state_dict())
    x = torch.randn(5, 7, 8)

    def law(model: nn.Module, data: Tensor) -> tr.Law:
        forecast = tr.predict(model, data)
        return forecast.laws[next(e for e in forecast.tape.entries if e.op == "gru").outputs[0]]

    assert law(layer, x).std == pytest.approx(law(turned, x.transpose(0, 1).contiguous()).std, rel=0.02)


def test_known_start() -> None:
    """A start of large numbers decays over the first steps; the forecast's map over time shows it."""
    torch.manual_seed(0)

    class Started(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LSTM(8, 64, batch_first=True)
            self.register_buffer("start", 3 * torch.ones(1, 16, 64))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x, (self.start, self.start))[0]

    model, x = Started(), torch.randn(16, 10, 8)
    forecast = tr.predict(model, x)
    state = forecast.states[next(e for e in forecast.tape.entries if e.op == "lstm").outputs[0]]
    with torch.no_grad():
        mean = model(x).mean(0).double()
    predicted = state.mean.expand(state.shape)[0]
    assert float((predicted - mean).abs().mean()) < 0.1 * float(mean.abs().mean())


def parameters(model: nn.Module, x: Tensor, loss: Loss | None = None) -> dict[str, float]:
    """Relative errors of the rms of the parameters' gradients."""
    forecast, measured = tr.predict(model, x, loss=loss), tr.measure(model, x, loss=loss)
    assert not forecast.unknown and not forecast.simulated
    theirs = {v.name: measured.gradients[v.id] for v in measured.tape.values.values() if v.id in measured.gradients}
    return {
        str(v.name): forecast.gradients[v.id].rms / theirs[v.name].rms - 1
        for v in forecast.tape.values.values()
        if v.name and v.name in theirs and v.id in forecast.gradients
    }


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_gradients_of_parameters_that_all_steps_share(kind: type[nn.RNNBase]) -> None:
    """Biases too: what the loss's own weights sum to is known, and a memory's steps are correlated."""
    torch.manual_seed(0)
    found = parameters(Reader(kind(16, 64, 2, batch_first=True), "last"), torch.randn(32, 24, 16))
    assert len(found) == 10
    assert max(map(abs, found.values())) < 0.2
    assert abs(found["head.bias"]) < 1e-6


def test_what_a_second_layer_reads_is_correlated_over_time() -> None:
    torch.manual_seed(0)
    forward, _ = errors(nn.GRU(16, 96, 3, batch_first=True), "all", steps=24)
    assert max(forward.values()) < 0.05


class Speaker(nn.Module):
    """A language model that reads (time, batch)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.rnn, self.decoder = nn.Embedding(40, 32), nn.LSTM(32, 48, 2), nn.Linear(48, 40)

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.log_softmax(self.decoder(self.rnn(self.encoder(tokens))[0]).view(-1, 40), 1)


def test_a_language_model_whose_batch_is_the_second_dimension() -> None:
    torch.manual_seed(0)
    model, text = Speaker(), torch.randint(0, 40, (25, 16))

    def loss(out: Tensor) -> Tensor:
        return nn.functional.nll_loss(out, text[1:].reshape(-1))

    forecast, measured = tr.predict(model, text[:-1], loss=loss), tr.measure(model, text[:-1], loss=loss)
    assert forecast.tape.samples == 16
    assert not forecast.unknown and not forecast.simulated
    for row in tr.compare(forecast, measured).rows:
        if row.measured_std:
            assert row.predicted_std == pytest.approx(row.measured_std, rel=0.05)
    found = parameters(model, text[:-1], loss)
    assert len(found) == 11
    assert max(map(abs, found.values())) < 0.2


class Unrolled(nn.Module):
    """Two cells that a program calls step by step."""

    def __init__(self, kind: type[nn.RNNCellBase], width: int = 48) -> None:
        super().__init__()
        self.lower, self.upper, self.head = kind(16, width), kind(width, width), nn.Linear(width, 10)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        zeros = torch.zeros(x.shape[0], self.width)
        low = high = (zeros, zeros) if isinstance(self.lower, nn.LSTMCell) else zeros
        for t in range(x.shape[1]):
            low = self.lower(x[:, t], low)
            high = self.upper(low[0] if isinstance(low, tuple) else low, high)
        return self.head(high[0] if isinstance(high, tuple) else high)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_called_step_by_step(kind: type[nn.RNNCellBase]) -> None:
    torch.manual_seed(0)
    model, x = Unrolled(kind), torch.randn(32, 10, 16)
    found = parameters(model, x)
    assert len(found) == 10
    assert max(map(abs, found.values())) < 0.25
    rows = [row for row in tr.compare(tr.predict(model, x), tr.measure(model, x)).rows if row.op.endswith("_cell")]
    assert len(rows) >= 20
    assert all(row.predicted_std == pytest.approx(row.measured_std, rel=0.1) for row in rows)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.LSTMCell])
def test_weights_known_by_their_law(kind: type[nn.Module]) -> None:
    """Drawn weights: the law agrees with the one of actual weights up to what a width of 64 leaves open."""
    torch.manual_seed(0)
    x = torch.randn(32, 10, 16)

    def build() -> nn.Module:
        return (
            Unrolled(nn.LSTMCell, 64) if kind is nn.LSTMCell else Reader(nn.LSTM(16, 64, 2, batch_first=True), "last")
        )

    real = build()
    with remember(), torch.device("meta"):
        drawn = build()
    known, law = tr.predict(real, x), tr.predict(drawn, x)
    assert not law.unknown and not law.simulated
    for number, expected in known.laws.items():
        if number in law.laws and expected.std > 0:
            assert law.laws[number].std == pytest.approx(expected.std, rel=0.15)
