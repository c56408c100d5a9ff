"""Packed sequences: samples of different lengths, of which each step holds those that are not over yet.

A recurrent layer's law at a step is that of the samples that reach it. Rows of the packed tensor are a mixture of the
steps, a padded tensor is one of what is read and of padding. The law over (step, sample) goes from call to call beside
the tensor's own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tightrope.roles import Axes, Axis, Role
from tightrope.rules.registry import Call, Gradients, rule
from tightrope.rules.state import DTYPE, State


@dataclass(frozen=True)
class Packed:
    """What the rows of a packed tensor are made of.

    Attributes:
        state: the law over (sample, step, channel), of the samples that reach a step.
        alive: share of the samples that reach each step, (step,).
        samples: how many there are.
    """

    state: State
    alive: Tensor
    samples: int

    @property
    def steps(self) -> int:
        """The longest sample's length."""
        return len(self.alive)

    @property
    def over(self) -> Tensor:
        """Share of the samples whose last step each one is, (step,)."""
        return self.alive - torch.cat([self.alive[1:], self.alive.new_zeros(1)])

    def holding(self, state: State) -> Packed:
        """The same samples with another law."""
        return replace(self, state=state)

    def axes(self, width: int) -> Axes:
        """Of (sample, step, channel)."""
        roles = ((Role.SAMPLE, self.samples), (Role.SITE, self.steps), (Role.CHANNEL, width))
        return Axes(tuple((Axis(*pair),) if pair[1] != 1 else () for pair in roles))

    def rows(self, axes: Axes) -> State:
        """The law of the packed tensor, (row, channel)."""
        return mixture(self.state, self.alive, axes)

    def padded(self) -> State:
        """The law where samples that are over count as zero."""
        a = self.alive.reshape(1, -1, 1)
        x = self.state
        spread = x.mean.square() * a * (1 - a)
        thin = {name: getattr(x, name) * a.square() for name in ("constant", "sample", "site")}
        rest = x.variance * a - sum(thin.values(), torch.zeros((), dtype=DTYPE)) + spread
        return State(x.axes, x.mean * a, **thin, residual=rest.clamp(min=0), width=x.width)


def mixture(state: State, weight: Tensor, axes: Axes) -> State:
    """The law of (row, channel) where rows are steps in these proportions, of a law over (1, step, channel)."""
    share = (weight / weight.sum()).reshape(1, -1, 1)
    width = max(f.shape[-1] for f in state.fields)
    full = [f.expand(1, share.shape[1], width) for f in (state.mean, state.constant, state.second_moment)]
    mean, constant, second = ((f * share).sum(1) for f in full)
    return State.of(axes, mean, constant=constant, sample=second - mean.square() - constant, width=state.width)


def packed_of(call: Call, number: int) -> Packed:
    """What a packed tensor is made of.

    Raises:
        NotImplementedError: it did not come from a padded tensor or a recurrent layer directly.
    """
    found = call.latents.get(("packed", number))
    if found is None:
        raise NotImplementedError("a packed sequence that was changed since it was packed")
    assert isinstance(found, Packed)
    return found


def turned(x: State, batch_first: bool, axes: Axes) -> State:
    """Between (sample, step, channel) and the order of the padded tensor."""
    return replace(x, axes=axes) if batch_first else x.map(lambda f: f.transpose(0, 1), axes)


@rule("_pack_padded_sequence")
def pack(call: Call) -> State:
    """Rows of the samples that reach a step, step after step."""
    lengths = call.content(1, "lengths")
    if lengths is None:
        raise NotImplementedError("lengths that are not known")
    steps = torch.arange(int(lengths.max()))
    alive = (lengths.cpu()[:, None] > steps).to(DTYPE).mean(0)
    x, first = call.input, bool(call.argument(2, "batch_first"))
    source = x.axes.dims if first else (x.axes.dims[1], x.axes.dims[0], x.axes.dims[2])
    whole = turned(State(x.axes, *x.fields, width=x.width), first, Axes(source))
    whole = whole.map(lambda f: f[:, : len(alive)] if f.ndim == 3 else f)
    found = Packed(whole, alive, len(lengths))
    found = found.holding(replace(whole, axes=found.axes(x.shape[-1])))
    call.latents["packed", call.entry.outputs[0]] = found
    return found.rows(call.axes[0])


@pack.gradient
def _(call: Call, upstream: State | list[State | None]) -> Gradients:
    number, first = call.id(0, "input"), bool(call.argument(2, "batch_first"))
    found = call.latents.get(("packed gradient", call.entry.outputs[0]))
    if number is None or found is None:
        raise NotImplementedError("the gradient of a packed sequence that was changed since it was packed")
    axes = call.states[number].axes
    length = axes.shape[1 if first else 0]

    def longer(f: Tensor) -> Tensor:
        more = length - f.shape[1]
        return f if f.shape[1] == 1 or not more else torch.cat([f, f.new_zeros(1, more, f.shape[2])], 1)

    return {number: turned(found.map(longer), first, axes)}


@rule("_pad_packed_sequence")
def pad(call: Call) -> State:
    """What was packed, and zeros behind each sample's end."""
    found = packed_of(call, call.entry.inputs[0])
    return turned(found.padded(), bool(call.argument(2, "batch_first")), call.axes[0])


@pad.gradient
def _(call: Call, upstream: State | list[State | None]) -> Gradients:
    given = upstream[0] if isinstance(upstream, list) else upstream
    assert given is not None
    number = call.entry.inputs[0]
    found = packed_of(call, number)
    first = bool(call.argument(2, "batch_first"))
    whole = turned(State(given.axes, *given.fields), first, found.state.axes)
    call.latents["packed gradient", number] = whole
    return {number: found.holding(whole).rows(call.states[number].axes)}


__all__ = ["Packed", "mixture", "packed_of"]
