"""Record a step on shapes alone: no sample and no weight takes part in any computation."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map

from tightrope.tape.recorder import Recorder

_MOVES = frozenset({"to", "cuda", "cpu", "type_as"})


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
        meta_args, meta_kwargs = tree_map(
            lambda x: self._stand_in(x) if isinstance(x, torch.Tensor) and not x.is_meta else x, (args, kwargs)
        )
        meta_args, meta_kwargs = tree_map(_onto_meta, (meta_args, meta_kwargs))
        result = function(*meta_args, **meta_kwargs)
        overwritten = bool(flat) and (name == "setitem" or result is meta_args[0])
        if overwritten and isinstance(args[0], torch.Tensor) and not args[0].is_meta:
            # A real tensor was overwritten with something abstract: from here on its stand-in is meant.
            self._stand_ins[id(args[0])] = (args[0], meta_args[0])
            self._overwritten.add(id(args[0]))
            return None if name == "setitem" else args[0]
        return result

    def _is_abstract(self, tensor: torch.Tensor) -> bool:
        return tensor.is_meta or id(tensor) in self._overwritten or isinstance(tensor, torch.nn.Parameter)


def _off_meta(x: Any) -> Any:
    """Tensors that depend on no weight and no data stay real."""
    return torch.device("cpu") if isinstance(x, torch.device) and x.type == "meta" else x


def _onto_meta(x: Any) -> Any:
    return torch.device("meta") if isinstance(x, torch.device) else x
