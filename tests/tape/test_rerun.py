from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.check import study
from tightrope.tape.rerun import Unplayable, values


class Odd(nn.Module):
    """In-place calls on views, normalisation, dropout and a recurrence."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm, self.rnn = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.GRU(8, 8, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.enter(x))
        h[:, :2] = 0.0
        h[:, 3].mul_(2.0)
        h = F.relu_(h)
        h = self.rnn(h.unsqueeze(1).repeat(1, 4, 1))[0][:, -1]
        return self.out(h)


def test_gives_the_same_numbers_again() -> None:
    torch.manual_seed(0)
    model, x, y = Odd(), torch.randn(16, 6), torch.arange(16) % 3
    before = {name: t.clone() for name, t in model.state_dict().items()}
    found = study(model, (x, y), loss=F.cross_entropy)
    loss = found.tape.loss
    assert loss is not None
    again = values(found.tape, {loss})[loss]
    assert float(again) == pytest.approx(found.measurement.loss, rel=1e-6)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_other_sources_and_other_calls() -> None:
    model, x = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5)), torch.randn(16, 6)
    tape = study(model, x, loss=lambda out: out.mean()).tape
    (linear, dropout, _) = tape.entries
    source, made = linear.inputs[0], dropout.outputs[0]
    kept = values(tape, {made}, call=lambda e, args, kwargs: args[0] if e.op == "dropout" else NotImplemented)[made]
    assert torch.allclose(kept, model[0](x))
    doubled = values(tape, {linear.outputs[0]}, sources={source: 2 * x})[linear.outputs[0]]
    assert torch.allclose(doubled, model[0](2 * x))
    first, second = (values(tape, {made})[made] for _ in range(2))
    assert torch.equal(first, second)


def test_random_state_stays() -> None:
    tape = study(nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5)), torch.randn(16, 6), loss=lambda out: out.mean()).tape
    state = torch.get_rng_state()
    values(tape, {tape.entries[1].outputs[0]})
    assert torch.equal(state, torch.get_rng_state())


def test_an_input_that_was_overwritten_is_lost() -> None:
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.mul_(2.0))

    tape = study(Overwrites(), torch.randn(16, 6), loss=lambda out: out.mean()).tape
    with pytest.raises(Unplayable):
        values(tape, {tape.entries[1].outputs[0]})
