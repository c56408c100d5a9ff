"""One step of a recurrent cell, forward and backward, on the laws of its gates and their covariances over time.

Gates read different rows of the weights and are independent of each other and of the cell's own memory. What a memory
gathers from several steps is correlated as the gates and candidates of those steps are.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from tightrope.roles import Axes, Axis, Role
from tightrope.rules.course import TINY, Course, Rows, added, levelled, merged, times
from tightrope.rules.expectation import latent
from tightrope.rules.state import State

TERMS = 7
"""Terms of the Hermite series of a gate; the rest of its variance takes the next power."""

Function = Callable[[Tensor], Tensor]


class Activation:
    """A function of a gate's input and its derivative, with covariances over the steps so far.

    The covariance of f(z_t) and f(z_s) with correlation r is the sum over j of h_j(t) h_j(s) r^j, where
    h_j(t) = E[f(m_t + s_t xi) He_j(xi)] / sqrt(j!).
    """

    def __init__(self, levels: int, function: Function, slope: Function, kinks: tuple[float, ...] = ()) -> None:
        self.functions, self.kinks = (function, slope), kinks
        self.value, self.slope = Course(levels), Course(levels)
        self._std, self._mean, self._terms = _Stack(), _Stack(), _Stack()

    def __call__(self, z: Rows) -> Rows:
        """The function's value at the newest step; its slope is kept."""
        mean, variance = z.mean[-1], z.variance[0]
        axes = Axes(((Axis(Role.CHANNEL, mean.numel()),),))
        variable = latent(State.of(axes, mean, residual=variance), self.kinks)
        std = self._std.put(variance.sqrt())
        r = (z.cov / (std[-1] * std).clamp(min=TINY)).clamp(-1, 1)
        at = variable.z
        made = self._laws(variable.xi, variable.weights, torch.stack([f(at) for f in self.functions]), r)
        for rows, course in zip(made, (self.value, self.slope), strict=True):
            course.put(rows)
        return made[0]

    def _laws(self, xi: Tensor, weights: Tensor, values: Tensor, r: Tensor) -> list[Rows]:
        """Laws of the function and of its slope, whose values at the nodes are (function, channel, node)."""
        weighed = values * weights
        mean = weighed.sum(-1)
        total = ((values - mean.unsqueeze(-1)).square() * weights).sum(-1)
        terms, previous, current = [], torch.ones_like(xi), xi
        for j in range(1, TERMS + 1):
            terms.append((weighed * current).sum(-1))
            previous, current = current, (xi * current - math.sqrt(j) * previous) / math.sqrt(j + 1)
        series = torch.stack(terms)
        rest = total - series.square().sum(0)
        held = self._terms.put(torch.cat([series, rest.clamp(min=0).sqrt()[None]]))  # (step, term, function, channel)
        weight = (held[-1] * held).permute(1, 2, 0, 3).unsqueeze(2)
        cov = weight[TERMS] * r
        for j in reversed(range(TERMS)):
            cov = (cov + weight[j]) * r
        cov[:, 0, -1] = total
        return [Rows(m, c) for m, c in zip(self._mean.put(mean).unbind(1), cov.unbind(0), strict=True)]


class _Stack:
    """Tensors of one shape that come one after the other, in memory that doubles when it is full."""

    def __init__(self) -> None:
        self._held: Tensor | None = None
        self._count = 0

    def put(self, x: Tensor) -> Tensor:
        """All of them, this one last."""
        held = x.new_empty((8, *x.shape)) if self._held is None else self._held
        if self._count == len(held):
            held = torch.cat([held, torch.empty_like(held)])
        held[self._count] = x
        self._held, self._count = held, self._count + 1
        return held[: self._count]


def _sigmoid(levels: int) -> Activation:
    return Activation(levels, torch.sigmoid, lambda x: torch.sigmoid(x) * torch.sigmoid(-x))


def _tanh(levels: int) -> Activation:
    return Activation(levels, torch.tanh, lambda x: 1 - x.tanh().square())


def _relu(levels: int) -> Activation:
    return Activation(levels, torch.relu, lambda x: (x > 0).to(x.dtype), (0.0,))


class Cell(ABC):
    """A recurrent cell on its way over the steps, and back.

    Args:
        levels: of the courses.
        start: the states before the first step.

    Attributes:
        gates: how many blocks of rows its weights have.
        memories: how many states it carries.
    """

    gates: int
    memories = 1

    def __init__(self, levels: int, start: list[Course]) -> None:
        self.levels = levels
        self.hidden = start[0]

    @abstractmethod
    def step(self, driven: Rows, fed: Rows) -> Rows:
        """The hidden state after a step, beside those of the steps before, from both parts of the gates' inputs."""

    @abstractmethod
    def turn(self, memory: Course) -> None:
        """Prepare for the way back, on which the last step is the first.

        Args:
            memory: gradient of the last memory, one step; its levels are those of all gradients.
        """

    @abstractmethod
    def back(self, hidden: Rows) -> tuple[Rows, Rows]:
        """Gradients of the input's and the hidden state's part of the gates' inputs, from that of the hidden state."""

    def direct(self) -> Rows | None:
        """Gradient of the hidden state before the first step that did not pass the weights."""
        return None

    def memory(self) -> Rows | None:
        """Gradient of the memory before the first step."""
        return None


def _back(course: Course, memory: Course) -> Course:
    """As the way back meets it."""
    return levelled(course.flipped(), len(memory.rho))


# -- plain ---------------------------------------------------------------------------------------


class Plain(Cell):
    """h' = f(x + W h)."""

    gates = 1
    kind: Callable[[int], Activation]

    def __init__(self, levels: int, start: list[Course]) -> None:
        super().__init__(levels, start)
        self.activation = type(self).kind(levels)

    def step(self, driven: Rows, fed: Rows) -> Rows:
        return self.activation(driven.plus(fed))

    def turn(self, memory: Course) -> None:
        self.place = 0
        self.slope = _back(self.activation.slope, memory)

    def back(self, hidden: Rows) -> tuple[Rows, Rows]:
        made = times(hidden, self.slope.rows(self.place))
        self.place += 1
        return made, made


class PlainTanh(Plain):
    """A plain cell with tanh."""

    kind = staticmethod(_tanh)


class PlainRelu(Plain):
    """A plain cell with ReLU."""

    kind = staticmethod(_relu)


# -- LSTM ----------------------------------------------------------------------------------------


class Lstm(Cell):
    """c' = f c + i g, h' = o tanh(c')."""

    gates, memories = 4, 2

    def __init__(self, levels: int, start: list[Course]) -> None:
        super().__init__(levels, start)
        self.activations = [kind(levels) for kind in (_sigmoid, _sigmoid, _tanh, _sigmoid)]
        self.out = _tanh(levels)
        self.cell = start[1]
        self.last = self.cell.rows()

    def step(self, driven: Rows, fed: Rows) -> Rows:
        parts = driven.plus(fed).blocks(4)
        i, f, g, o = (activation(z) for activation, z in zip(self.activations, parts, strict=True))
        self.last = added(f, self.last, times(i, g))
        self.cell.put(self.last)
        return times(o, self.out(self.last.since(1)))

    def turn(self, memory: Course) -> None:
        self.place = 0
        self.values = [_back(a.value, memory) for a in self.activations]
        self.slopes = [_back(a.slope, memory) for a in self.activations]
        self.before = _back(self.cell.part(0, -1), memory)
        self.squashed, self.bend = _back(self.out.value, memory), _back(self.out.slope, memory)
        self.forget = self.values[1].delayed()
        self.into = memory.rows()

    def back(self, hidden: Rows) -> tuple[Rows, Rows]:
        k = self.place
        i, _, g, o = (course.rows(k) for course in self.values)
        i_slope, f_slope, g_slope, o_slope = (course.rows(k) for course in self.slopes)
        self.into = added(self.forget.rows(k), self.into, times(hidden, o, self.bend.rows(k)))
        into = self.into.since(1)
        made = merged([
            times(into, g, i_slope), times(into, self.before.rows(k), f_slope),
            times(into, i, g_slope), times(hidden, self.squashed.rows(k), o_slope),
        ])  # fmt: skip
        self.place += 1
        return made, made

    def memory(self) -> Rows:
        return times(self.into.since(1), self.values[1].rows(self.place - 1))


# -- GRU -----------------------------------------------------------------------------------------


class Gru(Cell):
    """h' = (1 - z) n + z h with n = tanh(x_n + r h_n), one gate for both: h' = Z h + (1 - Z) n + (z - Z) (h - n)."""

    gates = 3

    def __init__(self, levels: int, start: list[Course]) -> None:
        super().__init__(levels, start)
        self.reset, self.update, self.new = _sigmoid(levels), _sigmoid(levels), _tanh(levels)
        self.lifted, self.step_size = Course(levels), Course(levels)
        self.last = self.hidden.rows()

    def step(self, driven: Rows, fed: Rows) -> Rows:
        (xr, xz, xn), (hr, hz, hn) = driven.blocks(3), fed.blocks(3)
        r, z = self.reset(xr.plus(hr)), self.update(xz.plus(hz))
        n = self.new(xn.plus(times(r, hn)))
        rest = 1 - z.mean
        difference = Rows(self.last.mean - n.mean, self.last.cov + n.cov)
        fresh = Rows(rest * n.mean, rest[-1] * rest * n.cov)
        made = added(z, self.last, fresh, difference.moment)
        self.lifted.put(hn)
        self.step_size.put(difference)
        self.last = made
        return made

    def turn(self, memory: Course) -> None:
        self.place = 0
        self.values = [_back(a.value, memory) for a in (self.reset, self.update, self.new)]
        self.slopes = [_back(a.slope, memory) for a in (self.reset, self.update, self.new)]
        self.lifted, self.step_size = _back(self.lifted, memory), _back(self.step_size, memory)
        self.keep = self.values[1].delayed()
        self.into = memory.rows()

    def back(self, hidden: Rows) -> tuple[Rows, Rows]:
        k = self.place
        r, z, _ = (course.rows(k) for course in self.values)
        r_slope, z_slope, n_slope = (course.rows(k) for course in self.slopes)
        self.into = added(self.keep.rows(k), self.into, hidden)
        whole = self.into.since(1)
        into = times(whole, z.minus_from_one(), n_slope)
        update = times(whole, self.step_size.rows(k), z_slope)
        reset = times(into, self.lifted.rows(k), r_slope)
        self.place += 1
        return merged([reset, update, into]), merged([reset, update, times(into, r)])

    def direct(self) -> Rows:
        return times(self.into.since(1), self.values[1].rows(self.place - 1))


CELLS: dict[str, type[Cell]] = {"lstm": Lstm, "gru": Gru, "rnn_tanh": PlainTanh, "rnn_relu": PlainRelu}
