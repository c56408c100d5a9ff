"""Independent answers to hold predictions against: adaptive quadrature, and Monte Carlo with standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from scipy import integrate
from torch import Tensor, nn

import tightrope as tr
from tightrope.measure.laws import estimate
from tightrope.predict import Forecast
from tightrope.predict import forecast as carry
from tightrope.roles import Axes, Role
from tightrope.rules.state import State
from tightrope.tape import Kind


def gaussian_expectation(
    function: Callable[[float], float], mean: float, std: float, breaks: tuple[float, ...] = ()
) -> float:
    """E f(x) for x ~ N(mean, std^2), by adaptive quadrature split at `breaks`."""
    edges = sorted({mean - 12 * std, mean + 12 * std, *(b for b in breaks if abs(b - mean) < 12 * std)})

    def density(x: float) -> float:
        return function(x) * math.exp(-(((x - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))

    pieces = pairwise(edges)
    return sum(integrate.quad(density, low, high, epsabs=1e-13, epsrel=1e-12)[0] for low, high in pieces)


@dataclass(frozen=True)
class Sampled:
    """A statistic's average over draws, with its standard error."""

    value: float
    error: float

    def agrees(self, predicted: float, *, sigmas: float = 5.0, relative: float = 0.0) -> bool:
        """Whether a prediction lies within the sampling error, plus a stated relative error of the rule."""
        return abs(predicted - self.value) <= sigmas * self.error + relative * abs(self.value)


def sampled(draws: list[float]) -> Sampled:
    """Average and standard error."""
    x = torch.tensor(draws, dtype=torch.float64)
    return Sampled(float(x.mean()), float(x.std() / math.sqrt(len(draws))))


@dataclass(frozen=True)
class Outcome:
    """What `tr.predict` says of a tiny module, and what many real batches show.

    Attributes:
        std, gradient: standard deviation of the output, rms of the input's gradient: sampled over batches.
        predicted_std, predicted_gradient: the same from the rules.
        parameters: sampled rms of each parameter's gradient, by name.
        predicted_parameters: from the rules.
        simulated: operations that had no rule.
    """

    std: Sampled
    gradient: Sampled
    predicted_std: float
    predicted_gradient: float
    parameters: dict[str, Sampled]
    predicted_parameters: dict[str, float]
    simulated: tuple[str, ...]


class Slot(nn.Module):
    """Two convolution-free marks around a module: the input times one, so that its gradient is on the tape."""

    def __init__(self, inner: nn.Module | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = inner if isinstance(inner, nn.Module) else _Function(inner)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x * self.scale)


class _Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def outcome(
    inner: nn.Module | Callable[[Tensor], Tensor],
    shape: tuple[int, ...],
    *,
    batches: int = 24,
    mean: float = 0.0,
    shared: float = 0.0,
    seed: int = 0,
) -> Outcome:
    """Run a tiny module through `tr.predict` with its own weights, and over many real batches.

    The input is normal with the given mean; `shared` is the standard deviation of what a sample's sites share. The
    loss is a random projection of the output, drawn anew for every batch.

    Args:
        inner: the module, or a function of one tensor.
        shape: of the input; the first dimension is the batch.
        batches: number of real batches.
        mean, shared: law of the input.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    model = Slot(inner)

    def draw(n: int) -> Tensor:
        x = torch.randn((n, *shape[1:]), generator=generator) + mean
        common = torch.randn((n, shape[1], *[1] * (len(shape) - 2)), generator=generator)
        return x + shared * common

    def loss_of(projection: Tensor) -> Callable[[Any], Tensor]:
        return lambda output: (output * projection).sum()

    x = draw(shape[0])
    with torch.no_grad():
        projection = torch.randn(model(x).shape, generator=generator)
    traced = tr.predict(model, x, loss=loss_of(projection))
    forecast = carry(traced.tape, _laws(traced, mean, shared))
    entries = [e for e in forecast.tape.entries if forecast.tape.values[e.outputs[0]].is_float]
    first = entries[0].outputs[0]
    last = next(e for e in reversed(entries[:-2]) if e.outputs[0] in forecast.laws).outputs[0]
    stds, rms = [], []
    named: dict[str, list[float]] = {name: [] for name, _ in model.named_parameters() if name != "scale"}
    for _ in range(batches):
        model.zero_grad()
        batch = draw(shape[0])
        inside = (batch * model.scale).detach().requires_grad_(True)
        output = model.inner(inside)
        stds.append(float(output.detach().std(unbiased=False)) ** 2)
        (output * torch.randn(output.shape, generator=generator)).sum().backward()
        assert inside.grad is not None
        rms.append(float(inside.grad.square().mean()))
        for name, parameter in model.named_parameters():
            if name in named and parameter.grad is not None:
                named[name].append(float(parameter.grad.square().mean()))
    predicted = {
        value.name: forecast.gradients[value.id].second_moment
        for value in forecast.tape.values.values()
        if value.name in named and value.id in forecast.gradients
    }
    return Outcome(
        sampled(stds), sampled(rms), forecast.laws[last].variance, forecast.gradients[first].second_moment,
        {name: sampled(values) for name, values in named.items() if values}, predicted,
        tuple(entry.op for entry in forecast.simulated),
    )  # fmt: skip


def _laws(traced: Forecast, mean: float, shared: float) -> dict[int, State]:
    """The laws that the input and the loss's projection are drawn from."""
    found = {}
    for value in traced.tape.value_of(Kind.INPUT):
        axes = traced.states[value.id].axes
        law = (mean, shared**2) if not found else (0.0, 0.0)
        sites = axes.count(Role.SITE) > 1
        parts = {"sample": law[1], "residual": 1.0} if sites else {"sample": 1.0 + law[1]}
        found[value.id] = State.of(axes, law[0], **parts)
    return found


def check_rule(
    inner: nn.Module | Callable[[Tensor], Tensor],
    shape: tuple[int, ...],
    *,
    forward: float = 0.02,
    backward: float = 0.05,
    parameters: float = 0.1,
    may_simulate: bool = False,
    **options: Any,
) -> Outcome:
    """Hold the predicted second moments of a tiny module against real batches.

    Args:
        inner, shape, options: as for `outcome`.
        forward, backward, parameters: relative errors that the rule may make beyond five standard errors of the
            sampling; of variances and mean squares, not of their roots.
        may_simulate: whether the operation may lack a rule.
    """
    found = outcome(inner, shape, **options)
    assert may_simulate or not found.simulated, f"no rule for {found.simulated}"
    assert found.std.agrees(found.predicted_std, relative=forward), (found.predicted_std, found.std)
    assert found.gradient.agrees(found.predicted_gradient, relative=backward), (
        found.predicted_gradient,
        found.gradient,
    )
    for name, measured in found.parameters.items():
        predicted = found.predicted_parameters[name]
        assert measured.agrees(predicted, relative=parameters), (name, predicted, measured)
    return found


def components(x: Tensor, axes: Axes) -> tuple[float, float, float]:
    """Mean, shared and total variance of a real tensor, as the package measures them."""
    law = estimate(x, axes)
    return law.mean, law.sample, law.variance
