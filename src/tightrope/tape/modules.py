"""Which module is running, what it is called, and where it was built."""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as hooks
from torch.utils._pytree import tree_flatten, tree_map

from tightrope.tape.source import Location, is_library, locate
from tightrope.tape.tape import ModuleInfo

_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel and DataParallel; torch.compile
_built: weakref.WeakKeyDictionary[nn.Module, Location] = weakref.WeakKeyDictionary()
_latest: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_following: list[ModuleStack] = []


@contextmanager
def remember_construction() -> Iterator[None]:
    """Remember the user's line on which every module is built while the context lasts."""
    plain: Callable[..., None] = nn.Module.__init__

    def init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        _built[self] = locate(sys._getframe(1), skip=self)
        _latest.add(self)
        for following in _following:
            following.follow_calls_of(type(self))

    _latest.clear()
    nn.Module.__init__ = init  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__init__ = plain  # type: ignore[method-assign]


def built(module: nn.Module) -> Location | None:
    """Where a module was built, if that was watched."""
    return _built.get(module)


def unwrap(module: nn.Module) -> nn.Module:
    """The user's module inside DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        for name in ("_orig_mod", "module"):
            inner = module._modules.get(name)
            wrapper = type(module).__name__ in ("OptimizedModule", "DistributedDataParallel", "DataParallel")
            if inner is not None and wrapper:
                module = inner
                break
        else:
            return module


KEPT = 64
"""Calls of models whose arguments are kept."""


@dataclass(frozen=True)
class RootCall:
    """One call of a model.

    Attributes:
        module: the model.
        args, kwargs: its arguments, tensors without their history.
        index: number of the first entry that it makes.
        versions: how often each tensor among the arguments had been overwritten.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    index: int
    versions: tuple[int, ...]

    @classmethod
    def of(cls, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], index: int) -> RootCall:
        """A call that is about to be made."""
        cut = (tree_map(lambda x: x.detach() if isinstance(x, torch.Tensor) else x, part) for part in (args, kwargs))
        args, kwargs = cut
        return cls(module, args, kwargs, index, _versions((args, kwargs)))

    @property
    def unchanged(self) -> bool:
        """Whether its arguments are as they were."""
        return _versions((self.args, self.kwargs)) == self.versions


def _versions(args: Any) -> tuple[int, ...]:
    tensors = (t for t in tree_flatten(args)[0] if isinstance(t, torch.Tensor))
    return tuple(0 if t.is_inference() else t._version for t in tensors)


class ModuleStack:
    """Follows the modules' calls with torch's global hooks; gives paths and names.

    Args:
        roots: modules that are called at top level, by name.
        guard: context in which the hooks do their work.
        on_root: is told the positional arguments of a top-level call, and says the number of its first entry.

    Attributes:
        calls: the first `KEPT` calls at top level, of which keyword arguments are known.
        count: number of all calls at top level.
        on_idle: told True when a top-level call begins while autograd is off, and False when it has ended; such
            calls are then not followed. None to follow them.
    """

    def __init__(
        self,
        roots: dict[str, nn.Module] | None = None,
        *,
        guard: Callable[[], AbstractContextManager[None]] = nullcontext,
        on_root: Callable[[Any], int] | None = None,
    ) -> None:
        self.guard, self.on_root = guard, on_root
        self.on_idle: Callable[[bool], None] | None = None
        self._idle: nn.Module | None = None
        self.paths: dict[nn.Module, str] = {}
        self.parameters: dict[int, str] = {}
        self.buffers: dict[int, str] = {}
        self.info: dict[str, ModuleInfo] = {}
        self.roots: list[nn.Module] = []
        self.stack: list[nn.Module] = []
        self.paused = False
        self.calls: list[RootCall] = []
        self.count = 0
        self._handles: list[Any] = []
        self._calls: dict[type[nn.Module], Callable[..., Any]] = {}
        for name, root in (roots or {}).items():
            self.add_root(root, name)

    def add_root(self, root: nn.Module, prefix: str | None = None) -> None:
        """Name everything below a module that no known module contains; it has no prefix when it is the only model."""
        if prefix is None:
            prefix = "" if self._only_model(root) else self._unused(_called(root))
        self.roots.append(root)
        inner = unwrap(root)
        self.paths.setdefault(root, prefix)
        for path, module in inner.named_modules():
            self.paths.setdefault(module, ".".join(filter(None, (prefix, path))))
        for path, parameter in inner.named_parameters(remove_duplicate=True):
            self.parameters.setdefault(id(parameter), ".".join(filter(None, (prefix, path))))
        for path, buffer in inner.named_buffers(remove_duplicate=True):
            self.buffers.setdefault(id(buffer), ".".join(filter(None, (prefix, path))))

    def _only_model(self, root: nn.Module) -> bool:
        others = [module for module in {*self.roots, *outermost()} if unwrap(module) is not unwrap(root)]
        return has_parameters(root) and not any(map(has_parameters, others))

    def _unused(self, name: str) -> str:
        taken = {self.paths[root] for root in self.roots}
        return next(n for n in (name, *(f"{name}{i}" for i in range(2, len(taken) + 3))) if n not in taken)

    def __enter__(self) -> ModuleStack:
        self._handles = [
            hooks.register_module_forward_pre_hook(self._enter),
            hooks.register_module_forward_hook(self._leave, always_call=True),
        ]
        _following.append(self)
        for kind in {type(module) for module in (*self.paths, *_latest)}:
            self.follow_calls_of(kind)
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.stack.clear()
        if self in _following:
            _following.remove(self)
        for owner, plain in self._calls.items():
            owner.__call__ = plain  # type: ignore[method-assign]
        self._calls.clear()

    def follow_calls_of(self, kind: type[nn.Module]) -> None:
        """Classes that replace `nn.Module.__call__` (Keras layers) run none of torch's hooks: follow them too."""
        owner = next(c for c in kind.__mro__ if "__call__" in c.__dict__)
        if getattr(owner.__dict__["__call__"], "transparent", False):  # runs torch's hooks all the same
            return
        if owner is nn.Module or owner in self._calls or owner.__module__.partition(".")[0] == "torch":
            return
        plain = owner.__call__

        @functools.wraps(plain)
        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            self._enter(module, args)
            try:
                return plain(module, *args, **kwargs)
            finally:
                self._leave(module, args, None)

        self._calls[owner] = plain
        owner.__call__ = call  # type: ignore[method-assign]

    @property
    def path(self) -> str:
        """Path of the innermost running module."""
        return self.paths.get(self.stack[-1], "") if self.stack else ""

    @property
    def training(self) -> bool:
        """Whether the innermost running module is in training mode; True outside modules."""
        return self.stack[-1].training if self.stack else True

    def _enter(self, module: nn.Module, args: Any) -> None:
        if self.paused or self._idle is not None:
            return
        with self.guard():
            if self.on_idle is not None and not self.stack and not torch.is_grad_enabled():
                self._idle = module
                self.on_idle(True)
                return
            self._follow(module, args)

    def _follow(self, module: nn.Module, args: Any) -> None:
        if module not in self.paths:
            owner = next((o for o in outermost() if module in o.modules()), None)
            if self.stack:  # built or attached after its root was named
                self.paths[module] = ".".join(filter(None, (self.path, type(module).__name__)))
            else:
                self.add_root(owner if owner is not None and has_parameters(module) else module)
        if not self.stack and self.on_root is not None:
            self._keep(module, args, self.on_root(args))
        self.stack.append(module)
        path = self.paths[module]
        if path not in self.info or type(module).__name__ not in ("OptimizedModule", "DistributedDataParallel"):
            self.info[path] = ModuleInfo(
                type(module).__name__, built(module), module.training, is_library(type(module))
            )

    def _keep(self, module: nn.Module, args: Any, index: int) -> None:
        """Keep the arguments of a top-level call; torch's global hooks are not given those by keyword."""
        self.count += 1
        frame = sys._getframe(2)
        while frame.f_back is not None and frame.f_locals.get("self", frame.f_locals.get("module")) is not module:
            frame = frame.f_back
        kwargs = frame.f_locals.get("kwargs")
        if len(self.calls) < KEPT and isinstance(kwargs, dict) and isinstance(args, tuple):
            self.calls.append(RootCall.of(module, args, kwargs, index))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._idle is not None:
            if module is self._idle and self.on_idle is not None:
                self._idle = None
                self.on_idle(False)
            return
        if self.paused or module not in self.stack:
            return
        while self.stack.pop() is not module:
            pass


def _called(module: nn.Module) -> str:
    """The name a module has given itself (Keras), or has in the code that calls it, or that of its class."""
    own = getattr(module, "name", None)
    return own if isinstance(own, str) and own else variable(module) or type(module).__name__


def outermost() -> list[nn.Module]:
    """The modules whose construction was remembered last and that no other of them contains."""
    known = list(_latest)
    inner = {child for module in known for child in module._modules.values()}
    return [module for module in known if module not in inner]


def has_parameters(module: nn.Module) -> bool:
    """Whether a module has something to train."""
    return next(module.parameters(), None) is not None


def variable(wanted: object) -> str | None:
    """The name under which the calling code knows an object."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in ("tightrope", "torch"):
            for scope in (frame.f_locals, frame.f_globals):
                for name, value in list(scope.items()):
                    if value is wanted and name != "self":
                        return name
        if frame.f_back is None:
            return None
        frame = frame.f_back
    return None


def parameter_name(modules: ModuleStack, tensor: torch.Tensor) -> str | None:
    """Path of a parameter or buffer, if some known module owns it."""
    return modules.parameters.get(id(tensor)) or modules.buffers.get(id(tensor))
