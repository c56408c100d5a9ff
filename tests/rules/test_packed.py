"""Packed sequences against real ones: samples of different lengths, in any order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import tightrope as tr


class Reader(nn.Module):
    """A recurrent layer that reads each sample to its own end."""

    def __init__(self, layer: nn.RNNBase, lengths: Tensor, how: str) -> None:
        super().__init__()
        self.layer, self.how, self.lengths = layer, how, lengths
        self.head = nn.Linear(layer.hidden_size, 10)

    def forward(self, x: Tensor) -> Tensor:
        first = self.layer.batch_first
        out, last = self.layer(pack_padded_sequence(x, self.lengths, batch_first=first, enforce_sorted=False))
        if self.how == "last":
            return self.head((last[0] if isinstance(last, tuple) else last)[-1])
        return self.head(pad_packed_sequence(out, batch_first=first)[0])


@pytest.mark.parametrize("how", ["all", "last"])
@pytest.mark.parametrize(("kind", "batch_first"), [(nn.LSTM, True), (nn.GRU, True), (nn.RNN, False)])
def test_samples_of_different_lengths(kind: type[nn.RNNBase], batch_first: bool, how: str) -> None:
    torch.manual_seed(0)
    lengths = torch.randint(4, 13, (32,))
    lengths[5] = 12
    x = torch.randn(32, 12, 16)
    model = Reader(kind(16, 48, 2, batch_first=batch_first), lengths, how)
    x = x if batch_first else x.transpose(0, 1).contiguous()
    forecast, measured = tr.predict(model, x), tr.measure(model, x)
    assert not forecast.unknown and not forecast.simulated
    for row in tr.compare(forecast, measured).rows:
        if row.module == "layer" and row.measured_std:
            assert row.predicted_std == pytest.approx(row.measured_std, rel=0.1)
            if row.measured_grad_rms:
                assert row.predicted_grad_rms == pytest.approx(row.measured_grad_rms, rel=0.15)
    theirs = {v.name: measured.gradients[v.id].rms for v in measured.tape.values.values() if v.id in measured.gradients}
    found = {v.name: forecast.gradients[v.id].rms for v in forecast.tape.values.values() if v.id in forecast.gradients}
    weights = [name for name in theirs if name and name.startswith("layer.")]
    assert len(weights) == 8
    off = {name: found[name] / theirs[name] - 1 for name in weights}
    assert max(abs(error) for name, error in off.items() if "weight" in name) < 0.3, off
    assert max(map(abs, off.values())) < 0.5, off  # a bias sums one draw of the loss's own 10 columns
