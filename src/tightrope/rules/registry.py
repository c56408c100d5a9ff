"""Which rule propagates which operation.

A rule is two functions: how the laws of the inputs give the law of the output, and how the law of the
output's gradient gives those of the inputs' gradients. It is registered under the names of the operations:

    @rule("linear")
    def linear(call: Call) -> State: ...

    @linear.gradient
    def _(call: Call, upstream: State) -> Gradients: ...
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import Tensor

from tightrope.errors import RegistryError
from tightrope.roles import Axes
from tightrope.rules.state import State
from tightrope.tape.tape import Entry, Ref, Tape, Value

Gradients = dict[int, State]
"""Gradient states by value id of the input."""

Forward = Callable[["Call"], "State | Sequence[State]"]
Backward = Callable[["Call", Any], Gradients]


@dataclass
class Call:
    """One entry, seen by a rule.

    Attributes:
        tape, entry: what was called.
        states: states of the values so far, by id; parameters and buffers with known content are exact.
        axes: axes of the outputs.
        latents: quadrature variables by value id, shared by all calls of a sweep, and what else calls leave each other.
        saved: what the forward rule leaves for the backward rule.
    """

    tape: Tape
    entry: Entry
    states: dict[int, State]
    axes: list[Axes]
    latents: dict[Any, Any] = field(default_factory=dict)
    saved: dict[str, Any] = field(default_factory=dict)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument as it was passed; a tensor is a `Ref`."""
        return self.entry.argument(position, name, default)

    def state(self, position: int, name: str = "") -> State | None:
        """The state of a tensor argument; None when it was not given or is not floating-point."""
        ref = self.entry.argument(position, name)
        return self.states.get(ref.id) if isinstance(ref, Ref) else None

    def content(self, position: int, name: str = "") -> Tensor | None:
        """The content of a tensor argument that is known beforehand (indices, masks)."""
        ref = self.entry.argument(position, name)
        return self.value(ref).content if isinstance(ref, Ref) else None

    def value(self, ref: Ref) -> Value:
        """What the tape knows of a tensor argument."""
        return self.tape.values[ref.id]

    def id(self, position: int, name: str = "") -> int | None:
        """The value id of a tensor argument."""
        ref = self.entry.argument(position, name)
        return ref.id if isinstance(ref, Ref) else None

    def readers(self, number: int) -> list[Entry]:
        """Entries that read a value."""
        return self.tape.readers.get(number, [])

    def maker(self, number: int) -> Entry:
        """The entry that made a value."""
        return self.tape.makers[number]

    @property
    def input(self) -> State:
        """The state of the first argument."""
        found = self.state(0, "input")
        assert found is not None, f"{self.entry.op} reads a tensor first"
        return found

    @property
    def output(self) -> State:
        """The state of the first output."""
        return self.states[self.entry.outputs[0]]


@dataclass
class Rule:
    """How one family of operations carries laws forward and backward."""

    ops: tuple[str, ...]
    forward: Forward
    where: str
    trivial: bool = False
    backward: Backward | None = None

    def gradient(self, function: Backward) -> Backward:
        """Register the backward half."""
        if self.backward is not None:
            raise RegistryError(
                f"register the gradient of {self.ops}", f"it has one already ({self.where})", "Remove one"
            )
        self.backward = function
        return function


_RULES: dict[str, Rule] = {}


def rule(*ops: str, trivial: bool = False) -> Callable[[Forward], Rule]:
    """Register the forward half of a rule for the named operations.

    Args:
        ops: names as `tightrope.tape` gives them (`linear`, `relu`, `add`).
        trivial: whether the result's law is the input's by construction (views, copies).

    Raises:
        RegistryError: an operation has a rule already.
    """

    def register(function: Forward) -> Rule:
        where = f"{inspect.getsourcefile(function)}:{function.__code__.co_firstlineno}"
        made = Rule(ops, function, where, trivial)
        for op in ops:
            if op in _RULES:
                raise RegistryError(f"register a rule for {op}", f"{_RULES[op].where} has one", f"Remove it or {where}")
            _RULES[op] = made
        return made

    return register


def find(op: str) -> Rule | None:
    """The rule of an operation, or None."""
    _load()
    return _RULES.get(op)


def known_ops() -> list[str]:
    """All operations with a rule, sorted."""
    _load()
    return sorted(_RULES)


@cache
def _load() -> None:
    """Import all modules of rules, once."""
    package = importlib.import_module("tightrope.rules")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"tightrope.rules.{module.name}")
