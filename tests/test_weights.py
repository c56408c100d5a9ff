"""Two ways to predict on one state: from the actual weights, and from their laws."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tightrope as tr
from tightrope.tape.initialisers import remember
from tightrope.tape.tape import Kind


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))


def test_real_weights_are_the_better_choice() -> None:
    model, x = network(), torch.randn(256, 64)
    assert tr.predict(model, x).mode == "conditioned"
    assert tr.predict(model, x, weights="laws").mode == "ensemble"


def test_laws_of_real_weights_are_those_of_their_initialisers() -> None:
    x = torch.randn(256, 64)
    with remember(), torch.device("meta"):
        bare = network()
    drawn, real = tr.predict(bare, x), tr.predict(network(), x, weights="laws")
    for number, law in drawn.laws.items():
        if drawn.tape.values[number].kind is not Kind.RESULT:
            continue
        assert real.laws[number].rms == pytest.approx(law.rms, rel=0.06)
        assert real.gradients[number].rms == pytest.approx(drawn.gradients[number].rms, rel=0.06)


def test_the_ensemble_meets_the_mean_over_networks() -> None:
    x = torch.randn(256, 64)
    drawn = tr.predict(network(), x, weights="laws")
    last = drawn.tape.entries[2].outputs[0]
    square = []
    for seed in range(20):
        torch.manual_seed(seed)
        square.append(float(network()(x).detach().square().mean()))
    assert drawn.laws[last].rms == pytest.approx((sum(square) / len(square)) ** 0.5, rel=0.05)


def test_actual_weights_are_refused_without_numbers() -> None:
    with remember(), torch.device("meta"):
        bare = network()
    with pytest.raises(tr.TightropeError, match=r"0\.weight is on the meta device"):
        tr.predict(bare, torch.randn(4, 64), weights="actual")
    with pytest.raises(tr.TightropeError, match="weights is 'moments'"):
        tr.predict(bare, torch.randn(4, 64), weights="moments")
