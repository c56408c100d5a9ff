"""References to the calls that a step makes of its models: enough to make them again, next to nothing to keep.

The calls are seen in `__call__` of the models' own classes, so that no hook stands in the way of any module, and a copy
or a pickle of a model holds nothing of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

MOST = 16
"""Calls of one step that are kept; of a step with more none is."""


@dataclass(frozen=True)
class Call:
    """One call of a model.

    Attributes:
        module: the model.
        args, kwargs: its arguments themselves.
        output: what it returned.
        versions: how often each tensor among the arguments had been overwritten.
        state, devices: states of the random generators when it began, of the CPU and of CUDA devices.
        autocast: the dtype of each kind of device that autocast was on for.
        training: mode of the model.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    versions: tuple[int, ...]
    state: Tensor
    devices: tuple[Tensor, ...]
    autocast: dict[str, torch.dtype]
    training: bool

    @property
    def unchanged(self) -> bool:
        """Whether arguments and mode are as they were."""
        return versions(self.args, self.kwargs) == self.versions and self.module.training == self.training


def versions(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...]:
    """How often each tensor has been overwritten."""
    flat = args if not kwargs and all(type(a) is Tensor for a in args) else tree_leaves((args, kwargs))
    return tuple(0 if t.is_inference() else t._version for t in flat if isinstance(t, Tensor))


class Calls:
    """Keeps the calls of models that a step makes while autograd is on.

    Attributes:
        kept: calls of the step under way, in order.
        whole: whether they are all of its calls.
    """

    def __init__(self) -> None:
        self.kept: list[Call] = []
        self.whole = True
        self._roots: set[nn.Module] = set()
        self._kinds: list[type[nn.Module]] = []
        self._running = False

    def watch(self, roots: Iterable[nn.Module]) -> None:
        """Keep the calls of these models from now on."""
        self.stop()
        self._roots = set(roots)
        for kind in {type(root) for root in self._roots}:
            owner = next(c for c in kind.__mro__ if "__call__" in c.__dict__)
            if owner is nn.Module and kind is not owner:  # a class that replaces the call is left as it is
                kind.__call__ = self._watched()  # type: ignore[method-assign]
                self._kinds.append(kind)

    def stop(self) -> None:
        """Leave the models alone."""
        for kind in self._kinds:
            if "__call__" in kind.__dict__:
                del kind.__call__
        self._kinds.clear()
        self._roots.clear()
        self.clear()

    def clear(self) -> None:
        """Another step begins."""
        self.kept.clear()
        self.whole = True

    def _watched(self) -> Callable[..., Any]:
        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self._running or module not in self._roots or not torch.is_grad_enabled() or not self.whole:
                return nn.Module.__call__(module, *args, **kwargs)
            note = _note(module, args, kwargs)
            self._running = True
            try:
                output = nn.Module.__call__(module, *args, **kwargs)
            finally:
                self._running = False
            if len(self.kept) < MOST:
                self.kept.append(Call(module, args, kwargs, output, *note))
            else:
                self.clear()
                self.whole = False
            return output

        call.transparent = True  # type: ignore[attr-defined]
        return call


def _note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    cuda = torch.cuda.is_initialized()
    kinds = ("cpu", "cuda") if cuda else ("cpu",)
    autocast = {kind: torch.get_autocast_dtype(kind) for kind in kinds if torch.is_autocast_enabled(kind)}
    devices = tuple(torch.cuda.get_rng_state_all()) if cuda else ()
    with torch._C.DisableTorchFunction():
        return versions(args, kwargs), torch.get_rng_state(), devices, autocast, module.training


__all__ = ["MOST", "Call", "Calls", "versions"]
