"""Recurrent cells that a program calls step by step: the calls that hand a state on are one chain.

A chain carries the covariances between its steps, as an unrolled layer does, and gives the gradients of its weights,
the same at each step, when the way back has reached its first one.
"""

from __future__ import annotations

import torch

from tightrope.roles import Axes, Role
from tightrope.rules.course import Course, Rows, Through, levelled
from tightrope.rules.recurrent import ends_of, silence, start_of
from tightrope.rules.registry import Call, Gradients, rule
from tightrope.rules.state import DTYPE, State
from tightrope.rules.unrolled import Unrolled, Weights, turned
from tightrope.tape.tape import Entry, Ref

LEVELS = 2
"""Of gradients: a loss's weights may share something between samples."""
_PICKS = frozenset({"getitem", "select", "unbind", "chunk", "split"})


class Chain:
    """Calls of one cell, each of which reads the state that the one before made."""

    def __init__(self, call: Call, weights: Weights, states: list[Ref]) -> None:
        drawn = not (call.states[weights.input].exact and call.states[weights.hidden].exact)
        start = [start_of(call, ref, 0, drawn) for ref in states]
        levels = max(len(course.rho) for course in start)
        start = [levelled(course, levels) for course in start]
        self.drawn, self.levels = drawn, levels
        self.run = Unrolled(call.entry.op.removesuffix("_cell"), weights, call.states, start)
        self.source = Course(levels)
        self.read: list[int] = []
        self.flow = Course(LEVELS)
        self.given: list[Rows] = []

    def step(self, call: Call, number: int) -> list[State]:
        """The states after one more step, which reads a value."""
        own = levelled(ends_of(call.states[number], 0, self.drawn), self.levels).rows()
        sample = call.states[number]
        spread = (sample.sample + sample.residual).mean()
        known = float(sample.sample.mean() / spread) if spread > 0 else 0.0
        old = len(self.source)
        cov = own.cov.new_zeros((self.levels, old + 1, own.cov.shape[-1]))
        cov[:, old] = own.cov[:, -1]
        if self.levels > 1:
            cov[:, :old] = own.cov[1]
        for place in range(old):
            cov[0, place] += self._alike(call, number, place, known) * own.variance[0] * self._ratio(place, own)
        mean = torch.cat([self.source.mean.expand(old, own.mean.shape[-1]), own.mean])
        self.source.put(Rows(mean, cov))
        self.read.append(number)
        self.run.step(self.source)
        made = [self.run.hidden] if self.run.cell.memories == 1 else [self.run.hidden, self.run.memory()]
        return [_state(course.rows(), axes) for course, axes in zip(made, call.axes, strict=True)]

    def _ratio(self, place: int, own: Rows) -> torch.Tensor:
        return self.source.std[place] / own.variance[0].sqrt().clamp(min=1e-300)

    def _alike(self, call: Call, number: int, place: int, known: float) -> float:
        """Correlation of what is read now with what was read at a step."""
        other = self.read[place]
        if number == other:
            return 1.0
        mine, theirs = (call.latents.get(("step", n)) for n in (number, other))
        if mine is not None and theirs is not None and mine[0] is theirs[0]:
            return float(mine[0].run.hidden.rho[0, mine[1], theirs[1]].mean())
        first, second = (_maker(call, n) for n in (number, other))
        if first is None or second is None or first.op not in _PICKS or first.inputs[0] not in second.inputs:
            return 0.0
        return known

    def back(self, step: int, upstream: list[State | None], above: Rows | None) -> None:
        """One step on the way back, the last one first.

        Args:
            step: which one.
            upstream: gradients of its states.
            above: gradient that a chain which reads this one has given, beside those of the steps behind.
        """
        done = len(self.flow)
        steps = len(self.source)
        if done == 0:
            last = upstream[1] if len(upstream) > 1 and step == steps - 1 else None
            self.run.turn(levelled(silence(1) if last is None else ends_of(last, 0, self.drawn), LEVELS))
            self.through = Through(turned(self.run.states[self.run.weights.input]))
        for _ in range(done, steps - 1 - step):
            self._flow(None, None)
        self._flow(upstream[0], above)

    def _flow(self, given: State | None, above: Rows | None) -> None:
        """What a step's output has from outside: its gradient less what came back from the step behind it."""
        old = len(self.flow)
        width = self.run.hidden.mean.shape[-1]
        mean, cov = torch.zeros((1, width), dtype=DTYPE), torch.zeros((LEVELS, 1, width), dtype=DTYPE)
        if given is not None:
            own = levelled(ends_of(given, 0, self.drawn), LEVELS).rows()
            mean, cov = mean + own.mean, cov + own.cov
            if self.given:
                mean, cov = mean - self.given[0].mean[-1], cov - self.given[0].cov[:, -1:]
        before = torch.zeros((LEVELS, old, width), dtype=DTYPE)
        if above is not None and len(above.mean) == old + 1:
            before = before + above.cov[:, :-1]
        full = torch.cat([before, cov], 1)
        self.flow.put(Rows(torch.cat([self.flow.mean.expand(old, width), mean]), full))
        self.run.back(self.flow.rows())
        self.given = self.run.begun()
        self.below = self.through(self.run.driven)


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def recurrent_cell(call: Call) -> list[State]:
    """The state after one step of a cell, with its own weights."""
    x, states, weights = _arguments(call)
    chain, taken = call.latents.get(("step", states[0].id), (None, 0))
    if chain is None or chain.run.weights != weights or len(chain.source) != taken:
        chain = Chain(call, weights, states)
    made: list[State] = chain.step(call, x)
    call.latents["step", call.entry.outputs[0]] = (chain, len(chain.source))
    call.saved.update(chain=chain, step=len(chain.source) - 1)
    return made


@recurrent_cell.gradient
def _(call: Call, upstream: State | list[State | None]) -> Gradients:
    chain: Chain = call.saved["chain"]
    x, states, _ = _arguments(call)
    above = call.latents.get(("below", call.entry.outputs[0]))
    chain.back(call.saved["step"], upstream if isinstance(upstream, list) else [upstream], above)
    call.latents["below", x] = chain.below
    found = {x: _state(chain.below, call.states[x].axes)}
    for ref, rows in zip(states, chain.given, strict=True):
        made = _state(rows, call.states[ref.id].axes)
        found[ref.id] = made if ref.id not in found else found[ref.id].plus(made)
    if call.saved["step"] == 0:
        found.update(chain.run.parameters(call.axes[0].count(Role.SAMPLE)))
    return found


def _arguments(call: Call) -> tuple[int, list[Ref], Weights]:
    """What a cell reads, its states and its weights."""
    x, states = call.entry.args[0], call.entry.args[1]
    numbers = [ref.id for ref in call.entry.args[2:] if isinstance(ref, Ref)]
    refs = [states] if isinstance(states, Ref) else list(states)
    return x.id, refs, Weights(numbers[0], numbers[1], tuple(numbers[2:4]))


def _maker(call: Call, number: int) -> Entry | None:
    """The entry that made a value."""
    makers: dict[int, Entry] | None = call.latents.get("makers")
    if makers is None:
        makers = call.latents["makers"] = {n: entry for entry in call.tape.entries for n in entry.outputs}
    return makers.get(number)


def _state(rows: Rows, axes: Axes) -> State:
    """The newest step as a state of (sample, channel)."""
    cov = rows.cov[:, -1:]
    constant = cov[1] if len(cov) > 1 else 0 * cov[0]
    fields = [rows.mean[-1:], constant, cov[0] - constant, 0 * constant, 0 * constant]
    if len(axes.dims) == 1:
        fields = [f.squeeze(0) for f in fields]
    return State.from_fields(axes, fields)
