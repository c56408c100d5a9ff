"""The calls of a recorded step's models, which can be made again in another mode without a trace."""

from __future__ import annotations

import collections
import contextlib
import dis
import inspect
import io
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as hooks

from tightrope.isolation import force_eager, preserved, undisturbed
from tightrope.tape.modules import RootCall, unwrap
from tightrope.tape.recorder import Recorder
from tightrope.tape.source import is_library
from tightrope.tape.tape import Tape

CALLS = 16
"""Calls of one step that are made again; a rollout has more, and its state is not ours to follow."""
DEPTH = 4
"""How deep a module's attributes are looked into."""
_PLAIN = (int, float, complex, str, bytes, bool, type(None), type, torch.dtype, torch.device, torch.Size, slice, range)
_OWN = frozenset(vars(nn.Module()))


class Replay:
    """Makes the calls of the models again.

    Args:
        calls: of the models' roots, in order.
        roots: the models by name.
    """

    def __init__(self, calls: Iterable[RootCall], roots: dict[str, nn.Module]) -> None:
        self.calls, self.roots = tuple(calls), roots
        self._tapes: dict[bool | None, Tape | None] = {}

    @classmethod
    def of(cls, recorder: Recorder, tape: Tape) -> Replay | None:
        """The calls that a tape depends on; None where they cannot be made again."""
        starts = [call.index for call in recorder.modules.calls] + [sys.maxsize]
        indices = [entry.index for entry in tape.entries]
        calls = [
            call for call, end in zip(recorder.modules.calls, starts[1:], strict=True)
            if any(call.index <= i < end for i in indices)
        ]  # fmt: skip
        roots = {recorder.modules.paths[root]: root for root in recorder.modules.roots}
        whole = recorder.modules.count == len(recorder.modules.calls) and 0 < len(calls) <= CALLS
        return cls(calls, roots) if whole else None

    def tape(self, *, training: bool | None = None) -> Tape | None:
        """The calls as they are in a mode; None where they cannot be made again.

        Whatever goes wrong on the way means that it is not known. Parameters, buffers, gradients, modes, attributes,
        random states and standard output stay as they are.

        Args:
            training: of all modules; None leaves each as it is.
        """
        if training not in self._tapes:
            self._tapes[training] = None
            with contextlib.suppress(Exception):
                self._tapes[training] = self._run(training)
        return self._tapes[training]

    def _run(self, training: bool | None) -> Tape | None:
        modules = {call.module for call in self.calls}
        if not all(map(repeatable, modules)) or not all(call.unchanged for call in self.calls):
            return None
        recorder = Recorder(None, roots=self.roots)
        with ExitStack() as context:
            context.enter_context(undisturbed())
            context.enter_context(force_eager())
            for module in modules:
                context.enter_context(held(module))
                for part in module.modules() if training is not None else ():
                    part.training = bool(training)
            for stream in (contextlib.redirect_stdout, contextlib.redirect_stderr):
                context.enter_context(stream(io.StringIO()))
            context.enter_context(torch.no_grad())
            with recorder:
                for call in self.calls:
                    unwrap(call.module)(*call.args, **call.kwargs)
        return recorder.tape


def repeatable(module: nn.Module) -> bool:
    """Whether nothing that cannot be put back is known to happen when a module is called."""
    tables: list[dict[int, Any]] = [hooks._global_forward_hooks, hooks._global_forward_pre_hooks]
    for part in module.modules():
        tables += [part._forward_hooks, part._forward_pre_hooks]
    if any(_origin(hook) not in ("torch", "tightrope") for table in tables for hook in table.values()):
        return False
    return not any(_writes_globals(kind) for kind in {type(part) for part in module.modules()})


def _origin(function: Any) -> str:
    named = function if hasattr(function, "__module__") else type(function)
    return (getattr(named, "__module__", "") or "").partition(".")[0]


def _writes_globals(kind: type) -> bool:
    """Whether a method of the user's own class assigns names outside itself."""
    if is_library(kind):
        return False
    functions = [f for _, f in inspect.getmembers(kind, inspect.isfunction) if isinstance(f, FunctionType)]
    own = [f for f in functions if _origin(f) != "torch" and f.__name__ != "__init__"]
    return any(i.opname in ("STORE_GLOBAL", "STORE_DEREF") for f in own for i in dis.get_instructions(f))


@contextmanager
def held(module: nn.Module) -> Iterator[None]:
    """Leave a module and what it keeps as they were found.

    Raises:
        TypeError: an attribute cannot be put back.
    """
    with preserved(module), _attributes(module):
        yield


@contextmanager
def _attributes(module: nn.Module) -> Iterator[None]:
    """Leave what modules keep in attributes of their own as it was found.

    Raises:
        TypeError: an attribute cannot be put back.
    """
    undo: list[Callable[[], object]] = []
    seen: set[int] = set()
    for part in module.modules():
        _save({k: v for k, v in vars(part).items() if k not in _OWN}, undo, seen, 0, vars(part))
        for kind in type(part).__mro__[:-2]:
            if id(kind) not in seen and not is_library(kind):
                seen.add(id(kind))
                undo.append(_restoring(kind, {k: v for k, v in vars(kind).items() if isinstance(v, _PLAIN)}))
    try:
        yield
    finally:
        for act in reversed(undo):
            act()


def _restoring(kind: type, table: dict[str, Any]) -> Callable[[], None]:
    def act() -> None:
        for name, value in table.items():
            if not name.startswith("__") and getattr(kind, name, None) is not value:
                setattr(kind, name, value)

    return act


def _save(value: Any, undo: list[Callable[[], object]], seen: set[int], depth: int, target: Any = None) -> None:
    """Remember how to put one value back, and what it holds."""
    owner = value if target is None else target
    if isinstance(value, (*_PLAIN, nn.Module, nn.Parameter)) or callable(value) or id(owner) in seen:
        return
    seen.add(id(owner))
    if depth > DEPTH:
        raise TypeError("attributes are nested too deep")
    if isinstance(value, torch.Tensor):
        undo.append(_tensor(value))
    elif isinstance(value, dict):
        undo.append(_refill(owner, dict(value), target is not None))
        _each(value.values(), undo, seen, depth)
    elif isinstance(value, (list, set, collections.deque)):
        undo.append(_refill(owner, list(value), False))
        _each(value, undo, seen, depth)
    elif isinstance(value, (tuple, frozenset)):
        _each(value, undo, seen, depth)
    elif isinstance(value, torch.Generator):
        undo.append(partial(value.set_state, value.get_state()))
    elif isinstance(value, random.Random):
        undo.append(partial(value.setstate, value.getstate()))
    elif hasattr(value, "__dict__") and not hasattr(value, "__next__"):
        _save(dict(vars(value)), undo, seen, depth, vars(value))
    else:
        raise TypeError(f"{type(value).__name__} cannot be put back")


def _each(items: Iterable[Any], undo: list[Callable[[], object]], seen: set[int], depth: int) -> None:
    for item in items:
        _save(item, undo, seen, depth + 1)


def _tensor(value: torch.Tensor) -> Callable[[], None]:
    before, version = value.detach().clone(), value._version

    def act() -> None:
        if value._version != version:
            with torch.no_grad():
                value.copy_(before)

    return act


def _refill(owner: Any, content: Any, some: bool) -> Callable[[], None]:
    """Put the content of a container back; of a module's own table only what is not torch's."""

    def act() -> None:
        if some:
            for name in [name for name in owner if name not in content and name not in _OWN]:
                del owner[name]
        else:
            owner.clear()
        owner.extend(content) if hasattr(owner, "extend") else owner.update(content)

    return act


__all__ = ["Replay", "held", "repeatable"]
