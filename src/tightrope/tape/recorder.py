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
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_flatten, tree_map

from tightrope.tape.modules import ModuleStack
from tightrope.tape.source import locate
from tightrope.tape.tape import Entry, Kind, Ref, Tape, Value

COMPOSITES = frozenset(
    {F.multi_head_attention_forward, F.normalize, F.local_response_norm, F.gumbel_softmax, F.cosine_embedding_loss}
)
"""Functions written in Python out of others: they are entered, so that their parts are seen."""

KEEP_CONTENT = 1 << 24
"""Largest number of elements of a known tensor (mask, index) that the tape keeps a reference to."""

_SPECIAL = {
    "__radd__": "add", "__rsub__": "rsub", "__rmul__": "mul", "__rtruediv__": "rdiv", "__rdiv__": "rdiv",
    "__truediv__": "div", "__floordiv__": "floor_divide", "__rfloordiv__": "rfloor_divide", "__rpow__": "rpow",
    "__matmul__": "matmul", "__rmatmul__": "rmatmul", "true_divide": "div", "divide": "div", "multiply": "mul",
    "subtract": "sub", "negative": "neg", "concat": "cat", "concatenate": "cat", "absolute": "abs",
    "swapaxes": "transpose", "swapdims": "transpose", "moveaxis": "movedim", "special_erf": "erf",
    "special_expit": "sigmoid", "conj": "alias", "clip": "clamp",
}  # fmt: skip
_IGNORED = frozenset(
    {"requires_grad", "register_hook", "retain_grad", "set", "_set_grad_enabled", "item", "grad", "data_ptr", "storage"}
)
RANDOM = frozenset(
    {"randn", "rand", "randn_like", "rand_like", "randint", "randint_like", "randperm", "normal", "bernoulli",
     "multinomial", "poisson", "exponential", "uniform", "log_normal", "cauchy", "geometric", "empty", "empty_like"}
)  # fmt: skip
"""Functions whose result is drawn or undefined, so that equal arguments do not fix it."""


def op_name(function: Callable[..., Any]) -> str:
    """One name for all spellings of an operation: `torch.add`, `Tensor.add_` and `+` are `add`."""
    name = getattr(function, "__name__", "") or ""
    if name == "__get__":
        return (resolve_name(function) or "").split(".")[-2]
    if name in _SPECIAL:
        return _SPECIAL[name]
    if name.startswith("__") and name.endswith("__"):
        name = name[2:-2]
        if name.startswith("i") and name[1:] in ("add", "sub", "mul", "truediv", "div", "pow", "matmul", "and", "or"):
            name = name[1:]
        name = {"truediv": "div"}.get(name, name)
    elif name.endswith("_") and not name.startswith("_"):
        name = name[:-1]
    return _SPECIAL.get(name, name)


def is_inplace(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call overwrites its first argument."""
    name = getattr(function, "__name__", "") or ""
    if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
        return True
    if name.startswith("__i") and name.endswith("__") and name not in ("__invert__", "__index__", "__int__"):
        return True
    return bool(kwargs.get("inplace", False))


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
    """

    def __init__(
        self,
        observer: Observer | None = None,
        *,
        roots: dict[str, torch.nn.Module] | None = None,
        on_backward: Callable[[Tape], None] | None = None,
    ) -> None:
        super().__init__()
        self.observer = observer
        self.modules = ModuleStack(roots)
        self.on_backward = on_backward
        self.tape = Tape(modules=self.modules.info)
        self._known: dict[int, tuple[weakref.ref[torch.Tensor], int]] = {}
        self._hooks: list[Any] = []
        self._hooked: set[int] = set()

    def __enter__(self) -> Recorder:
        self.modules.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)  # type: ignore[no-untyped-call]
        self.modules.__exit__(*exc)
        for handle in self._hooks:
            handle.remove()
        self._hooks.clear()
        self.tape.complete = not exc or exc[0] is None

    # -- the handler -----------------------------------------------------------------------------

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in COMPOSITES:
            with _entered(self):
                return function(*args, **kwargs)
        name = op_name(function)
        if name in ("backward", "grad") and function in _BACKWARD:
            return self._backward(function, args, kwargs)
        return self._call(function, name, args, kwargs)

    def _run(self, function: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make the call; a tracer makes it on shapes alone."""
        return function(*args, **kwargs)

    def _call(self, function: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name in _IGNORED or not self._relevant(args, kwargs):
            return self._run(function, name, args, kwargs)
        # Inputs are named before the call, because the call may overwrite them.
        arguments = tree_map(lambda x: Ref(self._value(x)) if isinstance(x, torch.Tensor) else x, (args, kwargs))
        inplace = is_inplace(function, args, kwargs)
        result = self._run(function, name, args, kwargs)
        produced = args[0] if name == "setitem" else result
        tensors = [t for t in tree_flatten(produced)[0] if isinstance(t, torch.Tensor)]
        if tensors:
            self._append(function, name, arguments, tensors, inplace)
            self._tell(args, kwargs)
        return result

    def _tell(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Show the call's own tensors to an observer that asks for them."""
        on_call = getattr(self.observer, "on_call", None)
        if on_call is not None:
            with torch.no_grad():
                on_call(self.tape.entries[-1], args, kwargs)

    def _relevant(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Inside a module everything counts; outside, only what leads from a parameter to a loss."""
        if self.modules.stack:
            return True
        if not torch.is_grad_enabled():
            return False
        return any(isinstance(t, torch.Tensor) and t.requires_grad for t in tree_flatten((args, kwargs))[0])

    def _append(self, function: Any, name: str, arguments: Any, tensors: list[torch.Tensor], inplace: bool) -> None:
        args, kwargs = arguments
        refs = tuple(x.id for x in tree_flatten(arguments)[0] if isinstance(x, Ref))
        index = len(self.tape.entries)
        fixed = name not in RANDOM and all(self._is_fixed(self.tape.values[i], inplace) for i in refs)
        kind = Kind.KNOWN if fixed else Kind.RESULT
        values = [self._new(t, kind, producer=index) for t in tensors]
        entry = Entry(
            index, name, function, args, kwargs, refs, tuple(v.id for v in values), self.modules.path,
            locate(sys._getframe(3)), inplace, self.modules.training, torch.is_grad_enabled(),
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
        old, written = self._value(base), view.outputs[0]
        new = self._new(base, self.tape.values[written].kind, producer=view.index + 1)
        entry = Entry(
            view.index + 1, "write_through", torch.Tensor.copy_, (Ref(old), Ref(written)), {}, (old, written),
            (new.id,), view.module, view.location, True, view.training, view.grad,
        )  # fmt: skip
        self.tape.entries.append(entry)
        self._observe(new, base, entry)

    # -- values ----------------------------------------------------------------------------------

    def _value(self, tensor: torch.Tensor) -> int:
        """The id of a tensor's current value; one from outside is given an id now."""
        held = self._known.get(id(tensor))
        if held is not None and held[0]() is tensor:
            return held[1]
        samples = self.tape.samples
        if tensor.is_leaf and (tensor.requires_grad or isinstance(tensor, torch.nn.Parameter)):
            name: str | None = self.modules.parameters.get(id(tensor)) or f"parameter {len(self.tape.values)}"
            kind = Kind.PARAMETER
        elif id(tensor) in self.modules.buffers:
            name, kind = self.modules.buffers[id(tensor)], Kind.BUFFER
        elif tensor.is_floating_point() and tensor.ndim > 0 and samples in (None, tensor.shape[0]):
            name, kind = None, Kind.INPUT
        else:
            name, kind = None, Kind.KNOWN
        value = self._new(tensor, kind, name=name)
        if samples is None and kind in (Kind.INPUT, Kind.KNOWN) and tensor.ndim > 0:
            self.tape.samples = tensor.shape[0]
        self._observe(value, tensor, None)
        return value.id

    def _new(self, tensor: torch.Tensor, kind: Kind, *, name: str | None = None, producer: int | None = None) -> Value:
        number = len(self.tape.values)
        keep = kind is not Kind.RESULT and (kind is not Kind.KNOWN or tensor.numel() <= KEEP_CONTENT)
        content = self._content(tensor) if keep else None
        value = Value(number, tuple(tensor.shape), tensor.dtype, kind, name, content, producer)
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
        if tensor.is_leaf:
            if id(tensor) in self._hooked:
                return
            self._hooked.add(id(tensor))

        def on_gradient(gradient: torch.Tensor) -> None:
            with torch.no_grad():
                observer.on_gradient(value, gradient.detach())

        self._hooks.append(tensor.register_hook(on_gradient))

    # -- backward --------------------------------------------------------------------------------

    def _backward(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        leaves = tree_flatten((args, kwargs))[0]
        losses = [self._known[id(t)][1] for t in leaves if isinstance(t, torch.Tensor) and id(t) in self._known]
        tape = self.tape.of(losses[0]) if losses and not kwargs.get("create_graph", False) else None
        if tape is not None and self.observer is not None:
            self.observer.on_backward(tape)
        self.modules.paused = True
        try:
            result = self._run(function, "backward", args, kwargs)
        finally:
            self.modules.paused = False
        if tape is not None and self.on_backward is not None:
            self.on_backward(tape)
        return result


_BACKWARD = (torch.Tensor.backward, torch.autograd.backward, torch.autograd.grad)


@contextmanager
def _entered(recorder: Recorder) -> Iterator[None]:
    """While a composite's body runs, the recorder sees it and the composite asks for no override of itself."""
    names = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    nothing: dict[str, Any] = {name: lambda *_: False for name in names}
    with mock.patch.multiple(F, **nothing):
        TorchFunctionMode.__enter__(recorder)
        try:
            yield
        finally:
            TorchFunctionMode.__exit__(recorder, None, None, None)
