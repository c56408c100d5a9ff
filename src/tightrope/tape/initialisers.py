"""Initialisers as laws: what a weight on the meta device would have been drawn from.

A model that is built under `torch.device("meta")` holds no numbers, but its initialisers are called all the same.
`remember` follows them and notes the law of every element that they leave.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from tightrope.tape.draws import COPIES, CREATED, FILLS, INIT, SKIPPING, Draw, mixed
from tightrope.tape.names import RANDOM, is_inplace, op_name

NEAR = 8
"""How many frames up an initialiser is looked for."""
CONSTANT_LIMIT = 1 << 22
"""Largest number of elements of a constant that is computed."""
_HARMLESS = frozenset({"requires_grad", "detach", "t", "transpose", "squeeze", "unsqueeze", "as_strided", "rename"})
_EMPTY = frozenset({"empty", "empty_like", "new_empty", "empty_strided"})
_FACTORIES = frozenset({
    "arange", "linspace", "logspace", "zeros", "ones", "full", "eye", "tensor", "tril_indices", "triu_indices",
    "as_tensor",
})  # fmt: skip


_DRAWS: dict[int, tuple[weakref.ref[Tensor], Draw]] = {}


def draw_of(tensor: Tensor) -> Draw | None:
    """The law of a weight on the meta device, or of a view of it, if its initialiser was followed."""
    held = _DRAWS.get(_storage(tensor))
    return held[1] if held is not None and held[0]() is not None else None


def note(tensor: Tensor, draw: Draw) -> None:
    """Remember the law of a weight, as long as it lives."""
    key = _storage(tensor)

    def forget(gone: weakref.ref[Tensor]) -> None:
        if key in _DRAWS and _DRAWS[key][0] is gone:
            del _DRAWS[key]

    _DRAWS[key] = (weakref.ref(tensor, forget), draw)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@contextmanager
def remember() -> Iterator[None]:
    """Follow the initialisers of all weights that are built on the meta device meanwhile.

    Models whose library leaves initialisation out on the meta device are initialised when the block ends; that
    changes no number, because there are none. Buffers of constants (positions, frequencies, masks) become real.
    """
    built: list[weakref.ref[nn.Module]] = []
    seen: set[int] = set()

    def watch(module: nn.Module, name: str, value: Any) -> None:
        if id(module) not in seen:
            seen.add(id(module))
            built.append(weakref.ref(module))

    follower = Follower()
    with ExitStack() as stack:
        for register in (
            registration.register_module_parameter_registration_hook,
            registration.register_module_buffer_registration_hook,
            registration.register_module_module_registration_hook,
        ):
            stack.callback(register(watch).remove)
        with follower:
            yield
    modules = [module for module in (held() for held in built) if module is not None]
    with follower:
        for module in modules:
            _initialise(module)
    follower.settle(modules)


def _initialise(module: nn.Module) -> None:
    """Transformers skips the initialisers on the meta device, where they cost nothing."""
    library = sys.modules.get("transformers")
    if library is None or not isinstance(module, library.PreTrainedModel):
        return
    if not any(p.is_meta for p in module.parameters()) or any(not p.is_meta for p in module.parameters()):
        return
    module.initialize_weights()
    module.tie_weights()


class Follower(TorchFunctionMode):
    """Follows in-place fills and draws on meta tensors, by the storage that they write to."""

    def __init__(self) -> None:
        super().__init__()
        self._storages: dict[int, tuple[Any, Draw]] = {}
        self._constants = WeakIdKeyDictionary()

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = op_name(function)
        inplace = is_inplace(function, args, kwargs)
        # A function of `torch.nn.init`, or a library's that stands in for it.
        whole = INIT.get(function.__name__) if isinstance(function, FunctionType) else None
        if whole is not None:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                self._write(tensor, whole(tensor, args, kwargs))
                self._constants.pop(tensor, None)
            return result
        if name == "is_meta" and result:
            self._skipped(sys._getframe(1))
            return result
        self._compute(function, name, args, kwargs, result, inplace)
        self._see(name, args, kwargs, result, inplace)
        return result

    def _skipped(self, frame: FrameType) -> None:
        """An initialiser of torch asks whether its tensor is on the meta device, and then does nothing."""
        caller: FrameType | None = frame
        for _ in range(NEAR):  # past other function modes
            if caller is None or caller.f_code.co_filename == nn.init.__file__:
                break
            caller = caller.f_back
        law = None if caller is None else SKIPPING.get(caller.f_code.co_name)
        if caller is not None and law is not None and caller.f_code.co_filename == nn.init.__file__:
            frame = caller
            tensor = frame.f_locals["tensor"]
            self._write(tensor, law(tensor, frame.f_locals))

    def _see(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, inplace: bool) -> None:
        """A call as what it does to laws."""
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if name == "linalg_qr":
            result = result[0]
        if name == "setitem" and first is not None and first.is_meta:
            self._set(first, args[1], args[2])
        elif inplace and first is not None and first.is_meta:
            if name in FILLS:
                self._write(first, FILLS[name](self._read(first), args, kwargs, self._read))
            elif name not in _HARMLESS:
                self._write(first, None)
        elif isinstance(result, Tensor) and result.is_meta:
            if name in CREATED:
                self._write(result, CREATED[name](args, kwargs, result))
            elif first is not None and _storage(result) != _storage(first):
                made = self._read(first) if name in COPIES else None
                if name in FILLS:
                    made = FILLS[name](self._read(first), args, kwargs, self._read)
                if made is not None:
                    self._write(result, made)

    def _set(self, tensor: Tensor, index: Any, value: Any) -> None:
        part = tensor[index]
        draw = Draw(float(value)) if isinstance(value, (int, float)) else self._read(value)
        self._write(tensor, draw, part.numel() / max(tensor.numel(), 1))

    def _compute(
        self, function: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, inplace: bool
    ) -> None:
        """Constants that depend on no draw are computed beside their stand-ins on the meta device."""
        outputs = [t for t in tree_flatten(result)[0] if isinstance(t, Tensor)]
        operands = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        if inplace and operands and operands[0].is_meta:
            outputs = [operands[0]]
        if not outputs or not outputs[0].is_meta or any(t.numel() > CONSTANT_LIMIT for t in outputs):
            return
        covers = name == "copy" and not operands[-1].is_meta and operands[0].shape == operands[-1].shape
        if covers:
            self._constants[operands[0]] = operands[-1].detach().clone()
            return
        known = all(not t.is_meta or t in self._constants for t in operands)
        if name in RANDOM or name in _EMPTY or not known or (not operands and name not in _FACTORIES):
            for tensor in outputs if inplace else ():
                self._constants.pop(tensor, None)
            return

        def real(x: Any) -> Any:
            if isinstance(x, Tensor):
                return self._constants[x] if x.is_meta else x
            return torch.device("cpu") if isinstance(x, torch.device) or x == "meta" else x

        with torch.no_grad(), suppress(RuntimeError, TypeError, NotImplementedError, ValueError):
            made = function(*tree_map(real, args), **tree_map(real, kwargs))
            if not inplace:
                for stand_in, tensor in zip(outputs, tree_flatten(made)[0], strict=False):
                    if isinstance(tensor, Tensor):
                        self._constants[stand_in] = tensor

    def _read(self, tensor: Any) -> Draw | None:
        if not isinstance(tensor, Tensor):
            return None
        if not tensor.is_meta:
            x = tensor.detach().double()
            return Draw(float(x.mean()), float(x.var(unbiased=False)), 3.0) if x.numel() else None
        held = self._storages.get(tensor.untyped_storage()._cdata)
        return None if held is None else held[1]

    def _write(self, tensor: Tensor, draw: Draw | None, share: float = 1.0) -> None:
        """An element written to a part of a storage mixes with what the rest holds."""
        storage = tensor.untyped_storage()
        share *= tensor.numel() / max(storage.nbytes() // max(tensor.element_size(), 1), 1)
        if draw is not None and share < 1:
            before = self._storages.get(_storage(tensor))
            draw = mixed(before[1], draw, share) if before is not None else draw
        if draw is None:
            self._storages.pop(_storage(tensor), None)
        else:
            self._storages[_storage(tensor)] = (storage, draw)

    def settle(self, modules: list[nn.Module]) -> None:
        """Give each parameter the law of its storage, and each buffer of constants its numbers."""
        for module in modules:
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                draw = self._read(tensor) if tensor.is_meta else None
                if draw is not None:
                    note(tensor, draw)
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.is_meta and buffer in self._constants:
                    module._buffers[name] = self._constants[buffer]
        self._storages.clear()
        self._constants.clear()


__all__ = ["Draw", "Follower", "draw_of", "mixed", "note", "remember"]
