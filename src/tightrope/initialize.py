"""Solve every weight scale of a net from the laws of its step: no training, and of the data only their law.

Walking along the tape, each layer's weights are drawn, the law of its output is predicted with the weights of
all layers before it in place, and its scale and bias are set so that signal and gradient keep their size:

    n E[w^2] E[f'(z)^2] = 1      the gradient keeps its size through the activation f behind the layer
    E[z^2] = 1                   so does the signal; what the first condition leaves too large is mean, and a bias
                                 takes it away

For ReLU both hold without a bias and give He's 2 / n; for the sigmoid they give n E[w^2] = 22 and centred units.

At E[f'^2] n E[w^2] = 1 a deviation neither grows nor shrinks from layer to layer, so errors of the prediction add up:
smooth unbounded activations with a mean (SiLU, GELU, Softplus) keep their size over some thirty layers of width 128,
not over any depth. ReLU, tanh, SELU and the sigmoid do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tightrope.checks.layers import Layer, evaluate, layers
from tightrope.checks.trace import CHANCE, VIEWS, reads
from tightrope.errors import InputError
from tightrope.law import Law
from tightrope.predict import Sweep
from tightrope.rules.expectation import latent
from tightrope.rules.state import State
from tightrope.step import Loss, trace
from tightrope.tape.tape import Entry, Kind, Tape, Value

CRITERIA = ("both", "forward", "backward")
HEAD = 0.5
"""Standard deviation of the last layer's outputs: cross-entropy then starts an eighth of a nat above ln K."""


@dataclass(frozen=True)
class Change:
    """What was done to one parameter: its name, its rms before and after."""

    name: str
    before: float
    after: float


@dataclass(frozen=True)
class Initialization:
    """What `initialize` changed, in the order of the step; what it left alone, and why."""

    changes: tuple[Change, ...]
    untouched: tuple[str, ...]


def initialize(
    model: nn.Module, inputs: Any, *, loss: Loss | None = None, criterion: str = "both", seed: int = 0
) -> Initialization:
    """Draw and scale all weights of a model in place, by the laws of its own step.

    Args:
        model: any module with real parameters.
        inputs: as for `predict`; only their law is used.
        loss: as for `predict`.
        criterion: "forward" keeps E[z^2] at 1, "backward" the gradient, "both" the two where a bias allows it.
        seed: of the generator that draws the weights; the global random state is not touched.

    Returns:
        The changes, parameter by parameter. Frozen and recurrent parameters, embeddings and normalisers are left alone.

    Raises:
        InputError: no such criterion, or the parameters are on the meta device.
        RecordError: the model could not be run on shapes.
    """
    if criterion not in CRITERIA:
        raise InputError(f"initialize by {criterion!r}", "there is no such criterion", f"Choose one of {CRITERIA}")
    if any(parameter.is_meta for parameter in model.parameters()):
        found = "its parameters are on the meta device and have no numbers"
        raise InputError("initialize the model", found, "Build it on a real device")
    return solve(trace(model, inputs, loss=loss), criterion=criterion, seed=seed)


def solve(tape: Tape, *, criterion: str = "both", seed: int = 0) -> Initialization:
    """`initialize` for a step that is already recorded: its parameters are changed in place."""
    solver = _Solver(tape, criterion, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        Sweep(tape, {}, before=solver.visit).forward()
    names = {change.name for change in solver.changes}
    left = tuple(v.name for v in tape.value_of(Kind.PARAMETER) if v.name and v.name not in names)
    return Initialization(tuple(solver.changes), left)


class _Solver:
    """Sets the parameters of each layer when the sweep arrives at it."""

    def __init__(self, tape: Tape, criterion: str, generator: torch.Generator) -> None:
        self.tape, self.criterion, self.generator = tape, criterion, generator
        laws = {v.id: Law(0.0, 1.0) for v in tape.value_of(Kind.PARAMETER)}
        found = layers(tape, laws)
        self.layers = {layer.entry.index: layer for layer in found}
        self.sums = max(sum(_joins(tape, layer) for layer in found), 1)
        self.changes: list[Change] = []
        self.done: set[int] = set()

    def visit(self, sweep: Sweep, entry: Entry) -> None:
        """Draw the weights of a layer, predict its output, and scale them."""
        layer = self.layers.get(entry.index)
        if layer is None or layer.weight.id in self.done or not _free(layer.weight):
            return
        self.done.add(layer.weight.id)
        weight, bias = layer.weight.content, _bias(self.tape, layer)
        assert weight is not None
        before = [(v, _rms(v.content)) for v in (layer.weight, bias) if v is not None and v.content is not None]
        drawn, backup = _draw(layer, weight, self.generator), weight.clone()
        weight.copy_(drawn)
        if bias is not None and bias.content is not None:
            bias.content.zero_()
        output = sweep.trial(entry)
        energy = float(output.second_moment.mean()) if output is not None else 0.0
        if output is None or not math.isfinite(energy) or energy <= 0:
            weight.copy_(backup)
            return
        scale, centre = self._solve(sweep, layer, output, bias is not None)
        weight.mul_(scale)
        if bias is not None and bias.content is not None and centre > 0:
            bias.content.copy_(-centre * scale * _channel_means(output, layer, bias))
        self.changes += [Change(v.name or "", old, _rms(v.content)) for v, old in before]

    def _solve(self, sweep: Sweep, layer: Layer, output: State, biased: bool) -> tuple[float, float]:
        """Scale of the weights, and the share of the mean that the bias takes away."""
        spread, level = float(output.variance.mean()), float(output.mean.square().mean())
        forward = 1.0 / math.sqrt(spread + level)
        if layer.head:
            return HEAD * forward, 0.0
        if _joins(self.tape, layer):
            return forward / math.sqrt(self.sums), 0.0
        slope = _slope(sweep, layer.activation) if layer.activation is not None else None
        if layer.normalised or layer.branch or slope is None or self.criterion == "forward":
            return forward, 0.0
        backward = 1.0 / math.sqrt(slope)
        if self.criterion == "backward":
            return backward, 0.0
        if not biased:
            return min(backward, forward), 0.0
        room = max(1.0 / backward**2 - spread, 0.0)  # where even the centred signal grows, the gradient has its way
        return backward, 1.0 - math.sqrt(min(room / level, 1.0)) if level > 0 else 0.0


def _slope(sweep: Sweep, entry: Entry) -> float | None:
    """E[f'(z)^2] of an activation at the predicted law of its argument."""
    state = sweep.states.get(entry.inputs[0])
    if state is None:
        return None
    variable = latent(state)
    with torch.enable_grad():
        z = variable.z.clone().requires_grad_(True)
        try:
            values = evaluate(entry, z)
        except (RuntimeError, TypeError):
            return None
        if not values.requires_grad:
            return None
        (gradient,) = torch.autograd.grad(values.sum(), z)
    energy = float(variable.expect(gradient.square()).mean())
    return energy if energy > 0 and math.isfinite(energy) else None


def _draw(layer: Layer, weight: Tensor, generator: torch.Generator) -> Tensor:
    """Weights with E[w^2] = 1 / fan-in: orthogonal for a matrix, which spreads least; normal otherwise."""
    drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    if layer.entry.op == "linear" and weight.ndim == 2:
        q, r = torch.linalg.qr(drawn if weight.shape[0] >= weight.shape[1] else drawn.T)
        q = q * torch.sign(r.diagonal())
        drawn = q if weight.shape[0] >= weight.shape[1] else q.T
    drawn = drawn / drawn.square().mean().sqrt() / math.sqrt(layer.fan_in)
    return drawn.to(weight.device, weight.dtype)


def _channel_means(output: State, layer: Layer, bias: Value) -> Tensor:
    """Predicted mean of each output channel, averaged over sites."""
    mean = output.mean.expand(output.shape)
    channel = 1 if layer.entry.op.startswith("conv") and mean.ndim > 2 else mean.ndim - 1
    others = [d for d in range(mean.ndim) if d != channel]
    assert bias.content is not None
    return (mean.mean(others) if others else mean).to(bias.content.device, bias.content.dtype)


def _joins(tape: Tape, layer: Layer) -> bool:
    """Whether a layer ends a residual branch: its output is added to another signal."""
    for reader in reads(tape, layer.entry.outputs[0], VIEWS | CHANCE):
        data = [n for n in reader.inputs if tape.values[n].kind is Kind.RESULT]
        if reader.op == "add" and len(set(data)) > 1:
            return True
    return False


def _bias(tape: Tape, layer: Layer) -> Value | None:
    """The layer's bias, if it is free."""
    for number in layer.entry.inputs:
        value = tape.values[number]
        if value.kind is Kind.PARAMETER and len(value.shape) == 1 and _free(value):
            return value
    return None


def _free(value: Value) -> bool:
    """Whether a parameter is trained and has numbers."""
    return value.content is not None and not value.content.is_meta and value.trained


def _rms(content: Tensor | None) -> float:
    return float(content.double().square().mean().sqrt()) if content is not None and content.numel() else 0.0


__all__ = ["Change", "Initialization", "initialize"]
