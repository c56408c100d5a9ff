"""The law of a classification target: which classes occur, where, and with which weight."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tightrope.roles import Axes, Role
from tightrope.rules.registry import Call
from tightrope.rules.state import DTYPE, State, state_shape

TABLE_LIMIT = 1 << 22
"""Largest number of (position, class) pairs for which class frequencies are tabled."""


@dataclass(frozen=True)
class Target:
    """A target of a loss over classes, positions first and classes last.

    The loss of one position is sum_c t_c (ln sum exp z - z_c).

    Attributes:
        state: law of t, class weights and label smoothing included; zero where a position is ignored.
        weight: E[sum_c t_c] at each position, last dimension of length 1.
        square: E[(sum_c t_c)^2] there.
        cross: E[t sum_c t_c] at each position and class.
        total: what a mean over all positions divides by.
        rows: class indices (sample, position), -1 where ignored; None for targets that are probabilities.
    """

    state: State
    weight: Tensor
    square: Tensor
    cross: Tensor
    total: float
    rows: Tensor | None

    def draw(self, draws: int, sampled: slice) -> Tensor | None:
        """Class indices (draw, position) as they occur, sample after sample."""
        if self.rows is None:
            return None
        rows = self.rows if self.rows.shape[1] > 1 else self.rows.expand(-1, sampled.stop)
        generator = torch.Generator().manual_seed(20260103)
        order = torch.randint(len(rows), (draws,), generator=generator)
        return rows[:, sampled][order]


def by_sample(content: Tensor, axes: Axes) -> Tensor:
    """A tensor as (sample, position): its sample axes first, the rest as in its state."""
    layout = [axis for dim in axes.dims for axis in dim]
    x = content.reshape([axis.size for axis in layout])
    samples = [i for i, axis in enumerate(layout) if axis.role is Role.SAMPLE]
    others = [i for i, axis in enumerate(layout) if axis.role is not Role.SAMPLE]
    count = math.prod(layout[i].size for i in samples)
    return x.permute((*samples, *others)).reshape(count, -1)


def of_indices(call: Call, content: Tensor, axes: Axes, classes: int) -> Target:
    """A target of class indices.

    Args:
        call: the loss; its `ignore_index`, `label_smoothing` and `weight` count.
        content: the indices, of the shape of the positions.
        axes: axes of the logits, classes last.
        classes: how many there are.
    """
    smoothing = float(call.argument(7, "label_smoothing", 0.0)) if call.entry.op == "cross_entropy" else 0.0
    where = Axes(axes.dims[:-1])
    rows = by_sample(content.cpu(), where)
    valid = rows != int(call.argument(4, "ignore_index", -100))
    rows = torch.where(valid, rows, torch.full_like(rows, -1))
    own = class_weights(call, classes)
    position = torch.where(valid, own[rows.clamp(min=0)], torch.zeros((), dtype=DTYPE))
    smooth = smoothing / classes * float(own.sum()) * valid
    weight = (1 - smoothing) * position + smooth
    lead = (*state_shape(where), 1)
    state = _one_hot(rows, own, axes, classes)
    smoothed = smoothing / classes * own
    coarse = [d for d, n in enumerate(state.mean.shape[:-1]) if n == 1 < lead[d]]

    def over_samples(x: Tensor) -> Tensor:
        made = x.to(DTYPE).mean(0).reshape(lead)
        return made.mean(coarse, keepdim=True) if coarse else made

    mean = (1 - smoothing) * state.mean + smoothed * over_samples(valid)
    parts = [(1 - smoothing) ** 2 * f for f in state.fields[1:]]
    row = (1 - smoothing) * own + smoothed.sum()
    cross = (1 - smoothing) * row * state.mean + smoothed * over_samples(weight)
    return Target(
        State.from_fields(axes, (mean, *parts)),
        over_samples(weight),
        over_samples(weight.square()),
        cross,
        float(position.sum()),
        rows,
    )


def of_probabilities(call: Call, given: State, axes: Axes, classes: int) -> Target:
    """A target of class probabilities."""
    smoothing = float(call.argument(7, "label_smoothing", 0.0)) if call.entry.op == "cross_entropy" else 0.0
    own = class_weights(call, classes)
    state = given.map(lambda f: f.movedim(min(1, f.ndim - 1), -1), axes).scaled(1 - smoothing)
    state = State(axes, *state.fields)
    state = State(axes, state.mean + smoothing / classes, *state.fields[1:]).scaled(own)
    weight = state.mean.expand(*state.mean.shape[:-1], classes).sum(-1, keepdim=True)
    return Target(state, weight, weight.square(), weight * state.mean, float(math.prod(axes.shape[:-1])), None)


def class_weights(call: Call, classes: int) -> Tensor:
    """The loss's weight of each class."""
    given = call.state(2, "weight")
    return torch.ones(classes, dtype=DTYPE) if given is None else given.mean.expand(given.shape).reshape(-1)


def _one_hot(rows: Tensor, own: Tensor, axes: Axes, classes: int) -> State:
    """The law of one-hot rows times the weight of their class, over samples."""
    samples, positions = rows.shape
    lead = state_shape(Axes(axes.dims[:-1]))
    if positions * classes > TABLE_LIMIT:
        rows, lead = rows.reshape(-1, 1), (1,) * len(lead)
        positions = 1
    place = torch.arange(positions).expand_as(rows)
    kept = rows >= 0
    frequency = torch.zeros(positions, classes, dtype=DTYPE)
    flat = (place[kept] * classes + rows[kept]).reshape(-1)
    frequency.view(-1).index_add_(0, flat, torch.ones(len(flat), dtype=DTYPE))
    frequency /= len(rows)
    variance = frequency * (1 - frequency)
    sample = _shared(rows, variance, frequency) if positions > 1 else torch.ones(classes, dtype=DTYPE)
    shape = (*lead, classes)
    mean, variance = (frequency * own).reshape(shape), (variance * own.square()).reshape(shape)
    if positions == 1 and len(rows) != samples:
        return State.of(axes, mean, residual=variance)
    # Over the samples, deviations from the frequencies sum to zero at each position.
    own, held = (variance * share * samples / max(samples - 1, 1) for share in (1 - sample, sample))
    return State.of(axes, mean, constant=-held / samples, sample=held, site=-own / samples, residual=own)


def _shared(rows: Tensor, variance: Tensor, frequency: Tensor) -> Tensor:
    """Share of a class's variance that two positions of a sample have in common."""
    samples, positions = rows.shape
    classes = variance.shape[1]
    if samples * classes > TABLE_LIMIT:
        return torch.zeros(classes, dtype=DTYPE)
    counts = torch.zeros(samples, classes + 1, dtype=DTYPE)
    counts.scatter_add_(1, rows + 1, torch.ones(rows.shape, dtype=DTYPE))
    spread = (counts[:, 1:] - frequency.sum(0)).square().mean(0)
    inner = variance.sum(0)
    shared = (spread - inner) / max(positions - 1, 1)
    return torch.where(inner > 0, shared / inner.clamp(min=1e-300), torch.zeros_like(inner)).clamp(0, 1)
