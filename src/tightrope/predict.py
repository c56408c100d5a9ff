"""Predict the law of every tensor of a step, forward and backward, from theory.

No sample runs through the network: shapes were recorded, the laws of the inputs and the weights (or the
laws of their initialisers) are carried from operation to operation by `tightrope.rules`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch

from tightrope.errors import InputError
from tightrope.law import Law
from tightrope.roles import Axes
from tightrope.rules import fixed, numerical
from tightrope.rules.adjoint import joined
from tightrope.rules.attention_law import AttentionLaw, attention_laws
from tightrope.rules.noise import FRESH
from tightrope.rules.registry import Call, Gradients, Rule, find
from tightrope.rules.state import State, evened
from tightrope.rules.weights import weight_state
from tightrope.tape.axes import infer, of_source
from tightrope.tape.tape import Entry, Kind, Tape, Value

Weights = Literal["actual", "laws"]
Mode = Literal["conditioned", "ensemble"]


class Laws(Mapping[int, Law]):
    """The laws of states, by id; each is summed up when it is first asked for.

    Args:
        states: by id.
    """

    def __init__(self, states: Mapping[int, State]) -> None:
        self._states = states
        self._known: dict[int, Law] = {}

    def __getitem__(self, number: int) -> Law:
        if number not in self._known:
            self._known[number] = self._states[number].law()
        return self._known[number]

    def __iter__(self) -> Iterator[int]:
        return iter(self._states)

    def __len__(self) -> int:
        return len(self._states)


FAILURES = (RuntimeError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, AssertionError)
"""What a rule raises that does not know, or cannot solve, a case; the operation is then simulated."""


@dataclass(frozen=True)
class Forecast:
    """The predicted laws of one step.

    Attributes:
        tape: the step.
        laws: law of each floating-point value, by id.
        gradients: law of the loss's gradient with respect to each value, by id.
        states: the same forward laws resolved over sites and channels.
        trivial: indices of entries whose law is their input's by construction.
        simulated: entries that had no rule and were evaluated numerically on their predicted input law.
        unknown: entries that could not be predicted, and why.
        seconds: wall time of the prediction.
        mode: "conditioned" on the actual weights, or "ensemble" over draws of the weights from their laws.
    """

    tape: Tape
    laws: Mapping[int, Law]
    gradients: Mapping[int, Law]
    states: dict[int, State] = field(repr=False)
    trivial: frozenset[int] = frozenset()
    simulated: tuple[Entry, ...] = ()
    unknown: tuple[tuple[Entry, str], ...] = ()
    seconds: float = 0.0
    mode: Mode = "conditioned"

    @cached_property
    def attention(self) -> tuple[AttentionLaw, ...]:
        """What happens inside each attention, in order: spread of the scores, participation, entropy, largest score."""
        return attention_laws(self.tape, self.states)


def forecast(tape: Tape, sources: dict[int, State] | None = None, *, weights: Weights | None = None) -> Forecast:
    """Carry laws over a tape, forward and, if it has a loss, backward.

    Args:
        tape: the recorded step.
        sources: laws of values from outside, by id; parameters, buffers and known tensors need none. Inputs
            that are missing are taken as standard normal.
        weights: "actual" conditions on the parameters' numbers, "laws" leaves only their moments; None: the numbers
            where there are any, which is more accurate for the network at hand.

    Raises:
        InputError: the actual weights are asked for and a parameter is on the meta device.
    """
    begin = time.perf_counter()
    with torch.no_grad():
        sweep = Sweep(tape, sources or {}, weights=weights)
        sweep.forward()
        if tape.loss is not None:
            sweep.backward()
    states = {number: replace(state, latent=None, nodes=None) for number, state in sweep.states.items()}
    gradients = {number: replace(state, latent=None, nodes=None) for number, state in sweep.gradients.items()}
    return Forecast(
        tape, Laws(states), Laws(gradients), states, frozenset(sweep.trivial), tuple(sweep.simulated),
        tuple(sweep.unknown), time.perf_counter() - begin, "ensemble" if sweep.drawn else "conditioned",
    )  # fmt: skip


class Sweep:
    """One pass over a tape in each direction.

    Args:
        tape: the recorded step.
        sources: laws of values from outside.
        before: is called with the sweep and each entry before the entry is propagated; it may change parameters.
        weights: as for `forecast`.
    """

    def __init__(
        self,
        tape: Tape,
        sources: dict[int, State],
        before: Callable[[Sweep, Entry], None] | None = None,
        *,
        weights: Weights | None = None,
    ) -> None:
        self.tape = tape
        self.before = before
        self.states: dict[int, State] = {}
        self.gradients: dict[int, State] = {}
        self.axes: dict[int, Axes] = {}
        self.calls: list[tuple[Call, Any]] = []
        self.latents: dict[int, Any] = {}
        bare = [v for v in tape.value_of(Kind.PARAMETER) if v.content is not None and v.content.is_meta]
        if bare and weights == "actual":
            found = f"{bare[0].name} is on the meta device"
            raise InputError("predict from the actual weights", found, "Build the model with numbers, or ask for laws")
        self.by_law = weights == "laws"
        self.drawn = self.by_law or bool(bare)
        self.trivial: set[int] = set()
        self.declared: set[int] = set()  # values made of chance alone: their law is what the program says it is
        self.simulated: list[Entry] = []
        self.unknown: list[tuple[Entry, str]] = []
        self.lawless: dict[int, str] = {}
        for number, state in sources.items():
            if number in tape.values:
                self.states[number], self.axes[number] = state, state.axes

    def forward(self) -> None:
        """Propagate the laws from the first entry to the last."""
        for entry in self.tape.entries:
            if self.before is not None:
                self.before(self, entry)
            axes = self._read(entry)
            self.axes.update(zip(entry.outputs, axes, strict=True))
            outputs = [self.tape.values[number] for number in entry.outputs]
            if all(value.kind is Kind.KNOWN for value in outputs):
                for value in outputs:
                    self._source(value)
            elif any(value.is_float for value in outputs):
                self._propagate(entry, axes)

    def trial(self, entry: Entry) -> State | None:
        """The law of an entry's first result with the parameters as they are now, without keeping it."""
        fixed = [n for n in entry.inputs if self.tape.values[n].kind is Kind.PARAMETER]
        for number in fixed:
            self.states.pop(number, None)
        axes = self._read(entry)
        found = find(entry.op)
        try:
            result = found.forward(Call(self.tape, entry, self.states, axes, self.latents)) if found else None
        except NotImplementedError:
            result = None
        for number in fixed:
            self.states.pop(number, None)
        return result if isinstance(result, State) or result is None else result[0]

    def _read(self, entry: Entry) -> list[Axes]:
        """Make sure of the states of an entry's inputs; axes of its outputs."""
        for number in entry.inputs:
            if number not in self.axes:
                self.axes[number] = of_source(self.tape, self.tape.values[number], entry, self.axes)
            if number not in self.states:
                self._source(self.tape.values[number])
        return infer(self.tape, entry, self.axes)

    def _source(self, value: Value) -> None:
        """The state of a tensor from outside."""
        if not value.is_float:
            return
        axes = self.axes[value.id]
        if value.kind in (Kind.PARAMETER, Kind.BUFFER):
            try:
                self.states[value.id] = weight_state(value, axes, by_law=self.by_law)
            except NotImplementedError as error:
                self.lawless[value.id] = str(error)
        elif value.content is not None and not value.content.is_meta:
            self.states[value.id] = State.of_content(axes, value.content)
        else:
            self.states[value.id] = State.of(axes, 0.0, residual=1.0)

    def _propagate(self, entry: Entry, axes: list[Axes]) -> None:
        floats = [n for n in entry.inputs if self.tape.values[n].is_float]
        lost = [n for n in floats if n not in self.states]
        call = Call(self.tape, entry, self.states, axes, self.latents)
        found = fixed.WEIGHTS if not lost and fixed.applies(call) else find(entry.op)
        if lost:
            self.unknown.append(
                (entry, next((self.lawless[n] for n in lost if n in self.lawless), "an input's law is unknown"))
            )
            return
        try:
            states, found = _solved(call, found)
        except FAILURES as error:
            self.unknown.append((entry, _said(error)))
            return
        if found is None:
            self.simulated.append(entry)
        outputs = [n for n in entry.outputs if self.tape.values[n].is_float]
        for number, state in zip(outputs, states, strict=False):
            self.states[number] = evened(state) if self.drawn else state
        if entry.op in FRESH or (entry.inputs and self.declared.issuperset(entry.inputs)):
            self.declared.update(entry.outputs)
        if (found is not None and found.trivial) or self.declared.issuperset(entry.outputs):
            self.trivial.add(entry.index)
        self.calls.append((call, found))

    def backward(self) -> None:
        """Propagate the gradients' laws from the loss to the first entry."""
        loss = self.tape.loss
        assert loss is not None
        self.gradients[loss] = State.of(self.axes[loss], 1.0)
        for call, found in reversed(self.calls):
            upstream = [self.gradients.get(number) for number in call.entry.outputs]
            if all(state is None for state in upstream):
                continue
            try:
                grads = self._returned(call, found, upstream)
            except FAILURES as error:
                self.unknown.append((call.entry, f"backward: {_said(error)}"))
                continue
            for number, state in grads.items():
                if not self.tape.values[number].is_float:
                    continue
                before = self.gradients.get(number)
                total = state if before is None else joined(before, state)
                self.gradients[number] = evened(total) if self.drawn else total

    def _returned(self, call: Call, found: Rule | None, upstream: list[State | None]) -> Gradients:
        """Gradients of an entry's inputs, by its rule, else simulated."""
        if found is not None and found.backward is not None:
            try:
                grads = found.backward(call, upstream[0] if len(upstream) == 1 else upstream)
                if all(state.fits for state in grads.values()):
                    return grads
            except FAILURES:
                if not _settled(call):
                    raise
        grads = numerical.backward(call, upstream)
        if all(entry is not call.entry for entry in self.simulated):
            self.simulated.append(call.entry)
        return grads


def _solved(call: Call, found: Rule | None) -> tuple[list[State], Rule | None]:
    """States of an entry's floating-point results, by its rule, else simulated; and the rule that made them."""
    if found is not None:
        try:
            result = found.forward(call)
            states = [result] if isinstance(result, State) else list(result)
            if all(state.fits for state in states):
                return states, found
        except FAILURES:
            if not _settled(call):
                raise
    return numerical.forward(call), None


def _settled(call: Call) -> bool:
    """Whether the laws that an entry reads are finite; those that are not break solvers and draws alike."""
    read = (call.states[n] for n in call.entry.inputs if n in call.states)
    return all(bool(torch.isfinite(field).all()) for state in read for field in state.fields)


def _said(error: Exception) -> str:
    """The first line of an exception's message."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def default_projection(shape: tuple[int, ...]) -> torch.Tensor:
    """The fixed random direction that stands in for a loss when none is given: N(0, 1), always the same."""
    generator = torch.Generator().manual_seed(20260101)
    return torch.randn(shape, generator=generator)


__all__ = ["Forecast", "Weights", "forecast"]
