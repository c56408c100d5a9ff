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
        self._std: list[Tensor] = []
        self._mean: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._terms: tuple[list[Tensor], list[Tensor]] = ([], [])

    def __call__(self, z: Rows) -> Rows:
        """The function's value at the newest step; its slope is kept."""
        mean, variance = z.mean[-1], z.variance[0]
        axes = Axes(((Axis(Role.CHANNEL, mean.numel()),),))
        variable = latent(State.of(axes, mean, residual=variance), self.kinks)
        self._std.append(variance.sqrt())
        std = torch.stack(self._std)
        r = (z.cov / (std[-1] * std).clamp(min=TINY)).clamp(-1, 1)
        made = []
        for place, course in enumerate((self.value, self.slope)):
            rows = self._law(place, variable.xi, variable.weights, self.functions[place](variable.z), r)
            course.put(rows)
            made.append(rows)
        return made[0]

    def _law(self, place: int, xi: Tensor, weights: Tensor, values: Tensor, r: Tensor) -> Rows:
        mean = (values * weights).sum(-1)
        total = ((values - mean.unsqueeze(-1)).square() * weights).sum(-1)
        terms, previous, current = [], torch.ones_like(xi), xi
        for j in range(1, TERMS + 1):
            terms.append((values * current * weights).sum(-1))
            previous, current = current, (xi * current - math.sqrt(j) * previous) / math.sqrt(j + 1)
        rest = total - torch.stack(terms).square().sum(0)
        self._terms[place].append(torch.stack([*terms, rest.clamp(min=0).sqrt()]))
        self._mean[place].append(mean)
        held = torch.stack(self._terms[place])
        cov = torch.zeros_like(r)
        for j in reversed(range(TERMS + 1)):
            cov = (cov + held[-1, j] * held[:, j]) * r
        cov[0, -1] = total
        return Rows(torch.stack(self._mean[place]), cov)


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
