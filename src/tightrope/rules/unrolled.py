"""A recurrent layer unrolled over time: its way over the steps, back, and the gradients of its parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tightrope.roles import Axes
from tightrope.rules.cells import CELLS, Lstm
from tightrope.rules.course import Course, Rows, Through
from tightrope.rules.state import State


@dataclass(frozen=True)
class Weights:
    """One direction of one layer: ids of its weights, biases and projection on the tape."""

    input: int
    hidden: int
    biases: tuple[int, ...] = ()
    projection: int | None = None
    reverse: bool = False


class Unrolled:
    """One direction of one layer on its way.

    Args:
        op: the kind of cell.
        weights: which they are.
        states: laws by id.
        start: the states before the first step.

    Attributes:
        source, hidden: courses of the input and of the hidden state, the start first.
        driven, fed: courses of the gradients of both parts of the gates' inputs, last step first.
    """

    def __init__(self, op: str, weights: Weights, states: dict[int, State], start: list[Course]) -> None:
        self.weights, self.states = weights, states
        levels = len(start[0].rho)
        self.hidden, self.levels = start[0], levels
        self.cell = CELLS[op](levels, start)
        biases: list[State | None] = [states[bias] for bias in weights.biases] or [None, None]
        self.by_input = Through(states[weights.input], biases[0])
        self.by_hidden = Through(states[weights.hidden], biases[1])
        self.wide = Course(levels)
        self.project = None if weights.projection is None else Through(states[weights.projection])
        self.fed_back: Rows | None = None

    def step(self, source: Course) -> None:
        """The next step, whose input is in the course."""
        self.source = source
        rows = self.cell.step(self.by_input(source), self.by_hidden(self.hidden))
        if self.project is not None:
            self.wide.put(rows)
            rows = self.project(self.wide)
        if len(rows.mean) == len(self.hidden):
            rows = _late(rows, self.hidden.mean[:1])
        self.hidden.put(rows)

    def memory(self) -> Course:
        """Course of the cell's own memory, the start first; of the hidden state where there is no other."""
        return self.cell.cell if isinstance(self.cell, Lstm) else self.hidden

    def turn(self, memory: Course) -> None:
        """Prepare for the way back; `memory` is the gradient of the last memory and has the levels of all gradients."""
        levels = len(memory.rho)
        self.cell.turn(memory)
        self.driven, self.fed = Course(levels, self.cell.gates), Course(levels, self.cell.gates)
        self.through_back = Through(turned(self.states[self.weights.hidden]))
        if self.weights.projection is not None:
            self.narrow = Course(levels)
            self.unproject = Through(turned(self.states[self.weights.projection]))

    def back(self, flowing: Rows) -> None:
        """The next step on the way back, from the gradient that its output has from outside."""
        rows = flowing
        if self.fed_back is not None:
            rows = rows.plus(_late(self.fed_back, torch.zeros_like(self.fed_back.mean[:1])))
        if self.weights.projection is not None:
            self.narrow.put(rows)
            rows = self.unproject(self.narrow)
        driven, fed = self.cell.back(rows)
        self.driven.put(driven)
        self.fed.put(fed)
        self.fed_back = self.through_back(self.fed)

    def begun(self) -> list[Rows]:
        """Gradients of the states before the first step."""
        assert self.fed_back is not None
        direct, memory = self.cell.direct(), self.cell.memory()
        first = self.fed_back if direct is None else self.fed_back.plus(direct)
        return [first] if memory is None else [first, memory]

    def parameters(self, samples: int) -> dict[int, State]:
        """Gradients of the parameters, by id."""
        steps, w = len(self.driven), self.weights
        source, before = self.source.part(0, steps).flipped(), self.hidden.part(0, steps).flipped()
        found = {
            w.input: outer(source, self.driven, samples, self.states[w.input]),
            w.hidden: outer(before, self.fed, samples, self.states[w.hidden]),
        }
        for bias, course in zip(w.biases, (self.driven, self.fed), strict=False):
            found[bias] = total(course, samples, self.states[bias])
        if w.projection is not None:
            found[w.projection] = outer(self.wide.flipped(), self.narrow, samples, self.states[w.projection])
        return found


def _late(rows: Rows, first: Tensor) -> Rows:
    """With a step before all others that is independent of them."""
    zero = torch.zeros_like(rows.cov[:, :1])
    return Rows(torch.cat([first.expand(1, rows.mean.shape[-1]), rows.mean]), torch.cat([zero, rows.cov], 1))


def turned(weight: State) -> State:
    """The transposed matrix."""
    return weight.map(lambda f: f.transpose(-1, -2), Axes(weight.axes.dims[::-1]))


def outer(x: Course, gradient: Course, samples: int, weight: State) -> State:
    """The gradient of a weight that all steps share: the sum over samples and steps of gradient times input.

    E[dW^2] sums E[g_t g_s] E[x_t x_s] over all pairs of steps; its total is distributed over rows and columns as
    their own sums say.
    """
    mean = samples * gradient.mean.T @ x.mean
    row = column = every = torch.zeros((), dtype=mean.dtype)
    # Pairs of one sample, less what they share with other samples; pairs of samples, less what the means make.
    for level, count in ((0, samples), (1, samples**2 - samples), (None, -(samples**2))):
        by_x, by_g = x.moments(level), gradient.moments(level)
        row = row + count * gradient.weighed(by_x, level)
        column = column + count * x.weighed(by_g, level)
        every = every + count * (by_x * by_g).sum()
    if every <= 0:
        return State.of(weight.axes, _blockwise(mean, weight))
    variance = row.clamp(min=0)[:, None] * column.clamp(min=0) / every
    return State.of(weight.axes, _blockwise(mean, weight), residual=_blockwise(variance, weight))


def total(gradient: Course, samples: int, bias: State) -> State:
    """The gradient of a bias that all steps share: the sum over samples and steps."""
    mean = samples * gradient.mean.sum(0)
    kernel = torch.ones((len(gradient), len(gradient)), dtype=mean.dtype)
    known, between = gradient.weighed(kernel, None), gradient.weighed(kernel, 1)
    variance = samples * (gradient.weighed(kernel, 0) - between) + samples**2 * (between - known)
    return State.of(bias.axes, _blockwise(mean, bias), residual=_blockwise(variance.clamp(min=0), bias))


def _blockwise(x: Tensor, like: State) -> Tensor:
    """One number for each block of rows, at all of its rows."""
    rows = like.shape[0]
    return x if len(x) in (1, rows) else x.repeat_interleave(rows // len(x), 0)


__all__ = ["Unrolled", "Weights", "outer", "total", "turned"]
