"""Recurrent layers: laws unrolled over time with the layer's own weights.

The input of a gate is a sum over many hidden units and therefore Gaussian; gates and states are products of laws.
What a sample's time steps share adds up coherently along a cell's own memory, what they do not adds up in variance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tightrope.roles import Axes, Axis, Role
from tightrope.rules.cells import CELLS, Cell, stripped
from tightrope.rules.linear import bias_state, mapped, outer, total
from tightrope.rules.registry import Call, Gradients, rule
from tightrope.rules.state import State
from tightrope.tape.tape import Ref


@dataclass(frozen=True)
class _Layer:
    """One direction of one layer: ids of its weights, biases and projection on the tape."""

    input: int
    hidden: int
    biases: tuple[int, ...]
    projection: int | None
    reverse: bool


@dataclass
class _Run:
    """What the way forward leaves for the way back: states before each step and what the cell kept."""

    x: State
    before: list[State]
    kept: list[Any]


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(call: Call) -> list[State]:
    """Output and last states of a stack of recurrent layers.

    Raises:
        NotImplementedError: packed sequences.
    """
    layers, time = _layers(call), _time(call)
    cell = CELLS[call.entry.op]
    steps = call.value(call.argument(0, "input")).shape[time]
    x = _by_time(call.input, time)
    last: list[list[State]] = []
    runs: list[list[_Run]] = []
    for level in layers:
        outputs, states = [], []
        for layer in level:
            start = _start(call, len(last))
            hidden, run = _unroll(call, cell, layer, x, steps, start)
            outputs.append(hidden)
            states.append(run)
            last.append(_last(run))
        runs.append(states)
        x = _joined(outputs)
        if len(runs) < len(layers):
            x = _dropped(x, float(call.entry.args[5]) if call.entry.args[6] else 0.0)
    call.saved.update(runs=runs, layers=layers)
    out = _shaped(x, call.axes[0], time)
    ends = [_ends([item[i] for item in last], call.axes[1 + i]) for i in range(len(last[0]))]
    return [out, *ends]


@recurrent.gradient
def _(call: Call, upstream: State | list[State | None]) -> Gradients:
    given = upstream if isinstance(upstream, list) else [upstream]
    cell, time = CELLS[call.entry.op], _time(call)
    steps = call.value(call.argument(0, "input")).shape[time]
    runs: list[list[_Run]] = call.saved["runs"]
    layers: list[list[_Layer]] = call.saved["layers"]
    count = len(layers) * len(layers[0])
    ends = [_split_ends(state, count) for state in given[1:]]
    found: Gradients = {}
    flowing = None if given[0] is None else _settled(_by_time(given[0], time))
    for depth in reversed(range(len(layers))):
        parts = []
        for place, (layer, run) in enumerate(zip(layers[depth], runs[depth], strict=True)):
            number = depth * len(layers[0]) + place
            own = None if flowing is None else _part(flowing, place, len(layers[0]))
            tail = [None if state is None else state[number] for state in ends]
            parts.append(_back(call, cell, layer, run, own, tail, steps, found))
        flowing = parts[0]
        for other in parts[1:]:
            flowing = flowing.plus(other)
        if depth > 0:
            rate = float(call.entry.args[5]) if call.entry.args[6] else 0.0
            flowing = _dropped(flowing, rate)
    source = call.id(0, "input")
    if source is not None and flowing is not None:
        found[source] = _shaped(flowing, call.input.axes, time)
    return found


# -- one layer -----------------------------------------------------------------------------------


def _unroll(call: Call, cell: Cell, layer: _Layer, x: State, steps: int, start: list[State]) -> tuple[State, _Run]:
    """The hidden states of one layer over time, and what its way back needs."""
    weight, recurrent_weight = call.states[layer.input], call.states[layer.hidden]
    gates = (Axis(Role.CHANNEL, weight.axes.shape[0]),)
    driven = mapped(x, weight, Axes((x.axes.dims[0], x.axes.dims[1], gates)))
    if layer.biases:
        driven = driven.plus(bias_state(call.states[layer.biases[0]], driven))
    run = _Run(x, [], [])
    state, axes = start, Axes((x.axes.dims[0], gates))
    outputs: list[State] = []
    for t in reversed(range(steps)) if layer.reverse else range(steps):
        fed = mapped(state[0], recurrent_weight, axes)
        if layer.biases:
            fed = fed.plus(bias_state(call.states[layer.biases[1]], fed))
        run.before.append(state[0])
        state, kept = cell.forward(stripped(_at(driven, t, axes)), stripped(fed), state)
        if layer.projection is not None:
            projected = call.states[layer.projection]
            kept = (kept, state[0])
            own = Axes((axes.dims[0], (Axis(Role.CHANNEL, projected.axes.shape[0]),)))
            state = [stripped(mapped(state[0], projected, own)), *state[1:]]
        run.kept.append(kept)
        outputs.append(state[0])
    run.before.append(state[0])
    run.kept.append(state)
    return _stacked(outputs[::-1] if layer.reverse else outputs, steps), run


def _back(
    call: Call, cell: Cell, layer: _Layer, run: _Run, flowing: State | None, tail: list[State | None], steps: int,
    found: Gradients,
) -> State:  # fmt: skip
    """The gradient of one layer's input; those of its parameters are added to `found`."""
    recurrent_weight, weight = call.states[layer.hidden], call.states[layer.input]
    back = _turned(recurrent_weight)
    order = list(reversed(range(steps)) if layer.reverse else range(steps))
    like = run.before[-1]
    empty = like.scaled(0.0)
    hidden = tail[0] if tail and tail[0] is not None else empty
    memory = (tail[1] if len(tail) > 1 and tail[1] is not None else None) or run.kept[-1][-1].scaled(0.0)
    drives: list[State] = [empty] * steps
    feeds: list[State] = [empty] * steps
    for position in reversed(range(steps)):
        t = order[position]
        kept = run.kept[position]
        if flowing is not None:
            hidden = hidden.plus(stripped(_at(flowing, t, like.axes)))
        if layer.projection is not None:
            kept, wide = kept
            _add(found, layer.projection, outer(wide, hidden, hidden.axes, call.states[layer.projection]))
            hidden = stripped(mapped(hidden, _turned(call.states[layer.projection]), wide.axes))
        driven, fed, direct, memory = cell.backward(kept, hidden, memory)
        drives[t], feeds[t] = driven, fed
        hidden = stripped(mapped(fed, back, run.before[position].axes))
        if direct is not None:
            hidden = hidden.plus(direct)
    order_before: list[State] = [empty] * steps
    for position, t in enumerate(order):
        order_before[t] = run.before[position]
    along, fed_along = _stacked(drives, steps), _stacked(feeds, steps)
    _add(found, layer.input, outer(run.x, along, along.axes, weight))
    _add(found, layer.hidden, outer(_stacked(order_before, steps), fed_along, fed_along.axes, recurrent_weight))
    for bias, gradient in zip(layer.biases, (along, fed_along), strict=False):
        _add(found, bias, total(gradient, gradient.axes, call.states[bias]))
    return mapped(along, _turned(weight), run.x.axes)


def _add(found: Gradients, number: int, state: State) -> None:
    found[number] = state if number not in found else found[number].plus(state)


def _turned(weight: State) -> State:
    return weight.map(lambda f: f.transpose(-1, -2), Axes(weight.axes.dims[::-1]))


# -- arguments -----------------------------------------------------------------------------------


def _layers(call: Call) -> list[list[_Layer]]:
    """The stack's weights, layer by layer and direction by direction.

    Raises:
        NotImplementedError: packed sequences.
    """
    args = call.entry.args
    if isinstance(args[1], Ref) and isinstance(args[2], (Ref, tuple, list)) and isinstance(args[3], (tuple, list)):
        raise NotImplementedError(f"{call.entry.op} of a packed sequence")
    weights = [ref.id for ref in args[2]]
    biased, depth, both = bool(args[3]), int(args[4]), bool(args[7])
    each = len(weights) // (depth * (2 if both else 1))
    layers: list[list[_Layer]] = []
    for start in range(0, len(weights), each):
        own = weights[start : start + each]
        biases = tuple(own[2:4]) if biased else ()
        rest = own[2 + len(biases) :]
        made = _Layer(own[0], own[1], biases, rest[0] if rest else None, both and (start // each) % 2 == 1)
        if both and (start // each) % 2 == 1:
            layers[-1].append(made)
        else:
            layers.append([made])
    return layers


def _time(call: Call) -> int:
    shape = call.value(call.argument(0, "input")).shape
    return 1 if len(shape) == 3 and call.entry.args[8] is True else 0


def _start(call: Call, place: int) -> list[State]:
    """The states before the first step of a layer."""
    given = call.entry.args[1]
    refs = [given] if isinstance(given, Ref) else list(given)
    made = []
    for ref in refs:
        whole = call.states[ref.id]
        width = call.value(ref).shape[-1]
        samples = next((dim for dim in whole.axes.dims[:-1] if any(a.role is Role.SAMPLE for a in dim)), ())
        rank = whole.mean.ndim
        index = (place,) if rank == 3 else ()

        def take(f: Tensor, index: tuple[int, ...] = index) -> Tensor:
            if index:
                f = f[index[0] if f.shape[0] > 1 else 0]
            return f.reshape(1, -1) if f.ndim == 1 or f.shape[0] == 1 else f.mean(0, keepdim=True)

        made.append(stripped(whole.map(take, Axes((samples, (Axis(Role.CHANNEL, width),))))))
    return made


# -- time ----------------------------------------------------------------------------------------


def _by_time(x: State, time: int) -> State:
    """A state as (sample, time, channel), sample axis of length 1."""
    if len(x.axes.dims) == 2:
        return stripped(x.map(lambda f: f.unsqueeze(0), Axes(((), *x.axes.dims))))
    if time == 1:
        return stripped(x)
    return stripped(x.map(lambda f: f.transpose(0, 1), Axes((x.axes.dims[1], x.axes.dims[0], x.axes.dims[2]))))


def _shaped(x: State, axes: Axes, time: int) -> State:
    """The inverse of `_by_time`."""
    if len(axes.dims) == 2:
        return x.map(lambda f: f.squeeze(0), axes)
    return x.map(lambda f: f if time == 1 else f.transpose(0, 1), axes)


def _at(x: State, t: int, axes: Axes) -> State:
    """One time step: what its sites have for themselves is now the sample's own."""
    return x.map(lambda f: f[:, t if f.shape[1] > 1 else 0], axes)


def _settled(gradient: State) -> State:
    """A gradient of which a sample's time steps share only what reaches several of them.

    The part (sum_t sqrt(v_t))^2 / (T sum_t v_t) of the shared variance v is shared; what enters at one step alone is
    that step's own.
    """
    steps, v = gradient.shape[1], gradient.sample.clamp(min=0)
    if v.shape[1] == 1 or not bool((v > 0).any()):
        return gradient
    spread = v.sqrt().sum(1, keepdim=True).square() / (steps * v.sum(1, keepdim=True).clamp(min=1e-300))
    share = ((steps * spread - 1) / (steps - 1)).clamp(0, 1)
    return replace(gradient, sample=v * share, residual=gradient.residual + v * (1 - share))


def _stacked(steps: list[State], count: int) -> State:
    """States of single steps along time."""
    dims = steps[0].axes.dims
    axes = Axes((dims[0], (Axis(Role.SITE, count),) if count > 1 else (), dims[1]))
    fields = []
    for i in range(5):
        parts = torch.broadcast_tensors(*(step.fields[i] for step in steps))
        fields.append(torch.stack(parts, 1))
    return State.from_fields(axes, fields, width=max(step.width for step in steps))


def _joined(outputs: list[State]) -> State:
    """Both directions side by side."""
    if len(outputs) == 1:
        return outputs[0]
    width = outputs[0].axes.shape[-1]
    axes = Axes((*outputs[0].axes.dims[:2], (Axis(Role.CHANNEL, 2 * width),)))
    fields = []
    for i in range(5):
        parts = [state.fields[i] for state in outputs]
        lead = torch.broadcast_shapes(*(f.shape[:-1] for f in parts))
        fields.append(torch.cat([f.expand(*lead, width) for f in parts], -1))
    return State.from_fields(axes, fields, width=outputs[0].width)


def _part(x: State, place: int, count: int) -> State:
    """The gradient of one direction's output."""
    width = x.axes.shape[-1] // count
    axes = Axes((*x.axes.dims[:2], (Axis(Role.CHANNEL, width),)))
    if count == 1:
        return replace(x, axes=axes)
    return x.map(lambda f: f if f.shape[-1] == 1 else f[..., place * width : (place + 1) * width], axes)


def _dropped(x: State, rate: float) -> State:
    """Dropout between layers."""
    if rate == 0:
        return x
    return replace(x, residual=x.residual + x.second_moment * rate / max(1 - rate, 1e-9))


def _last(run: _Run) -> list[State]:
    found: list[State] = run.kept[-1]
    return found


def _ends(states: list[State], axes: Axes) -> State:
    """Last states of all layers, (layer, sample, channel)."""
    fields = []
    for i in range(5):
        parts = torch.broadcast_tensors(*(state.fields[i] for state in states))
        fields.append(torch.stack(parts, 0))
    made = State.from_fields(axes, (f if len(axes.dims) == 3 else f.squeeze(1) for f in fields), width=states[0].width)
    return made


def _split_ends(state: State | None, count: int) -> list[State] | None:
    if state is None:
        return None
    rank = len(state.axes.dims)
    samples = state.axes.dims[1] if rank == 3 else ()
    axes = Axes((samples, state.axes.dims[-1]))
    made = []
    for i in range(count):
        own = stripped(state.map(lambda f, i=i: f[i if f.shape[0] > 1 else 0].reshape(1, -1), axes))
        made.append(replace(own, sample=own.sample * 0, residual=own.residual + own.sample))
    return made
