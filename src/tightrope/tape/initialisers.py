"""Initialisers as laws: what a weight on the meta device would have been drawn from.

A model that is built under `torch.device("meta")` holds no numbers, but its initialisers are called all the same.
`remember` follows them and notes the law of every element that they leave.
"""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from types import FrameType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from tightrope.tape.names import RANDOM, is_inplace, op_name

NEAR = 8
"""How many frames up an initialiser is looked for."""
CONSTANT_LIMIT = 1 << 22
"""Largest number of elements of a constant that is computed."""


@dataclass(frozen=True)
class Draw:
    """Moments of one element of a weight over the draws of its initialiser.

    Attributes:
        mean, variance: of one element.
        kurtosis: E[(x - mean)^4] / variance^2; 3 for a Gaussian, 1.8 for a uniform law.
    """

    mean: float
    variance: float = 0.0
    kurtosis: float = 3.0


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
        whole = _INIT.get(function.__name__) if isinstance(function, FunctionType) else None
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
        law = None if caller is None else _SKIPPING.get(caller.f_code.co_name)
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
            if name in _FILLS:
                self._write(first, _FILLS[name](self._read(first), args, kwargs, self._read))
            elif name not in _HARMLESS:
                self._write(first, None)
        elif isinstance(result, Tensor) and result.is_meta:
            if name in _CREATED:
                self._write(result, _CREATED[name](args, kwargs, result))
            elif first is not None and _storage(result) != _storage(first):
                made = self._read(first) if name in _COPIES else None
                if name in _FILLS:
                    made = _FILLS[name](self._read(first), args, kwargs, self._read)
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


def mixed(first: Draw, second: Draw, share: float) -> Draw:
    """The law of an element that follows `second` with this probability and `first` else."""
    mean = (1 - share) * first.mean + share * second.mean
    variance = fourth = 0.0
    for weight, part in ((1 - share, first), (share, second)):
        shift = part.mean - mean
        variance += weight * (part.variance + shift**2)
        fourth += weight * (part.kurtosis * part.variance**2 + 6 * part.variance * shift**2 + shift**4)
    return Draw(mean, variance, fourth / variance**2 if variance > 0 else 3.0)


# -- fills ---------------------------------------------------------------------------------------

Read = Callable[[Any], Draw | None]


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], place: int, name: str, default: float) -> float:
    value = kwargs.get(name, args[place] if len(args) > place else default)
    return float(default if value is None else value)


def _uniform(low: float, high: float) -> Draw:
    return Draw((low + high) / 2, (high - low) ** 2 / 12, 1.8)


def _scaled(old: Draw | None, args: Any, kwargs: Any, read: Read, sign: int = 1) -> Draw | None:
    factor = args[1] if len(args) > 1 else kwargs.get("other")
    if old is None:
        return None
    if isinstance(factor, Tensor):
        other = read(factor)
        if other is None or sign < 0:
            return None
        mean = old.mean * other.mean
        second = (old.mean**2 + old.variance) * (other.mean**2 + other.variance)
        return Draw(mean, second - mean**2, old.kurtosis if other.variance == 0 or abs(other.mean) < 1e-12 else 3.0)
    factor = float(factor) if sign > 0 else 1 / float(factor)
    return replace(old, mean=old.mean * factor, variance=old.variance * factor**2)


def _shifted(old: Draw | None, args: Any, kwargs: Any, read: Read, sign: int = 1) -> Draw | None:
    other, alpha = (args[1] if len(args) > 1 else kwargs.get("other")), sign * float(kwargs.get("alpha", 1))
    if old is None:
        return None
    if isinstance(other, (int, float)):
        return replace(old, mean=old.mean + alpha * float(other))
    added = read(other)
    if added is None:
        return None
    return Draw(old.mean + alpha * added.mean, old.variance + alpha**2 * added.variance)


def _clamped(old: Draw | None, args: Any, kwargs: Any, read: Read) -> Draw | None:
    """The law of a Gaussian (or of a truncated one, which this leaves alone) between bounds."""
    low, high = _argument(args, kwargs, 1, "min", -math.inf), _argument(args, kwargs, 2, "max", math.inf)
    if old is None or old.variance == 0:
        return old if old is None else replace(old, mean=min(max(old.mean, low), high))
    std = math.sqrt(old.variance)
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    weight = torch.exp(-grid.square() / 2)
    weight = weight / weight.sum()
    x = (old.mean + std * grid).clamp(low, high)
    return _moments(x, weight)


def _moments(x: Tensor, weight: Tensor) -> Draw:
    mean = float((x * weight).sum())
    variance = float(((x - mean).square() * weight).sum())
    fourth = float(((x - mean) ** 4 * weight).sum())
    return Draw(mean, variance, fourth / variance**2 if variance > 0 else 3.0)


def _inverse_error_function(old: Draw | None, args: Any, kwargs: Any, read: Read) -> Draw | None:
    """Of a uniform law: a Gaussian of variance 1/2, truncated where the uniform law ends."""
    if old is None:
        return None
    half = math.sqrt(3 * old.variance)
    u = old.mean + half * (torch.arange(4000, dtype=torch.float64) + 0.5 - 2000) / 2000
    return _moments(torch.erfinv(u.clamp(-1 + 1e-9, 1 - 1e-9)), torch.full((4000,), 1 / 4000, dtype=torch.float64))


def _copied(old: Draw | None, args: Any, kwargs: Any, read: Read) -> Draw | None:
    source = args[1] if len(args) > 1 else kwargs.get("src", kwargs.get("other"))
    if isinstance(source, (int, float)):
        return Draw(float(source))
    return read(source)


_FILLS: dict[str, Callable[..., Draw | None]] = {
    "normal": lambda old, a, k, read: Draw(_argument(a, k, 1, "mean", 0), _argument(a, k, 2, "std", 1) ** 2, 3.0),
    "uniform": lambda old, a, k, read: _uniform(_argument(a, k, 1, "from", 0), _argument(a, k, 2, "to", 1)),
    "exponential": lambda old, a, k, read: Draw(
        1 / _argument(a, k, 1, "lambd", 1), 1 / _argument(a, k, 1, "lambd", 1) ** 2, 9.0
    ),
    "zero": lambda old, a, k, read: Draw(0.0),
    "fill": lambda old, a, k, read: Draw(float(a[1] if len(a) > 1 else k["value"])),
    "mul": _scaled,
    "div": lambda old, a, k, read: _scaled(old, a, k, read, -1),
    "add": _shifted,
    "sub": lambda old, a, k, read: _shifted(old, a, k, read, -1),
    "neg": lambda old, a, k, read: None if old is None else replace(old, mean=-old.mean),
    "clamp": _clamped,
    "erfinv": _inverse_error_function,
    "copy": _copied,
    "set_data": _copied,
}
_HARMLESS = frozenset({"requires_grad", "detach", "t", "transpose", "squeeze", "unsqueeze", "as_strided", "rename"})
_EMPTY = frozenset({"empty", "empty_like", "new_empty", "empty_strided"})
_FACTORIES = frozenset(
    {
        "arange",
        "linspace",
        "logspace",
        "zeros",
        "ones",
        "full",
        "eye",
        "tensor",
        "tril_indices",
        "triu_indices",
        "as_tensor",
    }
)
_COPIES = frozenset({"clone", "to", "float", "half", "bfloat16", "double", "contiguous", "type", "expand", "repeat"})


Created = Callable[[Any, Any, Tensor], Draw]


def _gaussian(args: Any, kwargs: Any, made: Tensor) -> Draw:
    return Draw(0.0, 1.0)


def _uniform_draw(args: Any, kwargs: Any, made: Tensor) -> Draw:
    return _uniform(0, 1)


def _filled(args: Any, kwargs: Any, made: Tensor) -> Draw:
    return Draw(float(args[1] if len(args) > 1 else kwargs["fill_value"]))


def _orthogonal(args: Any, kwargs: Any, made: Tensor) -> Draw:
    """Columns of length 1."""
    return Draw(0.0, 1 / max(made.shape[-2], 1))


def _diagonal(args: Any, kwargs: Any, made: Tensor) -> Draw:
    return mixed(Draw(0.0), Draw(1.0), min(made.shape) / max(made.numel(), 1))


_CREATED: dict[str, Created] = {
    **dict.fromkeys(("randn", "randn_like"), _gaussian),
    **dict.fromkeys(("rand", "rand_like"), _uniform_draw),
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros"), lambda args, kwargs, made: Draw(0.0)),
    **dict.fromkeys(("ones", "ones_like", "new_ones"), lambda args, kwargs, made: Draw(1.0)),
    **dict.fromkeys(("full", "full_like", "new_full"), _filled),
    "sign": lambda args, kwargs, made: Draw(0.0, 1.0, 1.0),
    "linalg_qr": _orthogonal,
    "eye": _diagonal,
}


# -- initialisers that offer themselves whole -----------------------------------------------------


def _kaiming(tensor: Tensor, args: Any, kwargs: Any) -> Draw:
    """He initialisation: std = gain / sqrt(fan)."""
    slope = _argument(args, kwargs, 1, "a", 0)
    mode = kwargs.get("mode", args[2] if len(args) > 2 else "fan_in")
    kind = kwargs.get("nonlinearity", args[3] if len(args) > 3 else "leaky_relu")
    fan = nn.init._calculate_correct_fan(tensor, mode)
    return Draw(0.0, nn.init.calculate_gain(kind, slope) ** 2 / fan, 1.8)


_INIT: dict[str, Callable[[Tensor, Any, Any], Draw]] = {
    "normal_": lambda t, a, k: Draw(_argument(a, k, 1, "mean", 0), _argument(a, k, 2, "std", 1) ** 2),
    "uniform_": lambda t, a, k: _uniform(_argument(a, k, 1, "a", 0), _argument(a, k, 2, "b", 1)),
    "constant_": lambda t, a, k: Draw(_argument(a, k, 1, "val", 0)),
    "kaiming_uniform_": _kaiming,
}


# -- initialisers that do nothing on the meta device ----------------------------------------------


def _lengths(tensor: Tensor, names: Mapping[str, Any]) -> Draw:
    """Orthogonal rows or columns: the longer side's vectors have length gain."""
    rows = tensor.shape[0]
    return Draw(0.0, float(names["gain"]) ** 2 / max(rows, tensor.numel() // max(rows, 1), 1))


def _sparse(tensor: Tensor, names: Mapping[str, Any]) -> Draw:
    zeros = math.ceil(names["sparsity"] * tensor.shape[0]) / max(tensor.shape[0], 1)
    return mixed(Draw(0.0, float(names["std"]) ** 2), Draw(0.0), zeros)


def _identity(tensor: Tensor, names: Mapping[str, Any]) -> Draw:
    return mixed(Draw(0.0), Draw(1.0), min(tensor.shape[0], tensor.shape[1] * names["groups"]) / max(tensor.numel(), 1))


def _truncated(tensor: Tensor, names: Mapping[str, Any]) -> Draw:
    mean, std = float(names["mean"]), float(names["std"])
    low, high = max(float(names["a"]), mean - 8 * std), min(float(names["b"]), mean + 8 * std)
    x = torch.linspace(low, high, 4001, dtype=torch.float64)
    weight = torch.exp(-((x - mean) / std).square() / 2)
    return _moments(x, weight / weight.sum())


_SKIPPING: dict[str, Callable[[Tensor, Mapping[str, Any]], Draw]] = {
    "orthogonal_": _lengths, "sparse_": _sparse, "dirac_": _identity, "_no_grad_trunc_normal_": _truncated,
}  # fmt: skip

__all__ = ["Draw", "Follower", "draw_of", "mixed", "note", "remember"]
