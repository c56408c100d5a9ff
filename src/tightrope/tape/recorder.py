"""Records a training step call by call, without touching it.

The recorder is a `torch.overrides.TorchFunctionMode`: it sees every torch function as the user wrote it
and runs it unchanged. What backward recomputes (activation checkpointing) is not recorded twice, because
a mode is off while its own handler runs `Tensor.backward`.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from unittest import mock

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from tightrope.errors import RecordError
from tightrope.tape import stack
from tightrope.tape.modules import ModuleStack, variable
from tightrope.tape.names import COMPOSITES, IGNORED, RANDOM, is_inplace, op_name
from tightrope.tape.source import locate
from tightrope.tape.tape import Entry, Kind, Ref, Tape, Value

KEEP_CONTENT = 1 << 24
"""Largest number of elements of a known tensor (mask, index) that the tape keeps a reference to."""

COLLECT_ENTRIES = 10_000
COLLECT_BYTES = 1 << 28
"""After so many new entries, or so much data held, the tape forgets what no living tensor depends on."""

MOST_ENTRIES = 200_000
"""A step of more calls than that is not recorded: about a gigabyte of notes."""


class Observer(Protocol):
    """What a recorder tells about the tensors that pass; it must not keep them alive."""

    def on_value(self, tape: Tape, value: Value, tensor: torch.Tensor, entry: Entry | None) -> None:
        """A value appeared: made by `entry`, or from outside when that is None."""

    def on_gradient(self, value: Value, gradient: torch.Tensor) -> None:
        """The gradient of the loss reached a value."""

    def on_backward(self, tape: Tape) -> None:
        """A backward pass is about to start; `tape` holds what its loss depends on."""


class Recorder(TorchFunctionMode):
    """Context manager that records what happens inside it.

        with Recorder(observer, on_backward=tapes.append):
            loss = criterion(model(x), y)
            loss.backward()

    Everything between entering and leaving stands on one tape, `recorder.tape`; each backward pass gives a
    tape of its own that holds what its loss depends on (GANs and accumulated gradients have several).

    Args:
        observer: is told of every tensor and gradient; None to record structure alone.
        roots: models by name, so that their parameters have paths before they are called.
        on_backward: called with the pass's tape when a backward pass has ended, before anything is updated.
        on_failure: is told of an exception in the observation itself, after which the recorder lets every call
            pass; when None such an exception is raised.
        skip_without_grad: leave out what a top-level module computes while autograd is off (evaluation).
        on_call: is told of every call that is written down: its name, arguments and result.

    Attributes:
        muted: let every call pass unseen.
    """

    def __init__(
        self,
        observer: Observer | None = None,
        *,
        roots: dict[str, torch.nn.Module] | None = None,
        on_backward: Callable[[Tape], None] | None = None,
        on_failure: Callable[[Exception], None] | None = None,
        skip_without_grad: bool = False,
        on_call: Callable[[str, tuple[Any, ...], dict[str, Any], Any], None] | None = None,
    ) -> None:
        super().__init__()
        self.observer = observer
        self.modules = ModuleStack(roots, guard=self._guarded, on_root=self._on_root)
        if skip_without_grad:
            self.modules.on_idle = self._on_idle
        self.on_backward = on_backward
        self.on_failure = on_failure
        self.on_call = on_call
        self.muted = False
        self.tape = Tape(modules=self.modules.info)
        self._known: dict[int, tuple[weakref.ref[torch.Tensor], int]] = {}
        self._hooks: list[Any] = []
        self._hooked: dict[int, Any] = {}
        self._versions: dict[int, int] = {}
        self.raised: str | None = None
        self._next = self._count = 0
        self._held = 0
        self._was_seeing = False
        self._collect_at = COLLECT_ENTRIES

    def __enter__(self) -> Recorder:
        self.modules.__enter__()
        self.resume()
        return self

    def __exit__(self, *exc: Any) -> None:
        self.suspend()
        self.modules.__exit__(*exc)
        for handle in self._hooks:
            handle.remove()
        self._hooks.clear()
        self.tape.complete = not exc or exc[0] is None

    def suspend(self) -> bool:
        """Stop seeing calls until `resume`; nothing of the recorder is left in their way.

        Returns:
            Whether it saw them before.
        """
        return stack.remove(self)

    def resume(self) -> None:
        """See calls again."""
        if not stack.holds(self):
            stack.insert(self)

    def _on_idle(self, idle: bool) -> None:
        if idle:
            self._was_seeing = self.suspend()
        elif self._was_seeing:
            self.resume()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """An exception in here is the observation's own: it must not reach the step that is observed."""
        try:
            yield
        except Exception as error:
            if self.on_failure is None:
                raise
            if not self.muted:
                self.muted = True
                self.on_failure(error)

    def _on_root(self, args: Any) -> int:
        """A module is called at top level: its first tensor tells the length of the batch."""
        first = next((t for t in tree_flatten(args)[0] if isinstance(t, torch.Tensor) and t.ndim > 0), None)
        if first is not None and self.tape.samples is None:
            self.tape.samples = first.shape[0]
        return self._next

    def leaves(self) -> Iterator[tuple[int, torch.Tensor]]:
        """The living parameters that the step has read, each with its value's number; raw tensors are none."""
        for held, number in self._known.values():
            tensor = held()
            if isinstance(tensor, torch.nn.Parameter) and self.tape.values[number].kind is Kind.PARAMETER:
                yield number, tensor

    def where(self) -> str:
        """How far the step came: the call that failed, else the last one that was made."""
        if self.raised is not None:
            return self.raised
        if not self.tape.entries:
            return "before the first call"
        last = self.tape.entries[-1]
        return f"after {last.op} of {last.module or 'the model'} ({last.location})"

    # -- the handler -----------------------------------------------------------------------------

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.muted:
            return function(*args, **kwargs)
        if function in COMPOSITES:
            with entered(self):
                return function(*args, **kwargs)
        if (
            function is torch.broadcast_tensors
        ):  # each of them is seen to be expanded: a result depends on its own alone
            shape, expanded = torch.broadcast_shapes(*(t.shape for t in args)), []
            for tensor in args:
                expanded.append(self._call(torch.Tensor.expand, "expand", (tensor, shape), {}))
            return tuple(expanded)
        name = op_name(function)
        if name in ("backward", "grad") and getattr(function, "__wrapped__", function) in _BACKWARD:
            return self._backward(function, args, kwargs)
        return self._call(function, name, args, kwargs)

    def _run(self, function: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make the call; a tracer makes it on shapes alone."""
        return function(*args, **kwargs)

    def _call(self, function: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name in IGNORED or not self._relevant(function, args, kwargs):
            return self._run(function, name, args, kwargs)
        arguments: Any = None
        if is_inplace(function, args, kwargs) or "out" in kwargs:  # the call overwrites one of its inputs
            with self._guarded():
                arguments = self._named(args, kwargs)
        try:
            result = self._run(function, name, args, kwargs)
        except Exception:
            self.raised = f"in {name} of {self.modules.path or 'the model'} ({locate(sys._getframe(2))})"
            raise
        with self._guarded():
            self._made(function, name, args, kwargs, arguments, result)
        return result

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The arguments with their tensors replaced by references."""
        return tree_map(lambda x: Ref(self._value(x)) if isinstance(x, torch.Tensor) else x, (args, kwargs))

    def _made(self, function: Any, name: str, args: Any, kwargs: dict[str, Any], arguments: Any, result: Any) -> None:
        """A call has returned: write it down."""
        tensors = [t for t in tree_flatten(args[0] if name == "setitem" else result)[0] if isinstance(t, torch.Tensor)]
        if not tensors:
            return
        if arguments is None:
            arguments = self._named(args, kwargs)
        self._append(function, name, arguments, tensors, is_inplace(function, args, kwargs))
        self._tell(args, kwargs)
        if self.on_call is not None:
            self.on_call(name, args, kwargs, result)
        if len(self.tape.entries) >= self._collect_at or self._held >= COLLECT_BYTES:
            self.collect()

    def _tell(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Show the call's own tensors to an observer that asks for them."""
        on_call = getattr(self.observer, "on_call", None)
        if on_call is not None:
            with torch.no_grad():
                on_call(self.tape.entries[-1], args, kwargs)

    def _relevant(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Inside a module everything counts; outside, only what leads from a parameter to a loss."""
        if self.modules.stack:
            return True
        if not torch.is_grad_enabled() or getattr(function, "__module__", None) == "torch.nn.init":
            return False
        return any(isinstance(t, torch.Tensor) and t.requires_grad for t in tree_flatten((args, kwargs))[0])

    def _append(self, function: Any, name: str, arguments: Any, tensors: list[torch.Tensor], inplace: bool) -> None:
        args, kwargs = arguments
        refs = tuple(x.id for x in tree_flatten(arguments)[0] if isinstance(x, Ref))
        index = self._number()
        fixed = name not in RANDOM and all(self._is_fixed(self.tape.values[i], inplace) for i in refs)
        kind = Kind.KNOWN if fixed else Kind.RESULT
        values = [self._new(t, kind, producer=index) for t in tensors]
        entry = Entry(
            index, name, function, args, kwargs, refs, tuple(v.id for v in values), self.modules.path,
            locate(sys._getframe(4)), inplace, self.modules.training, torch.is_grad_enabled(),
        )  # fmt: skip
        self.tape.entries.append(entry)
        for value, tensor in zip(values, tensors, strict=True):
            self._observe(value, tensor, entry)
        base = tensors[0]._base if inplace else None
        if base is not None and id(base) in self._known:
            self._write_through(base, entry)

    def _is_fixed(self, value: Value, inplace: bool) -> bool:
        """Whether a value was settled before the step: known, or a buffer that is read and not overwritten."""
        held = value.content is not None and not value.content.is_meta and value.content.numel() <= KEEP_CONTENT
        return value.kind is Kind.KNOWN or (value.kind is Kind.BUFFER and held and not inplace)

    def _write_through(self, base: torch.Tensor, view: Entry) -> None:
        """A view was overwritten, so the tensor behind it has a new value too."""
        old, written, index = self._value(base), view.outputs[0], self._number()
        new = self._new(base, self.tape.values[written].kind, producer=index)
        entry = Entry(
            index, "write_through", torch.Tensor.copy_, (Ref(old), Ref(written)), {}, (old, written),
            (new.id,), view.module, view.location, True, view.training, view.grad,
        )  # fmt: skip
        self.tape.entries.append(entry)
        self._observe(new, base, entry)

    def _number(self) -> int:
        """The index of the next entry; `collect` leaves gaps."""
        self._next += 1
        return self._next - 1

    def collect(self) -> None:
        """Forget what no living tensor depends on, so that a long way to the first backward pass stays small."""
        self._known = {key: held for key, held in self._known.items() if held[0]() is not None}
        for table in (self._hooked, self._versions):
            for key in table.keys() - self._known.keys():
                del table[key]
        kept = self.tape.ancestors(*(number for _, number in self._known.values()))
        entries = [entry for entry in self.tape.entries if kept.intersection(entry.outputs)]
        kept.update(number for entry in entries for number in entry.outputs)
        self.tape.entries[:] = entries
        for number in [number for number in self.tape.values if number not in kept]:
            del self.tape.values[number]
        self._hooks = [handle for handle in self._hooks if handle.hooks_dict_ref() is not None]
        if len(entries) > MOST_ENTRIES:
            asked, remedy = "record a training step", "Record a shorter sequence or a smaller accumulation"
            raise RecordError(asked, f"its loss depends on more than {MOST_ENTRIES} calls", remedy)
        self._collect_at, self._held = COLLECT_ENTRIES + 2 * len(entries), 0
        if not entries:
            self.tape.samples = None
        on_collect = getattr(self.observer, "on_collect", None)
        if on_collect is not None:
            on_collect(kept)

    # -- values ----------------------------------------------------------------------------------

    def _value(self, tensor: torch.Tensor) -> int:
        """The id of a tensor's current value; one from outside is given an id now."""
        held = self._known.get(id(tensor))
        if held is not None and held[0]() is tensor:
            version = self._versions.get(id(tensor))
            if version is None or version == tensor._version:
                return held[1]
        samples = self.tape.samples
        if tensor.is_leaf and (tensor.requires_grad or isinstance(tensor, torch.nn.Parameter)):
            name: str | None = self.modules.parameters.get(id(tensor)) or variable(tensor)
            name = name or f"parameter {self._count}"
            kind = Kind.PARAMETER
        elif id(tensor) in self.modules.buffers:
            name, kind = self.modules.buffers[id(tensor)], Kind.BUFFER
        elif tensor.is_floating_point() and tensor.ndim > 0 and samples in (None, tensor.shape[0]):
            name, kind = None, Kind.INPUT
        else:
            name, kind = None, Kind.KNOWN
        value = self._new(tensor, kind, name=name)
        if kind is Kind.PARAMETER and not tensor.is_inference():  # an unseen update makes another value of it
            self._versions[id(tensor)] = tensor._version
        if samples is None and kind in (Kind.INPUT, Kind.KNOWN) and tensor.ndim > 0:
            self.tape.samples = tensor.shape[0]
        self._observe(value, tensor, None)
        return value.id

    def _new(self, tensor: torch.Tensor, kind: Kind, *, name: str | None = None, producer: int | None = None) -> Value:
        number, self._count = self._count, self._count + 1
        keep = kind is not Kind.RESULT and (kind is not Kind.KNOWN or tensor.numel() <= KEEP_CONTENT)
        content = self._content(tensor) if keep else None
        if content is not None and kind is not Kind.PARAMETER:
            self._held += content.nbytes
        trained = kind is Kind.PARAMETER and tensor.requires_grad
        value = Value(number, tuple(tensor.shape), tensor.dtype, kind, name, content, producer, trained)
        self.tape.values[number] = value
        self._known[id(tensor)] = (weakref.ref(tensor), number)
        return value

    def _content(self, tensor: torch.Tensor) -> torch.Tensor:
        """The numbers behind a tensor from outside; a reference, not a copy."""
        return tensor.detach()

    def _observe(self, value: Value, tensor: torch.Tensor, entry: Entry | None) -> None:
        if self.observer is None:
            return
        observer = self.observer
        with torch.no_grad():
            observer.on_value(self.tape, value, tensor.detach(), entry)
        if not tensor.requires_grad or not value.is_float:
            return
        if tensor.is_leaf and id(tensor) in self._hooked:
            self._hooked[id(tensor)].remove()

        def on_gradient(gradient: torch.Tensor | None) -> None:
            if gradient is None:  # of an output that the loss does not depend on, beside one that it does
                return
            with torch.no_grad(), self._guarded():
                observer.on_gradient(value, gradient.detach())

        self._hooks.append(tensor.register_hook(on_gradient))
        if tensor.is_leaf:
            self._hooked[id(tensor)] = self._hooks[-1]

    # -- backward --------------------------------------------------------------------------------

    def _backward(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tape: Tape | None = None
        with self._guarded():
            tape = self._pass(args, kwargs)
        self.modules.paused = True
        try:
            result = self._run(function, "backward", args, kwargs)
        finally:
            self.modules.paused = False
        if tape is not None and self.on_backward is not None:
            with self._guarded():
                self.on_backward(tape)
        return result

    def _pass(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tape | None:
        """The tape of a backward pass that is about to start; None for one that is itself part of a loss."""
        leaves = tree_flatten((args, kwargs))[0]
        losses = [self._known[id(t)][1] for t in leaves if isinstance(t, torch.Tensor) and id(t) in self._known]
        if not losses or kwargs.get("create_graph", False):
            return None
        tape = self.tape.of(losses[0])
        if self.observer is not None:
            self.observer.on_backward(tape)
        return tape


_BACKWARD = (torch.Tensor.backward, torch.autograd.backward, torch.autograd.grad)


@contextmanager
def entered(recorder: TorchFunctionMode) -> Iterator[None]:
    """While a composite's body runs, the mode sees it and the composite asks for no override of itself."""
    names = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    nothing: dict[str, Any] = {name: lambda *_: False for name in names}
    with mock.patch.multiple(F, **nothing):
        TorchFunctionMode.__enter__(recorder)
        try:
            yield
        finally:
            TorchFunctionMode.__exit__(recorder, None, None, None)
