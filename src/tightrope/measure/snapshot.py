"""Parameters, buffers and optimizer states as they stood, so that an update can be taken back."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer


class Snapshot:
    """Copies of what a step of some optimizers changes: the parameters that they hold, their states and settings.

    Args:
        optimizers: whose step may be taken back.
        modules: whose buffers (running statistics) are put back, too.
    """

    def __init__(self, optimizers: Iterable[Optimizer], modules: Iterable[nn.Module] = ()) -> None:
        self._buffers = [(b, b.detach().clone()) for module in modules for b in module.buffers()]
        self._optimizers = list(optimizers)
        held = (p for o in self._optimizers for group in o.param_groups for p in group["params"])
        self._parameters = [(p, p.detach().clone()) for p in {id(p): p for p in held}.values()]
        self._states = [{key: _copied(state) for key, state in o.state.items()} for o in self._optimizers]
        self._settings = [
            [_copied({k: v for k, v in group.items() if k != "params"}) for group in o.param_groups]
            for o in self._optimizers
        ]

    def restore(self) -> None:
        """Put everything back; what was added since (groups, states) is kept out of the states."""
        with torch.no_grad():
            for parameter, before in (*self._parameters, *self._buffers):
                parameter.copy_(before)
        for optimizer, states, settings in zip(self._optimizers, self._states, self._settings, strict=True):
            for key in [key for key in optimizer.state if key not in states]:
                del optimizer.state[key]
            for key, state in states.items():
                optimizer.state[key] = _copied(state)
            for group, before in zip(optimizer.param_groups, settings, strict=False):
                group.update(_copied(before))


def _copied(item: Any) -> Any:
    """A copy whose tensors share nothing; what cannot be copied is kept."""
    if isinstance(item, Tensor):
        return item.detach().clone()
    if isinstance(item, dict):
        return {key: _copied(value) for key, value in item.items()}
    if isinstance(item, (list, tuple)) and type(item) in (list, tuple):
        return type(item)(_copied(value) for value in item)
    try:
        return copy.deepcopy(item)
    except Exception:
        return item


__all__ = ["Snapshot"]
