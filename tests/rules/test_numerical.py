"""Operations without a rule are run on draws of the predicted law."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tightrope as tr
from oracles import check_rule
from tightrope.rules import numerical

CASES = {
    "sort": lambda x: x.sort(-1).values,
    "topk": lambda x: x.topk(4, dim=-1).values,
    "cummax": lambda x: x.cummax(-1).values,
    "two-operands": lambda x: torch.hypot(x, x.flip(-1)),
    "argsort": lambda x: torch.take_along_dim(x, x.argsort(1), 1),
    "own mask": lambda x: torch.where(x > 0.3, x, 0.1 * x.flip(1)),
    "spectrum": lambda x: torch.fft.fft(x, dim=1).real,
    "renormalised": lambda x: torch.renorm(x, 2, 0, 1.0),
}


@pytest.mark.parametrize("name", CASES)
def test_laws_and_gradients(name: str) -> None:
    found = check_rule(CASES[name], (32, 5, 12), batches=30, forward=0.06, backward=0.12, may_simulate=True)
    assert found.simulated


class Sorted(nn.Linear):
    """A linear map, sorted."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sort(-1).values


def test_a_forecast_is_repeatable_and_leaves_the_random_state() -> None:
    net, x = Sorted(8, 8), torch.randn(16, 8)
    state = torch.get_rng_state()
    first, second = tr.predict(net, x), tr.predict(net, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.laws == second.laws
    assert first.gradients == second.gradients


def test_what_cannot_be_simulated_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerical, "ELEMENTS", 1)
    forecast = tr.predict(Sorted(8, 8), torch.randn(16, 8))
    entry, reason = forecast.unknown[0]
    assert entry.op == "sort"
    assert "too large" in reason


def test_sites_with_laws_of_their_own_keep_them() -> None:
    class Net(Sorted):
        def forward(self, x: Tensor) -> Tensor:
            return nn.Linear.forward(self, x).sort(1).values

    net, x = Net(32, 32), torch.randn(64, 10, 32)
    forecast = tr.predict(net, x)
    sites = next(forecast.states[e.outputs[0]] for e in forecast.tape.entries if e.op == "sort").mean
    real = net(torch.randn(4000, 10, 32)).detach().double().mean((0, 2))
    assert torch.allclose(sites.mean(-1).flatten(), real, atol=0.02)
