from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from tightrope.check import study
from tightrope.checks.registry import get
from tightrope.checks.units.dead_units import chance, coin
from tightrope.checks.units.saturated_units import outside
from tightrope.finding import Finding, Severity
from tightrope.measure.probes import sweet_spot

Judge = Callable[..., list[Finding]]


def classes(n: int, k: int = 10) -> Tensor:
    return torch.arange(n) % k


def he(depth: int, width: int = 128) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(width, width)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


# -- dead units ----------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [2, 4, 64])
def test_deep_he_nets_are_alive_in_any_batch(judge: Judge, samples: int) -> None:
    assert judge("dead-units", he(20), (torch.randn(samples, 128), classes(samples))) == []


def test_a_layer_that_is_silent_is_a_fault(judge: Judge) -> None:
    model = he(3)
    nn.init.constant_(model[2].bias, -30.0)  # type: ignore[arg-type]
    (found,) = judge("dead-units", model, (torch.randn(32, 128), classes(32)))
    assert found.severity is Severity.FAULT
    assert found.module == "3"
    assert found.evidence[0].measured == 1.0


def test_silence_by_chance_is_taken_off() -> None:
    """Units active with probability 1/10: three samples leave (9/10)^3 of them silent, and none is dead."""
    model = nn.Sequential(nn.Linear(256, 400), nn.ReLU(), nn.Linear(400, 10))
    with torch.no_grad():
        model[0].weight.normal_(std=1 / 16)  # type: ignore[union-attr, operator]
        model[0].bias.fill_(-float(stats.norm.isf(0.1)))  # type: ignore[union-attr, operator]
    made = study(model, (torch.randn(4096, 256), classes(4096)), loss=F.cross_entropy)
    state = made.forecast.states[made.tape.entries[1].inputs[0]]
    assert chance(state, 3) == pytest.approx(0.9**3, abs=0.02)
    assert get("dead-units").judge(study(model, (torch.randn(3, 256), classes(3)), loss=F.cross_entropy)) == []


@pytest.mark.parametrize(("heads", "tosses"), [(0, 5), (5, 5), (60, 100), (600, 1000)])
def test_coin_is_the_binomial_tail(heads: int, tosses: int) -> None:
    assert coin(heads, tosses) == pytest.approx(stats.binom.sf(heads - 1, tosses, 0.5), rel=1e-9)


def test_convolutions_count_a_channel_dead_when_all_its_sites_are(judge: Judge) -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 10))
    data = (torch.randn(16, 3, 8, 8), classes(16))
    assert judge("dead-units", model, data) == []
    nn.init.constant_(model[0].bias, -20.0)  # type: ignore[arg-type]
    assert [f.severity for f in judge("dead-units", model, data)] == [Severity.FAULT]


def test_an_output_that_is_zero_is_no_hidden_unit(judge: Judge) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    nn.init.constant_(model[0].bias, -20.0)  # type: ignore[arg-type]
    assert judge("dead-units", model, (torch.randn(16, 8), torch.rand(16, 8)), F.mse_loss) == []


# -- saturated units -----------------------------------------------------------------------------


class Gated(nn.Module):
    """A squeeze-and-excitation gate and a gated linear unit whose gates are fully open or shut."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.value, self.head = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 10)
        nn.init.normal_(self.gate.weight, std=20.0)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.sigmoid(self.gate(x)) * self.value(x)
        return self.head(h * torch.sigmoid(100 * h.mean(-1, keepdim=True)))


def test_gates_may_saturate(judge: Judge) -> None:
    assert judge("saturated-units", Gated(), (torch.randn(32, 16), classes(32))) == []


def test_a_sure_output_may_saturate(judge: Judge) -> None:
    model = nn.Sequential(nn.Linear(16, 1), nn.Sigmoid())
    nn.init.normal_(model[0].weight, std=20.0)  # type: ignore[arg-type]
    assert judge("saturated-units", model, (torch.randn(32, 16), torch.rand(32, 1)), F.binary_cross_entropy) == []


@pytest.mark.parametrize("act", [nn.Tanh(), nn.Sigmoid(), nn.Hardtanh(), nn.Softsign(), nn.Hardsigmoid()])
def test_every_bounded_activation_is_judged(judge: Judge, act: nn.Module) -> None:
    data = (torch.randn(64, 64), classes(64))
    for std, expected in ((1 / 8, 0), (20 / 8, 1)):
        model = nn.Sequential(nn.Linear(64, 64), act, nn.Linear(64, 10))
        nn.init.normal_(model[0].weight, std=std)  # type: ignore[arg-type]
        assert len(judge("saturated-units", model, data)) == expected


def test_the_predicted_share_is_the_gaussian_one() -> None:
    """Measured share, predicted share and scipy's tail agree for a linear map of normal data."""
    model = nn.Sequential(nn.Linear(256, 256, bias=False), nn.Tanh(), nn.Linear(256, 10))
    nn.init.normal_(model[0].weight, std=3 / 16)  # type: ignore[arg-type]
    made = study(model, (torch.randn(2048, 256), classes(2048)), loss=F.cross_entropy)
    tanh = made.tape.entries[1]
    spot = sweet_spot(tanh)
    assert spot is not None
    edge = math.atanh(math.sqrt(0.9))
    assert (spot.low, spot.high) == pytest.approx((-edge, edge), abs=6e-3)
    tail = 2 * stats.norm.sf(edge / 3)
    predicted = outside(made.forecast.states[tanh.inputs[0]], spot)
    assert predicted == pytest.approx(tail, abs=0.01)
    assert made.measurement.units[tanh.outputs[0]].saturated == pytest.approx(tail, abs=0.01)


@pytest.mark.parametrize("act", [nn.ReLU(), nn.ReLU6(), nn.GELU(), nn.Softplus(), nn.Hardswish(), nn.SiLU()])
def test_one_sided_functions_have_no_flat_ends(act: nn.Module) -> None:
    made = study(
        nn.Sequential(nn.Linear(8, 8), act, nn.Linear(8, 10)), (torch.randn(8, 8), classes(8)), loss=F.cross_entropy
    )
    assert sweet_spot(made.tape.entries[1]) is None
