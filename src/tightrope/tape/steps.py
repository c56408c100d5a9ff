"""Finds the training steps of a script that knows nothing of it.

A step ends when every optimizer of the cycle has stepped, or when one of them is about to step again; in a script
that has built no optimizer, with each backward pass. All that stays in the script's way are torch's own global
optimizer hooks and one Python frame around `backward`, `autograd.grad`, `GradScaler.step` and the construction of an
optimizer.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol
from unittest import mock

import torch
from torch.amp.grad_scaler import GradScaler, OptState
from torch.nn.utils import clip_grad
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils._pytree import tree_flatten, tree_map

_ENGINE = torch.autograd.backward


class Listener(Protocol):
    """What is told of the steps."""

    def watching(self) -> bool:
        """Whether calls are the script's own now; False while an observer works."""

    def on_built(self, optimizer: Optimizer) -> None:
        """An optimizer was built by the code that is running."""

    def on_pass(self) -> None:
        """A backward pass is about to start."""

    def on_passed(self) -> None:
        """A backward pass has ended; what it left in the gradients is there."""

    def on_update(self, last: bool, optimizer: Optimizer | None, closure: bool) -> bool:
        """Parameters are about to be updated, by the `last` optimizer of the step; True asks for gradients of zero.

        The optimizer is None where none steps: in a script without one, or when a scaler leaves its step out. With a
        closure it computes its gradients itself.
        """

    def during_update(self) -> AbstractContextManager[None]:
        """Entered around the closure of an optimizer."""

    def on_updated(self, optimizer: Optimizer | None) -> None:
        """The optimizer has returned."""

    def on_scaled(self, scaler: GradScaler, *, skipped: bool, unscaled: bool) -> None:
        """A scaler has made a step or left it out; `unscaled`: the gradients had been divided by its scale before."""

    def on_clip(self, limit: float, norm: Any) -> None:
        """Gradients were clipped so that their norm, which was `norm`, is at most `limit`."""

    def on_step(self, late: bool) -> None:
        """A step has ended; `late`: it had ended before the passes since the last update."""

    def on_loss(self, value: float) -> None:
        """A backward pass starts from this number; told only where reading it costs nothing."""


class Steps:
    """Context manager that tells a listener of every training step that runs inside it."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.optimizers: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._cycle: frozenset[int] | None = None
        self._stepped: set[int] = set()
        self._inside: Optimizer | None = None
        self._depth = 0
        self._pending: tuple[torch.Tensor, Any] | None = None
        self._open = ExitStack()

    def __enter__(self) -> Steps:
        enter = self._open.enter_context
        for owner, name in (
            (torch.Tensor, "backward"), (torch.autograd, "backward"), (torch.autograd, "grad"),
        ):  # fmt: skip
            enter(mock.patch.object(owner, name, self._watched(getattr(owner, name))))
        enter(mock.patch.object(Optimizer, "__init__", self._constructor(Optimizer.__init__)))
        enter(mock.patch.object(GradScaler, "step", self._scaler_step(GradScaler.step)))
        clipping = self._clipping(clip_grad.clip_grad_norm_)
        for owner in (clip_grad, torch.nn.utils):
            enter(mock.patch.object(owner, "clip_grad_norm_", clipping))
        self._open.callback(register_optimizer_step_pre_hook(self._before).remove)
        self._open.callback(register_optimizer_step_post_hook(self._after).remove)
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()

    # -- backward passes -------------------------------------------------------------------------

    def _watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, which starts a backward pass, with the listener told of it."""

        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if self._depth or not self.listener.watching():
                return function(*args, **kwargs)
            self._depth += 1
            try:
                with torch._C.DisableTorchFunction():
                    self._look(args, kwargs)
                    self.listener.on_pass()
                result = self._dispatch(watched, function, args, kwargs)
                with torch._C.DisableTorchFunction():
                    self.listener.on_passed()
            finally:
                self._depth -= 1
            if not kwargs.get("create_graph", False):
                result = self._passed(result)
            return result

        return watched

    def _dispatch(self, watched: Any, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make the call, offered to a recorder first: not every release of torch offers `autograd.backward` itself."""
        if function is _ENGINE:
            tensors = tuple(t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor))
            if has_torch_function(tensors):
                return handle_torch_function(watched, tensors, *args, **kwargs)
        return function(*args, **kwargs)

    def _passed(self, result: Any) -> Any:
        """A backward pass has ended; without an optimizer that is the end of a step."""
        if self.optimizers or self._inside is not None:
            return result
        if self.listener.on_update(True, None, False):
            result = tree_map(lambda t: t.zero_() if isinstance(t, torch.Tensor) else t, result)
        self.listener.on_step(False)
        return result

    def _look(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Read the loss: at once on the CPU; from another device when its copy has arrived by itself."""
        if self._pending is not None and self._pending[1].query():
            self._tell(self._pending[0])
            self._pending = None
        loss = next((t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)), None)
        if type(loss) is not torch.Tensor or loss.numel() != 1 or not loss.is_floating_point():
            return
        if loss.device.type == "cpu":
            self._tell(loss)
        elif loss.device.type == "cuda" and self._pending is None:
            copy = loss.detach().to("cpu", non_blocking=True)
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(loss.device))
            self._pending = (copy, event)

    def _tell(self, loss: torch.Tensor) -> None:
        self.listener.on_loss(float(loss.detach().item()))

    # -- updates ---------------------------------------------------------------------------------

    def _constructor(self, plain: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(plain)
        def init(optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
            plain(optimizer, *args, **kwargs)
            self.optimizers.add(optimizer)
            self.listener.on_built(optimizer)

        return init

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._inside is not None and self._inside is not optimizer:
            return None  # one optimizer works inside another
        self.optimizers.add(optimizer)
        if id(optimizer) in self._stepped:
            self._end(late=True)
        self._inside = optimizer
        second, named = len(args) > 1 and callable(args[1]), callable(kwargs.get("closure"))
        if self.listener.on_update(self._completes(optimizer), optimizer, second or named):
            zero_gradients(optimizer)
        if second:
            return (args[0], self._closure(args[1]), *args[2:]), kwargs
        if named:
            return args, {**kwargs, "closure": self._closure(kwargs["closure"])}
        return None

    def _closure(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The closure is the script's own: what it computes is seen."""

        @functools.wraps(closure)
        def watched() -> Any:
            with self.listener.during_update():
                return closure()

        return watched

    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._inside is not optimizer:
            return
        self._inside = None
        self.listener.on_updated(optimizer)
        self._count(optimizer)

    def _scaler_step(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        """A scaler that found an overflow leaves the optimizer's step out: a step has ended all the same."""

        @functools.wraps(plain)
        def step(scaler: GradScaler, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
            seen: list[Optimizer] = []
            unscaled = scaler.is_enabled() and _stage(scaler, optimizer) is OptState.UNSCALED
            with _noting(seen):
                result = plain(scaler, optimizer, *args, **kwargs)
            skipped = optimizer not in seen
            if scaler.is_enabled():
                self.listener.on_scaled(scaler, skipped=skipped, unscaled=unscaled)
            if skipped:
                if id(optimizer) in self._stepped:
                    self._end(late=True)
                self.listener.on_update(False, None, False)
                self.listener.on_updated(None)
                self._count(optimizer)
            return result

        return step

    def _clipping(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        """Clipping by the norm; a script that took the function's name keeps it, and nothing is told afterwards."""

        @functools.wraps(plain)
        def clip(parameters: Any, max_norm: Any, *args: Any, **kwargs: Any) -> Any:
            norm = plain(parameters, max_norm, *args, **kwargs)
            if isinstance(max_norm, (int, float)) and self.listener.watching():
                with torch._C.DisableTorchFunction():
                    self.listener.on_clip(float(max_norm), norm)
            return norm

        return clip

    def _completes(self, optimizer: Optimizer) -> bool:
        """Whether the step ends with this optimizer's update."""
        expected = self._cycle if self._cycle is not None else frozenset(map(id, self.optimizers))
        return self._stepped | {id(optimizer)} >= expected

    def _count(self, optimizer: Optimizer) -> None:
        ends = self._completes(optimizer)
        self._stepped.add(id(optimizer))
        if ends:
            self._end(late=False)

    def _end(self, late: bool) -> None:
        self._cycle = frozenset(self._stepped)
        self._stepped.clear()
        self.listener.on_step(late)


def _stage(scaler: GradScaler, optimizer: Optimizer) -> OptState:
    """How far a scaler has come with an optimizer's gradients."""
    stage: OptState = scaler._per_optimizer_states[id(optimizer)]["stage"]
    return stage


@contextmanager
def _noting(seen: list[Optimizer]) -> Iterator[None]:
    handle = register_optimizer_step_post_hook(lambda optimizer, args, kwargs: seen.append(optimizer))
    try:
        yield
    finally:
        handle.remove()


def zero_gradients(optimizer: Optimizer) -> None:
    """Let a step that was planned change nothing."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.detach().zero_()
