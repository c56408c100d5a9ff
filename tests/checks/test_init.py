"""Which layers are off, and who is to blame."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from scipy import integrate
from torch import Tensor, nn

from tightrope.check import study
from tightrope.checks.layers import Layer, layers
from tightrope.checks.registry import get
from tightrope.diagnose import diagnose
from tightrope.finding import Finding, Severity

Judge = Callable[..., list[Finding]]


def plain(depth: int, activation: type[nn.Module] = nn.ReLU, *, factor: float = 1.0, width: int = 128) -> nn.Sequential:
    """He's law times a factor in every hidden layer."""
    stack: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(width, width)
        nn.init.normal_(linear.weight, std=factor * math.sqrt(2 / width))
        nn.init.zeros_(linear.bias)
        stack += [linear, activation()]
    return nn.Sequential(*stack, nn.Linear(width, 10))


def batch(width: int = 128) -> tuple[Tensor, Tensor]:
    return torch.randn(64, width), torch.arange(64) % 10


def read(model: nn.Module, x: Tensor) -> list[Layer]:
    made = study(model, x, loss=lambda y: y.sum())
    return layers(made.tape, made.measurement.laws)


def causes(model: nn.Module, data: tuple[Tensor, Tensor]) -> list[str]:
    findings = diagnose([study(model, data, loss=F.cross_entropy)])
    return [f.check for f in findings if f.caused_by is None and f.severity is not Severity.ADVICE]


# -- reading layers ------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid, nn.SELU], ids=lambda a: a.__name__)
def test_what_the_law_asks_is_one_over_the_energy_of_the_activation(activation: type[nn.Module]) -> None:
    function = activation()

    def integrand(z: float) -> float:
        f = float(function(torch.tensor(z, dtype=torch.float64)))
        return f * f * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    energy = integrate.quad(integrand, -10, 0)[0] + integrate.quad(integrand, 0, 10)[0]
    found = read(plain(2, activation), batch()[0])
    assert found[0].asked == 1
    assert found[1].asked == pytest.approx(1 / energy, rel=1e-3)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(12, 7), (8, 12)), (nn.Conv1d(6, 8, 3), (4, 6, 9)), (nn.Conv2d(6, 8, (3, 5), groups=2), (4, 6, 9, 9)),
        (nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
    ],
    ids=["linear", "conv1d", "grouped", "conv3d"],
)  # fmt: skip
def test_fan_in_and_gain_are_those_of_the_weight(layer: nn.Module, shape: tuple[int, ...]) -> None:
    (found,) = read(layer, torch.randn(shape))
    weight: Tensor = layer.weight  # type: ignore[assignment]
    assert found.fan_in == nn.init._calculate_fan_in_and_fan_out(weight)[0]
    assert found.gain == pytest.approx(found.fan_in * float(weight.detach().square().mean()), rel=1e-4)


def test_heads_branches_and_normalised_layers_are_told_apart() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.branch, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)
            self.norm = nn.LayerNorm(16)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.enter(x))
            return self.head(F.relu(x + self.branch(x)))

    enter, branch, head = read(Net(), torch.randn(8, 16))
    assert (enter.normalised, branch.normalised, head.normalised) == (True, False, False)
    assert (enter.branch, branch.branch, head.branch) == (False, True, False)
    assert (enter.head, branch.head, head.head) == (False, False, True)
    assert head.activation is not None
    assert head.activation.op == "relu"


# -- too small, too large ------------------------------------------------------------------------


def test_the_default_is_too_small_for_twenty_layers_and_fine_for_four() -> None:
    def default(depth: int) -> nn.Sequential:
        stack: list[nn.Module] = []
        for _ in range(depth):
            stack += [nn.Linear(128, 128), nn.ReLU()]
        return nn.Sequential(*stack, nn.Linear(128, 10))

    assert causes(default(20), batch()) == ["init-too-small"]
    assert causes(default(4), batch()) == []


@pytest.mark.parametrize(("factor", "cause"), [(0.3, "init-too-small"), (1.0, None), (4.0, "init-too-large")])
def test_one_cause_over_twelve_layers(factor: float, cause: str | None) -> None:
    assert causes(plain(12, factor=factor), batch()) == ([cause] if cause else [])


def test_consequences_stand_under_their_cause() -> None:
    findings = diagnose([study(plain(12, factor=0.3), batch(), loss=F.cross_entropy)])
    assert findings[0].check == "init-too-small"
    assert {"vanishing-signal", "vanishing-gradient"} & set(findings[0].cause_of)
    assert all(f.caused_by == "init-too-small" for f in findings[1:])


def test_one_bad_layer_in_the_middle_is_named() -> None:
    model = plain(8)
    with torch.no_grad():
        model[6].weight.mul_(1e4)  # type: ignore[union-attr, operator]
    findings = diagnose([study(model, batch(), loss=F.cross_entropy)])
    assert findings[0].check == "init-too-large"
    assert findings[0].modules == ("6",)
    assert findings[0].evidence[0].measured == pytest.approx(2e8, rel=0.2)


def test_a_layer_off_by_three_in_a_shallow_net_is_no_fault() -> None:
    for factor in (1 / 3, 3.0):
        model = plain(3)
        with torch.no_grad():
            model[2].weight.mul_(factor)  # type: ignore[union-attr, operator]
        assert causes(model, batch()) == []


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_scale_before_a_normaliser_has_no_effect(factor: float) -> None:
    stack: list[nn.Module] = []
    for layer in plain(12, factor=factor):
        stack += [layer, nn.LayerNorm(128, eps=1e-12)] if isinstance(layer, nn.Linear) else [layer]
    assert causes(nn.Sequential(*stack[:-1]), batch()) == []


def test_a_saturated_tanh_stack_is_the_weights_fault() -> None:
    assert causes(plain(4, nn.Tanh, factor=10), batch()) == ["init-too-large"]


# -- units that are alike ------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_constant_weights_are_a_fault(judge: Judge, value: float) -> None:
    model = plain(3, nn.Tanh)
    for i in (0, 2, 4):
        nn.init.constant_(model[i].weight, value)  # type: ignore[arg-type]
    (found,) = judge("zero-init", model, batch())
    assert found.severity is Severity.FAULT
    assert found.modules == ("0", "2", "4")


def test_one_constant_layer_is_named(judge: Judge) -> None:
    model = plain(3)
    nn.init.constant_(model[2].weight, 0.05)  # type: ignore[arg-type]
    (found,) = judge("zero-init", model, batch())
    assert found.module == "2"


def test_equal_rows_with_different_biases_are_no_symmetry(judge: Judge) -> None:
    model = plain(2, nn.Tanh)
    nn.init.zeros_(model[2].weight)  # type: ignore[arg-type]
    nn.init.normal_(model[2].bias)  # type: ignore[arg-type]
    assert judge("zero-init", model, batch()) == []


def test_zero_heads_and_branch_ends_are_a_choice(judge: Judge) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(128, 128), nn.Linear(128, 128), nn.Linear(128, 10)
            for layer in (self.b, self.head):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.b(F.relu(self.a(x))))

    assert judge("zero-init", Net(), batch()) == []


@pytest.mark.parametrize("name", ["init-too-large", "init-too-small", "zero-init"])
def test_trained_weights_are_not_the_initialisers(name: str) -> None:
    check = get(name)
    subject = check.module.sick()
    found = study(subject.model, subject.data, loss=subject.loss)
    assert check.judge(found)
    assert check.judge(replace(found, step=10)) == []


# -- the plateau of gradient descent ----------------------------------------------------------------


def _narrow(std: float | None, depth: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    made: list[nn.Module] = []
    for _ in range(depth):
        made += [nn.Linear(32, 32), nn.ReLU()]
    model = nn.Sequential(*made, nn.Linear(32, 4))
    for layer in model:
        if std is not None and isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
    return model


def _plateaus(model: nn.Module, optimizer: type[torch.optim.Optimizer]) -> list[Finding]:
    data = (torch.randn(64, 32), torch.arange(64) % 4)
    made = optimizer(model.parameters(), lr=0.01)  # type: ignore[call-arg]
    return get("init-too-small").judge(study(model, data, loss=nn.functional.cross_entropy, optimizer=made))


def test_narrow_layers_that_are_small_together() -> None:
    assert len(_plateaus(_narrow(0.05), torch.optim.SGD)) == 1
    assert _plateaus(_narrow(0.05), torch.optim.Adam) == []
    assert _plateaus(_narrow(0.25), torch.optim.SGD) == []


def test_defaults_and_small_heads_leave_no_plateau() -> None:
    assert _plateaus(_narrow(None, depth=6), torch.optim.SGD) == []
    model = _narrow(None, depth=6)
    nn.init.zeros_(model[-1].weight)  # type: ignore[arg-type]
    assert _plateaus(model, torch.optim.SGD) == []
