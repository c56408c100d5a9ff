"""Record a step on shapes alone: no sample and no weight takes part in any computation."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map

from tightrope.tape.recorder import Recorder
from tightrope.tape.tape import RECURRENT

LARGEST_TRIAL = 1 << 24
"""Most elements of the operands on which an operation is tried that meta tensors do not know."""
_BY_CONTENT = frozenset({"nonzero", "masked_select", "__getitem__", "unique", "item", "tolist", "__bool__"})
"""Functions whose result's shape depends on the content of an integer or truth-valued operand."""
_LENGTHS = RECURRENT | {"_pack_padded_sequence", "_pad_packed_sequence"}


class Tracer(Recorder):
    """A recorder that makes every call on meta tensors.

    Parameters and floating-point inputs stand in as meta tensors; small tensors that depend on neither
    (positions, masks, indices) stay real, so that their content is known to the forecast.

    Args:
        content: the numbers behind floating-point inputs, by id of their meta stand-in.
    """

    def __init__(self, *, content: dict[int, torch.Tensor] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._numbers = content or {}
        self._stand_ins: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._overwritten: set[int] = set()

    def _content(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._numbers.get(id(tensor), tensor).detach()

    def _stand_in(self, tensor: torch.Tensor) -> torch.Tensor:
        held = self._stand_ins.get(id(tensor))
        if held is None:
            meta = tensor.detach().to("meta").requires_grad_(tensor.requires_grad)
            held = self._stand_ins[id(tensor)] = (tensor, meta)
        return held[1]

    def _run(self, function: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        flat = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
        abstract = any(self._is_abstract(t) for t in flat)
        if not abstract:
            args, kwargs = tree_map(_off_meta, (args, kwargs))
            return function(*args, **kwargs)
        meta_args, meta_kwargs = tree_map(lambda x: self._stand_in(x) if self._moves(x, name) else x, (args, kwargs))
        meta_args, meta_kwargs = tree_map(_onto_meta, (meta_args, meta_kwargs))
        if name == "backward" and function is not torch.autograd.grad:
            return None  # gradients have the shapes of what they belong to
        try:
            result = function(*meta_args, **meta_kwargs)
        except (NotImplementedError, RuntimeError) as error:
            result = self._tried(function, args, kwargs, error)
        overwritten = bool(flat) and (name == "setitem" or result is meta_args[0])
        if overwritten and isinstance(args[0], torch.Tensor) and not args[0].is_meta:
            # A real tensor was overwritten with something abstract: from here on its stand-in is meant.
            self._stand_ins[id(args[0])] = (args[0], meta_args[0])
            self._overwritten.add(id(args[0]))
            return None if name == "setitem" else args[0]
        return result

    def _tried(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception) -> Any:
        """The shapes of an operation that meta tensors do not know, from one call on noise.

        Tensors whose content is known keep it, so that a mask selects as many elements as it will.
        """
        flat = tree_flatten((args, kwargs))[0]
        tensors = [t for t in flat if isinstance(t, torch.Tensor)]
        if sum(t.numel() for t in tensors) > LARGEST_TRIAL:
            raise error
        hidden = any(self._is_abstract(t) and not t.dtype.is_floating_point for t in tensors)
        if hidden and getattr(function, "__name__", "") in _BY_CONTENT:
            raise error  # the shape depends on numbers that only data can tell

        def fill(x: Any) -> Any:
            if not isinstance(x, torch.Tensor):
                return _off_meta(x)
            if not self._is_abstract(x):
                return x.detach().clone()
            made = torch.rand(x.shape) if x.dtype.is_floating_point else torch.ones(x.shape)
            return made.to(x.dtype)

        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            try:
                result = function(*tree_map(fill, args), **tree_map(fill, kwargs))
            except Exception:
                raise error from None
        tracked = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)

        def shape_of(x: Any) -> Any:
            if not isinstance(x, torch.Tensor):
                return x
            made = x.to("meta")
            return made.requires_grad_(True).clone() if tracked and (x.is_floating_point() or x.is_complex()) else made

        return tree_map(shape_of, result)

    def _moves(self, x: Any, name: str) -> bool:
        """Whether an argument has to be a stand-in; lengths of sequences decide on shapes and stay."""
        if not isinstance(x, torch.Tensor) or x.is_meta:
            return False
        return x.is_floating_point() or name not in _LENGTHS

    def _is_abstract(self, tensor: torch.Tensor) -> bool:
        return tensor.is_meta or id(tensor) in self._overwritten or isinstance(tensor, torch.nn.Parameter)


def _off_meta(x: Any) -> Any:
    """Tensors that depend on no weight and no data stay real."""
    return torch.device("cpu") if isinstance(x, torch.device) and x.type == "meta" else x


def _onto_meta(x: Any) -> Any:
    return torch.device("meta") if isinstance(x, torch.device) else x
