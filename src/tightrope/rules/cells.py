"""One step of a recurrent cell, forward and backward, on the laws of its gates.

Gates read different rows of the weights and are independent of each other and of the cell's own memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tightrope.roles import Axes, Axis, Role
from tightrope.rules.expectation import latent, product
from tightrope.rules.state import State

Kept = Any
Forward = Callable[[State, State, list[State]], tuple[list[State], Kept]]
Backward = Callable[[Kept, State, State], tuple[State, State, "State | None", State]]


@dataclass(frozen=True)
class Cell:
    """A recurrent cell.

    Attributes:
        gates: how many blocks of rows its weights have.
        forward: (input's part of the gates, hidden's part, states before) to (states after, what to keep).
        backward: (kept, gradient of the hidden state, gradient of the memory) to gradients of the input's part, of
            the hidden's part, of the hidden state before on the direct way, of the memory before.
    """

    gates: int
    forward: Forward
    backward: Backward


@dataclass(frozen=True)
class Gate:
    """A function of a gate's input and its derivative."""

    value: State
    slope: State


def stripped(x: State) -> State:
    """The law without what only rows of few channels carry; what varies within a sample counts as its own."""
    return State(x.axes, *x.fields, width=x.width)


def _gate(z: State, function: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor], *kinks: float) -> Gate:
    variable = latent(stripped(z), kinks)
    return Gate(stripped(variable.state(function(variable.z))), stripped(variable.state(slope(variable.z))))


def _sigmoid(z: State) -> Gate:
    return _gate(z, torch.sigmoid, lambda x: torch.sigmoid(x) * torch.sigmoid(-x))


def _tanh(z: State) -> Gate:
    return _gate(z, torch.tanh, lambda x: 1 - x.tanh().square())


def _relu(z: State) -> Gate:
    return _gate(z, torch.relu, lambda x: (x > 0).to(x.dtype), 0.0)


def _blocks(x: State, count: int) -> list[State]:
    """The gates' blocks of channels."""
    width = x.axes.shape[-1] // count
    axes = Axes((*x.axes.dims[:-1], (Axis(Role.CHANNEL, width),)))

    def block(i: int) -> Callable[[Tensor], Tensor]:
        return lambda f: f if f.shape[-1] == 1 else f[..., i * width : (i + 1) * width]

    return [x.map(block(i), axes) for i in range(count)]


def _merged(blocks: list[State]) -> State:
    """Blocks side by side."""
    width = blocks[0].axes.shape[-1]
    axes = Axes((*blocks[0].axes.dims[:-1], (Axis(Role.CHANNEL, len(blocks) * width),)))
    fields = []
    for i in range(5):
        parts = [b.fields[i] for b in blocks]
        lead = torch.broadcast_shapes(*(f.shape[:-1] for f in parts))
        alike = all(f.shape[-1] == 1 for f in parts) and all(bool((f == parts[0]).all()) for f in parts)
        fields.append(parts[0] if alike else torch.cat([f.expand(*lead, width) for f in parts], -1))
    return State.from_fields(axes, fields, width=blocks[0].width)


def coherent(left: State, right: State) -> State:
    """The sum of two tensors that follow a sample's shared part alike."""
    made = left.plus(right)

    def together(a: Tensor, b: Tensor) -> Tensor:
        return (a.clamp(min=0).sqrt() + b.clamp(min=0).sqrt()).square()

    return replace(made, constant=together(left.constant, right.constant), sample=together(left.sample, right.sample))


# -- LSTM ----------------------------------------------------------------------------------------


def _lstm(driven: State, fed: State, states: list[State]) -> tuple[list[State], Kept]:
    """c' = f c + i g, h' = o tanh(c')."""
    i, f, g, o = (
        kind(z) for kind, z in zip((_sigmoid, _sigmoid, _tanh, _sigmoid), _blocks(driven.plus(fed), 4), strict=True)
    )
    before = states[1]
    memory = stripped(coherent(product(f.value, before), product(i.value, g.value)))
    out = _tanh(memory)
    hidden = stripped(product(o.value, out.value))
    return [hidden, memory], (i, f, g, o, out, before)


def _lstm_back(kept: Kept, hidden: State, memory: State) -> tuple[State, State, State | None, State]:
    i, f, g, o, out, before = kept
    into = coherent(product(product(hidden, o.value), out.slope), memory)
    gates = [
        product(product(into, g.value), i.slope), product(product(into, before), f.slope),
        product(product(into, i.value), g.slope), product(product(hidden, out.value), o.slope),
    ]  # fmt: skip
    made = stripped(_merged(gates))
    return made, made, None, stripped(product(into, f.value))


# -- GRU -----------------------------------------------------------------------------------------


def _gru(driven: State, fed: State, states: list[State]) -> tuple[list[State], Kept]:
    """h' = (1 - z) n + z h with n = tanh(x_n + r h_n)."""
    (xr, xz, xn), (hr, hz, hn) = _blocks(driven, 3), _blocks(fed, 3)
    r, z = _sigmoid(xr.plus(hr)), _sigmoid(xz.plus(hz))
    n = _tanh(xn.plus(product(r.value, hn)))
    before = states[0]
    rest = replace(z.value, mean=1 - z.value.mean)
    made = coherent(product(rest, n.value), product(z.value, before))
    # One gate weighs both: Cov((1 - z) n, z h) = -Var(z) E[n] E[h].
    tied = 2 * n.value.mean * before.mean
    parts = {
        k: (getattr(made, k) - tied * getattr(z.value, k)).clamp(min=0)
        for k in ("constant", "sample", "site", "residual")
    }
    hidden = stripped(replace(made, **parts))
    return [hidden], (r, z, n, hn, before, rest)


def _gru_back(kept: Kept, hidden: State, memory: State) -> tuple[State, State, State | None, State]:
    r, z, n, hn, before, rest = kept
    into = product(product(hidden, rest), n.slope)
    update = product(product(hidden, before.plus(n.value.scaled(-1.0))), z.slope)
    reset = product(product(into, hn), r.slope)
    driven = stripped(_merged([reset, update, into]))
    fed = stripped(_merged([reset, update, product(into, r.value)]))
    return driven, fed, stripped(product(hidden, z.value)), memory


# -- plain ---------------------------------------------------------------------------------------


def _plain(kind: Callable[[State], Gate]) -> Cell:
    def forward(driven: State, fed: State, states: list[State]) -> tuple[list[State], Kept]:
        made = kind(driven.plus(fed))
        return [made.value], made

    def backward(kept: Kept, hidden: State, memory: State) -> tuple[State, State, State | None, State]:
        made = stripped(product(hidden, kept.slope))
        return made, made, None, memory

    return Cell(1, forward, backward)


CELLS = {
    "lstm": Cell(4, _lstm, _lstm_back),
    "gru": Cell(3, _gru, _gru_back),
    "rnn_tanh": _plain(_tanh),
    "rnn_relu": _plain(_relu),
}
