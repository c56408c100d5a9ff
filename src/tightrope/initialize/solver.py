"""Walk along the step and set the parameters of each layer when the forecast arrives at it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tightrope.checks.layers import Layer, evaluate, layers
from tightrope.checks.trace import VIEWS, origin
from tightrope.errors import InputError
from tightrope.initialize.draw import draw
from tightrope.initialize.point import Point, working_point
from tightrope.initialize.result import Change, Initialization
from tightrope.initialize.ways import ahead, indexed, joins, series
from tightrope.law import Law
from tightrope.predict import Sweep
from tightrope.rules.expectation import latent
from tightrope.rules.state import State
from tightrope.step import Loss, trace
from tightrope.tape.draws import Draw
from tightrope.tape.initialisers import draw_of, note
from tightrope.tape.tape import Entry, Kind, Tape, Value

CRITERIA = ("both", "forward", "backward")
HEAD = 0.5
"""Standard deviation of the last layer's outputs: cross-entropy then starts an eighth of a nat above ln K."""


def initialize(
    model: nn.Module, inputs: Any, *, loss: Loss | None = None, criterion: str = "both", seed: int = 0,
    dry: bool = False,
) -> Initialization:  # fmt: skip
    """Draw and scale all weights of a model in place, by the laws of its own step.

    On the meta device the laws that its initialisers should draw from are set in place of those that they would;
    `predict` then forecasts that net, and `Initialization.apply` draws from them once there is a real one.

    Args:
        model: any module, real or on the meta device.
        inputs: as for `predict`; only their law is used.
        loss: as for `predict`.
        criterion: "both" keeps signal, gradient and the angles between samples, by scale and bias; "forward" keeps
            E[z^2] at 1, "backward" the gradient, both by scale alone.
        seed: of the generator that draws the weights; the global random state is not touched.
        dry: tell what would change, and change nothing.

    Returns:
        The changes, parameter by parameter. Frozen and recurrent parameters, embeddings, normalisers, and branches
        that begin at zero are left alone.

    Raises:
        InputError: no such criterion.
        RecordError: the model could not be run on shapes.
    """
    if criterion not in CRITERIA:
        raise InputError(f"initialize by {criterion!r}", "there is no such criterion", f"Choose one of {CRITERIA}")
    return solve(trace(model, inputs, loss=loss), criterion=criterion, seed=seed, dry=dry)


def solve(tape: Tape, *, criterion: str = "both", seed: int = 0, dry: bool = False) -> Initialization:
    """`initialize` for a step that is already recorded: its parameters are changed in place."""
    solver = Solver(tape, criterion, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        kept = [(p, _snapshot(p)) for v in tape.value_of(Kind.PARAMETER) if (p := v.content) is not None]
        try:
            Sweep(tape, {}, before=solver.visit).forward()
        finally:
            for content, before in kept if dry else ():
                _restore(content, before)
    names = {change.name for change in solver.changes}
    left = tuple(v.name for v in tape.value_of(Kind.PARAMETER) if v.name and v.name not in names)
    reasons = tuple((name, solver.reasons.get(name, "no layer's weight or bias")) for name in left)
    return Initialization(tuple(solver.changes), left, reasons, seed)


class Solver:
    """Sets the parameters of each layer when the sweep arrives at it.

    Args:
        tape: the step.
        criterion: one of `CRITERIA`.
        generator: source of the draws.
    """

    def __init__(self, tape: Tape, criterion: str, generator: torch.Generator) -> None:
        self.tape, self.criterion, self.generator = tape, criterion, generator
        found = layers(tape, {v.id: Law(0.0, 1.0) for v in tape.value_of(Kind.PARAMETER)})
        self.layers = {layer.entry.index: layer for layer in found}
        self.ends = {layer.entry.index for layer in found if joins(tape, layer)}
        self.series = series(tape)
        self.tables = indexed(tape)
        self.changes: list[Change] = []
        self.reasons: dict[str, str] = {}
        self.done: set[int] = set()
        self.points: dict[tuple[object, ...], Point | None] = {}

    def visit(self, sweep: Sweep, entry: Entry) -> None:
        """Draw the weights of a layer, predict its output, and scale them."""
        layer = self.layers.get(entry.index)
        if layer is None or layer.weight.id in self.done:
            return
        self.done.add(layer.weight.id)
        reason = self._kept(layer)
        if reason is not None:
            self.reasons[layer.weight.name or ""] = reason
            return
        content, bias = layer.weight.content, _bias(self.tape, layer)
        assert content is not None
        values = [v for v in (layer.weight, bias) if v is not None]
        backups = [(v, _snapshot(v.content)) for v in values if v.content is not None]
        plan = self._plan(layer, bias is not None and not content.is_meta)
        self._fill(sweep, layer, plan)
        if plan is not None:
            _level(sweep, layer.entry.inputs[0])
        if bias is not None:
            _set(bias, 0.0)
        output = sweep.trial(entry)
        energy = float(output.second_moment.mean()) if output is not None else 0.0
        if output is None or not math.isfinite(energy) or energy <= 0:
            for value, backup in backups:
                assert value.content is not None
                _restore(value.content, backup)
            self.reasons[layer.weight.name or ""] = "the law of its output is unknown"
            return
        scale = self._scale(sweep, layer, output, plan)
        _rescale(layer.weight, scale)
        if bias is not None and plan is not None and bias.content is not None and not bias.content.is_meta:
            bias.content.copy_(plan.mean - scale * _channel_means(output, layer, bias))
        self.changes += [_change(v, before, layer) for v, before in backups]

    def _kept(self, layer: Layer) -> str | None:
        """Why a weight is to stay as it is, if it is."""
        content = layer.weight.content
        if content is None or not layer.weight.trained:
            return "it is frozen"
        if layer.weight.id in self.tables:
            return "an embedding shares it"
        if layer.entry.index in self.ends and not content.is_meta and not bool(content.any()):
            return "its branch begins at zero"
        return None

    def _plan(self, layer: Layer, biased: bool) -> Point | None:
        """Mean and variance that a layer's output should have; None where only its scale counts."""
        if self.criterion != "both" or layer.head or layer.normalised or layer.branch:
            return None
        assert layer.weight.content is not None
        activation = ahead(self.tape, layer)
        if activation is None or layer.weight.content.is_meta:
            return None
        depth = self.series.get(activation.index, 1)
        key = (activation.function, repr(activation.args[1:]), repr(activation.kwargs), depth, biased)
        if key not in self.points:
            self.points[key] = working_point(activation, depth, biased)
        return self.points[key]

    def _fill(self, sweep: Sweep, layer: Layer, plan: Point | None) -> None:
        """Draw a weight with E[w^2] = 1 / fan-in."""
        content = layer.weight.content
        assert content is not None
        if content.is_meta:
            note(content, Draw(0.0, 1.0 / layer.fan_in))
            return
        mean = self._input_mean(sweep, layer) if self.criterion == "both" else None
        content.copy_(draw(layer, content.shape, mean, plan is not None and _isometric(layer), self.generator))

    def _input_mean(self, sweep: Sweep, layer: Layer) -> Tensor | None:
        """Predicted mean of each input channel behind an activation."""
        state = sweep.states.get(layer.entry.inputs[0])
        return _by_channel(state, layer) if state is not None and layer.activation is not None else None

    def _scale(self, sweep: Sweep, layer: Layer, output: State, plan: Point | None) -> float:
        """Scale of the weights."""
        spread, level = float(output.variance.mean()), float(output.mean.square().mean())
        forward = 1.0 / math.sqrt(spread + level)
        if layer.head:
            return HEAD * forward
        end = layer.entry.index in self.ends
        share = 1.0 / math.sqrt(len(self.ends)) if end else 1.0
        if plan is not None and spread > 0:
            return share * math.sqrt(plan.variance / spread)
        slope = _slope(sweep, layer.activation) if layer.activation is not None else None
        if end or layer.normalised or layer.branch or slope is None or self.criterion == "forward":
            return share * forward
        backward = 1.0 / math.sqrt(slope)
        return backward if self.criterion == "backward" else min(backward, forward)


def _level(sweep: Sweep, number: int) -> None:
    """Take the samples as equally loud: the law of amplitudes lets every layer add to their spread.

    That is so for independent weights. Orthogonal ones behind nearly straight activations keep each sample's norm.
    """
    state = sweep.states.get(number)
    if state is not None and state.amplitude is not None:
        sweep.states[number] = replace(state, amplitude=None, memory=0.0, gain=None, latent=None, nodes=None)


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


def _isometric(layer: Layer) -> bool:
    """Whether a convolution keeps its resolution and reads all channels, with a kernel that has a centre."""
    entry = layer.entry
    if not entry.op.startswith("conv") or entry.op.startswith("conv_transpose"):
        return False
    shape = layer.weight.shape
    stride, padding = entry.argument(3, "stride", 1), entry.argument(4, "padding", 0)
    sizes = [n - 1 for n in shape[2:]]
    padded = padding == "same" or [2 * p for p in _each(padding, len(sizes))] == sizes
    plain = all(s == 1 for s in _each(stride, len(sizes))) and entry.argument(6, "groups", 1) == 1
    return padded and plain and all(n % 2 == 1 for n in shape[2:]) and shape[1] * 2 > shape[0]


def _each(value: Any, rank: int) -> list[Any]:
    return [value] * rank if not isinstance(value, (tuple, list)) else list(value) * (rank if len(value) == 1 else 1)


def _channel_means(output: State, layer: Layer, bias: Value) -> Tensor:
    """Predicted mean of each output channel, averaged over sites, as its bias wants it."""
    assert bias.content is not None
    return _by_channel(output, layer).to(bias.content.device, bias.content.dtype)


def _by_channel(state: State, layer: Layer) -> Tensor:
    mean = state.mean.expand(state.shape)
    channel = 1 if layer.entry.op.startswith("conv") and mean.ndim > 2 else mean.ndim - 1
    others = [d for d in range(mean.ndim) if d != channel]
    return mean.mean(others) if others else mean


def _bias(tape: Tape, layer: Layer) -> Value | None:
    """The layer's bias, if it is free."""
    for number in layer.entry.inputs:
        value = tape.values[origin(tape.makers, number, VIEWS)]
        if value.kind is Kind.PARAMETER and len(value.shape) == 1 and value.trained and value.content is not None:
            return value
    return None


# -- parameters, real or laws --------------------------------------------------------------------


def _snapshot(content: Tensor | None) -> Tensor | Draw | None:
    if content is None:
        return None
    return draw_of(content) if content.is_meta else content.clone()


def _restore(content: Tensor, before: Tensor | Draw | None) -> None:
    if isinstance(before, Draw):
        note(content, before)
    elif before is not None:
        content.copy_(before)


def _set(value: Value, number: float) -> None:
    assert value.content is not None
    if value.content.is_meta:
        note(value.content, Draw(number))
    else:
        value.content.fill_(number)


def _rescale(value: Value, scale: float) -> None:
    assert value.content is not None
    if value.content.is_meta:
        law = draw_of(value.content)
        assert law is not None
        note(value.content, Draw(law.mean * scale, law.variance * scale**2, law.kurtosis))
    else:
        value.content.mul_(scale)


def _change(value: Value, before: Tensor | Draw | None, layer: Layer) -> Change:
    assert value.content is not None
    after = _snapshot(value.content)
    mean, std = _moments(after)
    matrix = len(value.shape) == 2 and layer.entry.op == "linear"
    return Change(value.name or "", math.hypot(*_moments(before)), math.hypot(mean, std), mean, std, matrix)


def _moments(held: Tensor | Draw | None) -> tuple[float, float]:
    """Mean and standard deviation of a parameter's elements."""
    if isinstance(held, Draw):
        return held.mean, math.sqrt(held.variance)
    if held is None or not held.numel():
        return 0.0, 0.0
    x = held.double()
    return float(x.mean()), float(x.var(correction=0).sqrt())


__all__ = ["CRITERIA", "Solver", "initialize", "solve"]
