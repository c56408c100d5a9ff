"""Gains of zero, biases without effect, the order of normaliser and activation, and identity paths."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.check import study
from tightrope.diagnose import diagnose
from tightrope.finding import Finding, Severity

Judge = Callable[..., list[Finding]]
N = 32


def rows() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(N, 8), torch.arange(N) % 3


def silent(norm: nn.Module) -> nn.Module:
    nn.init.zeros_(norm.weight)  # type: ignore[arg-type]
    return norm


# -- zero gamma ------------------------------------------------------------------------------------


class Residual(nn.Module):
    """A block whose last normaliser starts at zero, with or without the way around it."""

    def __init__(self, *, skip: bool, gate: bool = False, join: bool = False) -> None:
        super().__init__()
        self.enter, self.norm = nn.Linear(8, 16), silent(nn.BatchNorm1d(16))
        self.gate, self.skip, self.join = nn.Linear(16, 16) if gate else None, skip, join
        self.head = nn.Linear(32 if join else 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.enter(x))
        y = self.norm(h)
        y = y if self.gate is None else y * torch.sigmoid(self.gate(y))
        if self.join:
            return self.head(torch.cat([h, y], 1))
        return self.head(F.relu(h + y if self.skip else y))


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(16), nn.LayerNorm(16), nn.GroupNorm(4, 16)])
def test_nothing_passes(judge: Judge, norm: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(8, 16), silent(norm), nn.GELU(), nn.Linear(16, 3))
    (found,) = judge("zero-gamma", model, rows())
    assert found.severity is Severity.FAULT
    assert found.evidence[1].measured == 0
    findings = diagnose([study(model, rows(), loss=F.cross_entropy)])
    assert [f.check for f in findings if f.caused_by is None and f.severity is not Severity.ADVICE] == ["zero-gamma"]


@pytest.mark.parametrize("options", [{"skip": True}, {"skip": True, "gate": True}, {"skip": False, "join": True}])
def test_another_way_leads_around(judge: Judge, options: dict[str, bool]) -> None:
    assert judge("zero-gamma", Residual(**options), rows()) == []
    assert judge("zero-gamma", Residual(skip=False), rows())


def test_a_loss_is_no_way_around(judge: Judge) -> None:
    model = nn.Sequential(nn.Linear(8, 16), silent(nn.LayerNorm(16)), nn.Linear(16, 8))
    x = rows()[0]
    assert judge("zero-gamma", model, (x, x), lambda y, t: (y - t).square().mean())


# -- redundant bias --------------------------------------------------------------------------------


def conv(*last: nn.Module, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3, bias=bias), *last, nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))


def maps() -> tuple[Tensor, Tensor]:
    return torch.randn(N, 1, 8, 8), torch.arange(N) % 3


def test_biases_before_batch_norm(judge: Judge) -> None:
    model = conv(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    model(maps()[0])
    (found,) = judge("redundant-bias", model, maps())
    assert found.severity is Severity.ADVICE
    assert found.evidence[0].measured == 2
    assert found.evidence[1].measured < 1e-5 * found.evidence[2].measured


@pytest.mark.parametrize(
    "model",
    [
        conv(nn.BatchNorm2d(4), bias=False), conv(nn.GroupNorm(2, 4)), conv(nn.LayerNorm([4, 6, 6])),
        conv(nn.ReLU(), nn.BatchNorm2d(4)), conv(nn.BatchNorm2d(4).eval()), conv(nn.InstanceNorm2d(4), bias=False),
    ],
)  # fmt: skip
def test_biases_that_count(judge: Judge, model: nn.Module) -> None:
    model(maps()[0])
    assert judge("redundant-bias", model, maps()) == []


# -- order -----------------------------------------------------------------------------------------


def test_batch_norm_behind_the_activation_is_advice(judge: Judge) -> None:
    late = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.1), nn.BatchNorm1d(16), nn.Linear(16, 3))
    early = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    (found,) = judge("norm-after-activation", late, rows())
    assert found.severity is Severity.ADVICE
    assert found.evidence[1].measured == pytest.approx(0.5, abs=0.1)
    assert judge("norm-after-activation", early, rows()) == []


# -- blocked skip ----------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.branch, self.join = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)), join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(x, self.branch(x))


def deep(join: Callable[[Tensor, Tensor], Tensor], blocks: int = 6) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), *[Block(join) for _ in range(blocks)], nn.Linear(16, 3))


class Leaky(nn.Module):
    """A state that decays on purpose, with one weight for all steps."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.turn, self.head = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.enter(x))
        for _ in range(8):
            h = 0.5 * h + 0.5 * torch.tanh(self.turn(h))
        return self.head(h)


@pytest.mark.parametrize(
    "join", [lambda x, y: torch.sigmoid(x + y), lambda x, y: 0.3 * x + y, lambda x, y: torch.tanh(x + y) / 2]
)
def test_what_stands_on_the_identity_path(judge: Judge, join: Callable[[Tensor, Tensor], Tensor]) -> None:
    (found,) = judge("blocked-skip", deep(join), rows())
    assert found.severity is Severity.WARNING
    assert found.evidence[0].measured < 0.1


@pytest.mark.parametrize(
    "join",
    [
        lambda x, y: x + y, lambda x, y: F.relu(x + y), lambda x, y: (x + y) / 2**0.5, lambda x, y: x + 0.1 * y,
        lambda x, y: F.layer_norm(x + y, (16,)), lambda x, y: F.dropout(x, 0.1) + y, lambda x, y: torch.tanh(y) + x,
        lambda x, y: torch.sigmoid(y) * x + y,
    ],
)  # fmt: skip
def test_identity_paths_that_are_open(judge: Judge, join: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert judge("blocked-skip", deep(join), rows()) == []


def test_few_blocks_and_recurrences_pass(judge: Judge) -> None:
    assert judge("blocked-skip", deep(lambda x, y: torch.sigmoid(x + y), 2), rows()) == []
    assert judge("blocked-skip", Leaky(), rows()) == []


def test_the_product_is_the_identitys_share_of_the_gradient(judge: Judge) -> None:
    """With silent branches the gradient is what the identity path leaves of it."""
    model = deep(lambda x, y: 0.3 * x + y)
    for block in model[1:-1]:
        nn.init.zeros_(block.branch[2].weight)  # type: ignore[union-attr,index,arg-type]
        nn.init.zeros_(block.branch[2].bias)  # type: ignore[union-attr,index,arg-type]
    (found,) = judge("blocked-skip", model, rows())
    assert found.evidence[0].measured == pytest.approx(0.3 ** found.evidence[2].measured, rel=1e-6)
    assert found.evidence[2].measured == 5


# -- outside the sweet spot ------------------------------------------------------------------------


def smooth(act: nn.Module, bias: float, width: int = 64) -> nn.Sequential:
    torch.manual_seed(0)
    layer = nn.Linear(8, width)
    nn.init.normal_(layer.weight, std=8**-0.5)
    nn.init.constant_(layer.bias, bias)
    return nn.Sequential(layer, act, nn.Linear(width, 3))


@pytest.mark.parametrize(
    ("act", "edge"), [(nn.GELU(), -1.72), (nn.SiLU(), -0.88), (nn.ELU(), -2.3), (nn.Softplus(), -2.19)]
)
def test_smooth_activations_on_their_flat_side(judge: Judge, act: nn.Module, edge: float) -> None:
    (found,) = judge("outside-sweet-spot", smooth(act, edge - 2), rows())
    exact = float(torch.special.ndtr(torch.tensor((edge - found.evidence[2].measured) / found.evidence[3].measured)))
    assert found.evidence[0].measured == pytest.approx(exact, abs=2e-3)
    assert judge("outside-sweet-spot", smooth(act, 0.0), rows()) == []
    assert judge("outside-sweet-spot", smooth(act, edge), rows()) == []


def test_trained_and_other_activations_are_left_alone(judge: Judge) -> None:
    model = smooth(nn.GELU(), -5.0)
    with torch.no_grad():
        model[0].weight[:8] *= 6  # type: ignore[operator,index]
    assert judge("outside-sweet-spot", model, rows()) == []
    assert judge("outside-sweet-spot", smooth(nn.ReLU(), -5.0), rows()) == []
    assert judge("outside-sweet-spot", smooth(nn.Tanh(), -5.0), rows()) == []
