"""Elementwise operations against adaptive quadrature of the operation itself, sums and products against sampling."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.integrate import quad
from torch import Tensor, nn

from tightrope.law import Law
from tightrope.predict import Forecast, forecast
from tightrope.roles import Axes, Axis, Role
from tightrope.rules.state import State
from tightrope.tape import Recorder

ACCURACY = 1e-4
"""64 nodes on a smooth function, 32 on each side of a kink."""

AXES = Axes(((Axis(Role.SAMPLE, 2),), (Axis(Role.CHANNEL, 3),)))


def carried(function: Callable[..., Tensor], *states: State) -> tuple[Forecast, list[int], int]:
    """A forecast of a function of tensors with these states, the ids of its inputs and of its result."""
    body = nn.Module()
    body.forward = function  # type: ignore[assignment]
    # Small distinct numbers: they only tell the recorder what is called.
    inputs = [0.1 + 0.01 * i + torch.rand(state.axes.shape, dtype=torch.float64) / 2 for i, state in enumerate(states)]
    with Recorder() as recorder:
        body(*inputs)
        ids = [recorder._value(tensor) for tensor in inputs]
    tape = recorder.tape
    result = tape.entries[-1].outputs[0]
    return forecast(tape.of(result), dict(zip(ids, states, strict=True))), ids, result


def gaussian(mean: float, std: float) -> State:
    return State.of(AXES, mean, sample=std**2)


def expectation(function: Callable[[float], float], mean: float, std: float, kinks: list[float]) -> float:
    """E f(mean + std xi) by adaptive quadrature, piece by piece between kinks."""
    edges = [-12.0, *sorted((k - mean) / std for k in kinks if abs(k - mean) < 12 * std), 12.0]
    density = 1 / math.sqrt(2 * math.pi)
    return sum(
        quad(lambda t: function(mean + std * t) * density * math.exp(-t * t / 2), a, b, limit=200, epsabs=1e-13)[0]
        for a, b in itertools.pairwise(edges)
    )


def values(function: Callable[[Tensor], Tensor]) -> tuple[Callable[[float], float], Callable[[float], float]]:
    """A torch function and its derivative as functions of a number."""

    def value(x: float) -> float:
        return float(function(torch.tensor(x, dtype=torch.float64)))

    def slope(x: float) -> float:
        at = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        function(at).backward()
        assert at.grad is not None
        return float(at.grad)

    return value, slope


OPERATIONS: dict[str, tuple[Callable[[Tensor], Tensor], list[float]]] = {
    "relu": (F.relu, [0.0]),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.2), [0.0]),
    "relu6": (F.relu6, [0.0, 6.0]),
    "elu": (F.elu, [0.0]),
    "selu": (F.selu, [0.0]),
    "celu": (lambda x: F.celu(x, 2.0), [0.0]),
    "gelu": (F.gelu, []),
    "gelu tanh": (lambda x: F.gelu(x, approximate="tanh"), []),
    "silu": (F.silu, []),
    "mish": (F.mish, []),
    "softplus": (F.softplus, []),
    "softsign": (F.softsign, [0.0]),
    "tanh": (torch.tanh, []),
    "sigmoid": (torch.sigmoid, []),
    "hardtanh": (F.hardtanh, [-1.0, 1.0]),
    "hardsigmoid": (F.hardsigmoid, [-3.0, 3.0]),
    "hardswish": (F.hardswish, [-3.0, 3.0]),
    "hardshrink": (F.hardshrink, [-0.5, 0.5]),
    "softshrink": (F.softshrink, [-0.5, 0.5]),
    "tanhshrink": (F.tanhshrink, []),
    "logsigmoid": (F.logsigmoid, []),
    "exp": (torch.exp, []),
    "square": (torch.square, []),
    "abs": (torch.abs, [0.0]),
    "sin": (torch.sin, []),
    "erf": (torch.erf, []),
    "clamp": (lambda x: x.clamp(-0.3, 0.9), [-0.3, 0.9]),
    "clamp from below": (lambda x: torch.clamp(x, min=0.2), [0.2]),
    "threshold": (lambda x: F.threshold(x, 0.1, 0.0), [0.1]),
    "pow": (lambda x: x**3, []),
    "swish spelled out": (lambda x: x * torch.sigmoid(x), []),
    "gelu spelled out": (lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))), []),
    "square as a product": (lambda x: x * x, []),
    "squared relu": (lambda x: F.relu(x) ** 2, [0.0]),
    "a branch that meets itself": (lambda x: torch.tanh(x) + torch.sigmoid(x) * 0.5, []),
}


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.7, 0.5), (-1.0, 2.0)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_one_variable(name: str, mean: float, std: float) -> None:
    function, kinks = OPERATIONS[name]
    found, (source,), result = carried(function, gaussian(mean, std))
    value, slope = values(function)
    first = expectation(value, mean, std, kinks)
    second = expectation(lambda x: value(x) ** 2, mean, std, kinks)
    law, gradient = found.laws[result], found.gradients[source]
    assert law.mean == pytest.approx(first, rel=ACCURACY, abs=1e-7)
    assert law.second_moment == pytest.approx(second, rel=ACCURACY, abs=1e-9)
    assert gradient.mean == pytest.approx(expectation(slope, mean, std, kinks), rel=ACCURACY, abs=1e-7)
    assert gradient.second_moment == pytest.approx(
        expectation(lambda x: slope(x) ** 2, mean, std, kinks), rel=ACCURACY, abs=1e-9
    )
    assert not found.unknown
    assert not found.simulated


@pytest.mark.parametrize("std", [3.0, 10.0, 100.0])
@pytest.mark.parametrize("name", ["tanh", "sigmoid", "erf", "gelu", "silu", "softplus"])
def test_saturated_functions(name: str, std: float) -> None:
    """To a wide variable a sigmoid is a step, and its slope a spike that a coarse rule steps over."""
    function, _ = OPERATIONS[name]
    found, (source,), result = carried(function, gaussian(0.5, std))
    value, slope = values(function)
    pieces = [-8.0, -4.0, -2.0, 0.0, 2.0, 4.0, 8.0]
    second = expectation(lambda x: value(x) ** 2, 0.5, std, pieces)
    spike = expectation(lambda x: slope(x) ** 2, 0.5, std, pieces)
    assert found.laws[result].second_moment == pytest.approx(second, rel=1e-3)
    assert found.gradients[source].second_moment == pytest.approx(spike, rel=1e-2)


SITES = Axes(((Axis(Role.SAMPLE, 2),), (Axis(Role.SITE, 4),), (Axis(Role.CHANNEL, 3),)))


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu", "square", "swish spelled out"])
def test_components_of_a_curved_function(name: str) -> None:
    """The sample component is the covariance of two sites of one sample, the site component that of two samples."""
    function, _ = OPERATIONS[name]
    law = Law(0.2, 0.0, 0.5, 0.3, 0.4)
    state = State.of(SITES, law.mean, sample=law.sample, site=law.site, residual=law.residual)
    found, _, result = carried(function, state)
    draw = np.random.default_rng(0)
    n = 400_000
    common, site = (draw.standard_normal((2, n)) for _ in range(2))
    rest = draw.standard_normal((4, n))
    a, b, c = math.sqrt(law.sample), math.sqrt(law.site), math.sqrt(law.residual)

    def at(i: int, j: int, k: int) -> np.ndarray:
        x = law.mean + a * common[i] + b * site[j] + c * rest[k]
        return function(torch.as_tensor(x)).numpy()

    one = at(0, 0, 0)
    level = {
        "sample": np.cov(one, at(0, 1, 1))[0, 1],
        "site": np.cov(one, at(1, 0, 2))[0, 1],
    }
    law = found.laws[result]
    for component, expected in level.items():
        assert getattr(law, component) == pytest.approx(expected, abs=0.01 * one.var())
    assert law.variance == pytest.approx(one.var(), rel=0.01)


@pytest.mark.parametrize(
    "function",
    [lambda x, y: x + y, lambda x, y: x - 2 * y, lambda x, y: x * y, lambda x, y: torch.add(x, y, alpha=3.0),
     lambda x, y: (x * 2 + 1) * y, lambda x, y: 1.0 - x + y, lambda x, y: x * torch.sigmoid(y)],
    ids=["sum", "difference", "product", "alpha", "affine product", "from one", "gate"],
)  # fmt: skip
def test_two_independent_variables(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    left, right = Law(0.3, 0.0, 0.5, 0.2, 0.4), Law(-0.4, 0.0, 0.3, 0.6, 0.2)
    states = [State.of(SITES, w.mean, sample=w.sample, site=w.site, residual=w.residual) for w in (left, right)]
    found, ids, result = carried(function, *states)
    draw = np.random.default_rng(1)
    n = 400_000
    x = torch.as_tensor(left.mean + left.std * draw.standard_normal(n)).requires_grad_()
    y = torch.as_tensor(right.mean + right.std * draw.standard_normal(n)).requires_grad_()
    z = function(x, y)
    z.sum().backward()
    law = found.laws[result]
    assert law.mean == pytest.approx(float(z.mean().detach()), abs=0.01 * float(z.std().detach()))
    assert law.std == pytest.approx(float(z.std().detach()), rel=0.01)
    for number, variable in zip(ids, (x, y), strict=True):
        assert variable.grad is not None
        assert found.gradients[number].rms == pytest.approx(float(variable.grad.square().mean().sqrt()), rel=0.01)


def test_a_known_operand_scales_and_shifts_channel_by_channel() -> None:
    scale, shift = torch.tensor([1.0, 2.0, -3.0]), torch.tensor([0.0, 1.0, 5.0])
    found, _, result = carried(lambda x: x * scale + shift, gaussian(0.5, 2.0))
    state = found.states[result]
    assert state.mean.flatten().tolist() == pytest.approx((0.5 * scale + shift).tolist())
    assert state.variance.flatten().tolist() == pytest.approx((4 * scale.double().square()).tolist())


def test_division_by_a_number_and_of_a_number() -> None:
    found, _, result = carried(lambda x: (x - 3.0) / 2.0, gaussian(1.0, 1.0))
    assert found.laws[result].mean == pytest.approx(-1.0)
    assert found.laws[result].std == pytest.approx(0.5)
    found, _, result = carried(lambda x: 2.0 / (x + 10.0), gaussian(0.0, 0.5))
    first = expectation(lambda x: 2.0 / (x + 10.0), 0.0, 0.5, [])
    assert found.laws[result].mean == pytest.approx(first, rel=1e-4)


def test_in_place_operations_are_as_their_plain_forms() -> None:
    def inplace(x: Tensor) -> Tensor:
        y = x * 1.0
        y.mul_(2.0).add_(1.0).relu_()
        return y * 1.0

    found, _, result = carried(inplace, gaussian(0.0, 1.0))
    plain, _, other = carried(lambda x: torch.relu(x * 2.0 + 1.0) * 1.0, gaussian(0.0, 1.0))
    assert found.laws[result].to_dict() == pytest.approx(plain.laws[other].to_dict(), rel=1e-6)
