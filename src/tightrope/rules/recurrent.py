"""Recurrent layers: laws unrolled over time with the layer's own weights.

The input of a gate is a sum over many hidden units and therefore Gaussian; gates and states are products of laws.
Steps of one sample are correlated, and the covariance of all pairs is carried (see `course`): it says what a memory
gathers, what a layer above reads, and how the gradients of weights and biases, the same at each step, add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tightrope.roles import Axes, Role
from tightrope.rules.course import TINY, Course, Rows, Through, levelled, side_by_side, summed
from tightrope.rules.packed import packed_of
from tightrope.rules.registry import Call, Gradients, rule
from tightrope.rules.state import DTYPE, State
from tightrope.rules.unrolled import Unrolled, Weights, turned
from tightrope.tape.tape import Ref


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(call: Call) -> list[State]:
    """Output and last states of a stack of recurrent layers.

    Raises:
        NotImplementedError: a packed sequence that was changed since it was packed.
    """
    layers = _layers(call)
    packed = packed_of(call, call.entry.inputs[0]) if _shift(call) else None
    drawn = not all(call.states[n].exact for level in layers for w in level for n in (w.input, w.hidden))
    x = course_of(call.input if packed is None else packed.state, drawn=drawn, steps=_steps(call))
    runs: list[list[Unrolled]] = []
    for level in layers:
        done: list[Unrolled] = []
        for weights in level:
            place = sum(map(len, runs)) + len(done)
            start = [start_of(call, ref, place, drawn) for ref in _starts(call)]
            levels = max(len(course.rho) for course in (x, *start))
            x, start = levelled(x, levels), [levelled(course, levels) for course in start]
            run = Unrolled(call.entry.op, weights, call.states, start)
            own = x.flipped() if weights.reverse else x
            for _ in range(len(x)):
                run.step(own)
            done.append(run)
        runs.append(done)
        x = _read(done)
        if len(runs) < len(layers):
            x = x.thinned(_rate(call))
    call.saved.update(runs=runs, drawn=drawn)
    width = call.input.width + 2 / max(call.states[layers[0][0].hidden].shape[-1], 1)
    if packed is None:
        out = state_of(x, call.axes[0], width)
    else:
        packed = packed.holding(state_of(x, packed.axes(call.axes[0].shape[-1]), width))
        call.latents["packed", call.entry.outputs[0]] = packed
        out = packed.rows(call.axes[0])
    every = [run for done in runs for run in done]
    ends = [[run.hidden for run in every]]
    if call.entry.op == "lstm":
        ends.append([run.memory() for run in every])
    shares = [None if packed is None or run.weights.reverse else packed.over for run in every]
    return [out, *(_ends(c, axes, width, shares) for c, axes in zip(ends, call.axes[1:], strict=True))]


@recurrent.gradient
def _(call: Call, upstream: State | list[State | None]) -> Gradients:
    given: list[State | None] = list(upstream) if isinstance(upstream, list) else [upstream]
    runs: list[list[Unrolled]] = call.saved["runs"]
    drawn: bool = call.saved["drawn"]
    steps, both = _steps(call), len(runs[0])
    found: Gradients = {}
    packed = packed_of(call, call.entry.inputs[0]) if _shift(call) else None
    if packed is not None:
        given[0] = call.latents.get(("packed gradient", call.entry.outputs[0]), given[0])
    flowing = None if given[0] is None else course_of(given[0], drawn=drawn, steps=steps)
    if packed is not None and flowing is not None:
        flowing = flowing.faded(packed.alive)
    begun: list[list[Rows]] = []
    samples = call.axes[0].count(Role.SAMPLE) if packed is None else packed.samples
    for depth in reversed(range(len(runs))):
        parts, own = [], []
        for place, run in enumerate(runs[depth]):
            number = depth * both + place
            tail = [None if s is None else ends_of(s, number, drawn) for s in given[1:]]
            outside = None if flowing is None else _part(flowing, place, both)
            if packed is not None and tail[0] is not None and not run.weights.reverse:
                ended, tail[0] = _ended(tail[0], packed.over), None
                outside = ended if outside is None else summed(*_alike(outside, ended))
            _back(run, outside, tail, steps)
            for parameter, state in run.parameters(samples).items():
                found[parameter] = state if parameter not in found else found[parameter].plus(state)
            below = Through(turned(call.states[run.weights.input])).all(run.driven)
            parts.append(below if run.weights.reverse else below.flipped())
            own.append(run.begun())
        begun[:0] = own
        flowing = parts[0] if both == 1 else summed(*parts)
        if depth > 0:
            flowing = flowing.thinned(_rate(call))
    source = call.id(0, "input")
    if source is not None and flowing is not None and packed is not None:
        whole = state_of(flowing, packed.state.axes, 0.0)
        call.latents["packed gradient", source] = whole
        found[source] = packed.holding(whole).rows(call.input.axes)
    elif source is not None and flowing is not None:
        found[source] = state_of(flowing, call.input.axes, 0.0)
    for ref, item in zip(_starts(call), range(len(begun[0])), strict=False):
        found[ref.id] = _stacked([rows[item] for rows in begun], call.states[ref.id].axes, 0.0)
    return found


def _back(run: Unrolled, flowing: Course | None, tail: list[Course | None], steps: int) -> None:
    """One layer's way back, from the gradients of its output and of its last states."""
    levels = max([run.levels, *(len(course.rho) for course in (flowing, *tail) if course is not None)])
    memory = tail[1] if len(tail) > 1 else None
    run.turn(levelled(silence(1) if memory is None else memory, levels))
    flowing = levelled(silence(steps) if flowing is None else flowing, levels)
    if not run.weights.reverse:
        flowing = flowing.flipped()
    for step in range(steps):
        rows = flowing.rows(step)
        if tail[0] is not None:  # the last state has a gradient of its own
            last = levelled(tail[0], levels).rows()
            first = torch.arange(step + 1)[:, None] == 0
            rows = Rows(
                rows.mean + torch.where(first, last.mean, 0.0),
                rows.cov + (torch.where(first, last.cov, 0.0) if step == 0 else 0.0),
            )
        run.back(rows)


def _ended(last: Course, over: Tensor) -> Course:
    """The gradient of last states where each sample ends at a step of its own."""
    share, variance = over[:, None], last.std.square()
    mean = share * last.mean
    std = (share * (variance + last.mean.square()) - mean.square()).clamp(min=0).sqrt()
    level = 0.0 if len(last.rho) < 2 else float(last.rho[1].mean() * variance.mean())
    scale = std.square().mean(1).sqrt()
    within = -(mean @ mean.T) / mean.shape[1]
    within.diagonal().copy_(scale.square())
    between = level * share * over
    rho = torch.stack([within, between]) / (scale[:, None] * scale).clamp(min=TINY)
    return last.like(mean, std, torch.where(scale[:, None] * scale > 0, rho, 0.0)[..., None])


def _alike(left: Course, right: Course) -> tuple[Course, Course]:
    """Both with the same levels."""
    levels = max(len(left.rho), len(right.rho))
    return levelled(left, levels), levelled(right, levels)


def silence(steps: int) -> Course:
    """No gradient."""
    none = torch.zeros((steps, 1), dtype=DTYPE)
    return Course(1).like(none, none, torch.zeros((1, steps, steps, 1), dtype=DTYPE))


# -- arguments -----------------------------------------------------------------------------------


def _layers(call: Call) -> list[list[Weights]]:
    """The stack's weights, layer by layer and direction by direction."""
    shift = _shift(call)
    args = call.entry.args[shift:]
    weights = [ref.id for ref in args[2]]
    biased, depth, both = bool(args[3]), int(args[4]), bool(args[7])
    each = len(weights) // (depth * (2 if both else 1))
    layers: list[list[Weights]] = []
    for start in range(0, len(weights), each):
        own = weights[start : start + each]
        biases = tuple(own[2:4]) if biased else ()
        rest = own[2 + len(biases) :]
        reverse = both and (start // each) % 2 == 1
        made = Weights(own[0], own[1], biases, rest[0] if rest else None, reverse)
        if reverse:
            layers[-1].append(made)
        else:
            layers.append([made])
    return layers


def _shift(call: Call) -> int:
    """1 for a packed sequence, whose rows are followed by how many samples reach each step."""
    return 1 if isinstance(call.entry.args[3], (tuple, list)) else 0


def _steps(call: Call) -> int:
    if _shift(call):
        return packed_of(call, call.entry.inputs[0]).steps
    shape = call.value(call.argument(0, "input")).shape
    return shape[0] if len(shape) == 2 or call.entry.args[8] is not True else shape[1]


def _rate(call: Call) -> float:
    args = call.entry.args[_shift(call) :]
    return float(args[5]) if args[6] else 0.0


def _starts(call: Call) -> list[Ref]:
    given = call.entry.args[1 + _shift(call)]
    return [given] if isinstance(given, Ref) else list(given)


def start_of(call: Call, ref: Ref, place: int, drawn: bool) -> Course:
    """A state before the first step, of one of a stack's layers."""
    made = ends_of(call.states[ref.id], place, drawn)
    if drawn:
        return made
    width = call.value(ref).shape[-1]
    return made.like(made.mean.expand(1, width), made.std.expand(1, width), made.rho)


# -- states and courses ----------------------------------------------------------------------------


def course_of(x: State, *, drawn: bool, steps: int) -> Course:
    """A state of (sample, step, channel), (step, sample, channel) or (step, channel) as a course."""
    fields = []
    for f in (x.moved() if drawn and x.shape[-1] > 1 and x.mean.shape[-1] > 1 else x).fields:
        f = f.reshape(-1, f.shape[-1]) if f.numel() > 1 else f.reshape(1, 1)
        fields.append(f.mean(0, keepdim=True) if f.shape[0] not in (1, steps) else f)
    width = max(f.shape[-1] for f in fields)
    mean, constant, sample, site, residual = (f.expand(steps, width) for f in fields)
    if drawn:
        mean, constant, sample, site, residual = (
            f.mean(-1, keepdim=True) for f in (mean, constant, sample, site, residual)
        )
    # What two steps share of a component is sqrt(v_t v_s).
    std = (constant + sample + site + residual).clamp(min=0).sqrt()
    scale, shared = std @ std.T, _shared(constant)
    tables = [shared + _shared(sample), shared]
    for table, diagonal in zip(tables, (std.square(), constant + site), strict=True):
        table.diagonal().copy_(diagonal.sum(1))
    if not drawn and not bool((constant + site).any()):
        tables = tables[:1]
    rho = [torch.where(scale > 0, table / scale.clamp(min=TINY), 0.0) for table in tables]
    made = Course(len(rho))
    return made.like(mean, std, torch.stack(rho)[..., None])


def _shared(v: Tensor) -> Tensor:
    root = v.abs().sqrt() * v.sign().clamp(min=0)
    below = v.abs().sqrt() * (-v).sign().clamp(min=0)
    return root @ root.T - below @ below.T


def state_of(x: Course, axes: Axes, width: float) -> State:
    """A course as a state with these axes; what two different steps share is the mean over all pairs."""
    variance = x.std.square()
    constant = _off(x, 1) * variance
    site = x.rho[1].diagonal().mean(0)[:, None] * variance - constant if len(x.rho) > 1 else 0 * variance
    sample = (_off(x, 0) * variance - constant).clamp(min=0)
    residual = (variance - constant - site - sample).clamp(min=0)
    samples_first = len(axes.dims) == 3 and any(a.role is Role.SAMPLE for a in axes.dims[0])
    place = 0 if samples_first or (len(axes.dims) == 3 and axes.shape[0] != len(x)) else 1
    fields = [x.mean, constant, sample, site, residual]
    if len(axes.dims) == 3:
        fields = [f.unsqueeze(place) for f in fields]
    return State.from_fields(axes, fields, width=width)


def _off(x: Course, level: int) -> Tensor:
    """Mean covariance of two different steps over the mean variance, for each channel."""
    steps = len(x)
    if level >= len(x.rho):
        return torch.zeros_like(x.std[0])
    if steps == 1:
        return x.rho[level, 0, 0].expand(x.std.shape[-1])
    away = 1 - torch.eye(steps, dtype=DTYPE)
    plain = x.like(x.mean * 0, x.std, x.rho)
    scale = x.like(x.mean * 0, x.std, torch.ones_like(x.rho)).weighed(away, 0)
    share = plain.weighed(away, level) / scale.clamp(min=TINY)
    return torch.where(scale > 0, share, 0.0).clamp(-1, 1)


def _read(runs: list[Unrolled]) -> Course:
    """What a layer puts out: both directions side by side."""
    outs = []
    for run in runs:
        own = run.hidden.part(1, len(run.hidden))
        outs.append(own.flipped() if run.weights.reverse else own)
    return outs[0] if len(outs) == 1 else side_by_side(*outs)


def _part(x: Course, place: int, count: int) -> Course:
    """The gradient of one direction's output."""
    x = x.pooled()
    if count == 1 or x.mean.shape[-1] == 1:
        return x
    return x.like(x.mean.chunk(count, -1)[place], x.std.chunk(count, -1)[place], x.rho)


def _ends(courses: list[Course], axes: Axes, width: float, shares: Sequence[Tensor | None]) -> State:
    """Last states of all layers, (layer, sample, channel); for each the share of samples that end with a step."""
    made = [
        course.rows() if over is None else _mixed(course, over) for course, over in zip(courses, shares, strict=True)
    ]
    return _stacked(made, axes, width)


def _mixed(course: Course, over: Tensor) -> Rows:
    """A state after the last step of each sample."""
    part, share = course.part(1, len(course)), over[:, None]
    mean = (share * part.mean).sum(0)
    cov = torch.zeros((len(part.rho), 1, len(mean)), dtype=DTYPE)
    cov[0, 0] = (share * (part.std.square() + part.mean.square())).sum(0) - mean.square()
    between = part.rho[1:].diagonal(dim1=1, dim2=2).mean(1)[..., None]
    cov[1:, 0] = (share * part.std.square() * between).sum(1)
    return Rows(mean[None], cov)


def _stacked(rows: list[Rows], axes: Axes, width: float) -> State:
    mean = torch.stack([r.mean[-1] for r in rows])
    variance = torch.stack([r.variance[0] for r in rows])
    constant = torch.stack([r.cov[1, -1] for r in rows]) if len(rows[0].cov) > 1 else 0 * variance
    residual = variance - constant
    fields: list[Any] = [mean, constant, 0 * residual, 0 * residual, residual]
    if len(axes.dims) == 3:
        fields = [f.unsqueeze(1) for f in fields]
    return State.from_fields(axes, fields, width=width)


def ends_of(state: State, number: int, drawn: bool) -> Course:
    """One layer's part of a state of (layer, sample, channel), or of a single layer's (sample, channel)."""
    fields = []
    for f in state.fields:
        if f.ndim == 3:
            f = f[number if f.shape[0] > 1 else 0]
        elif f.ndim == 2 and len(state.axes.dims) == 2 and f.shape[0] > 1:
            f = f[number : number + 1]
        fields.append(f.reshape(-1, f.shape[-1])[:1])
    mean, constant, sample, site, residual = fields
    within = constant + sample + site + residual
    between = constant + site
    if drawn:
        spread = (mean - mean.mean()).square().mean()
        mean = mean.mean(-1, keepdim=True)
        within, between = (v.mean(-1, keepdim=True) + spread for v in (within, between))
    levels = [within, between] if drawn or bool(between.any()) else [within]
    mean, *levels = torch.broadcast_tensors(mean, *levels)
    made = Course(len(levels))
    made.put(Rows(mean, torch.stack(levels)))
    return made


__all__ = ["course_of", "ends_of", "recurrent", "silence", "start_of", "state_of"]
