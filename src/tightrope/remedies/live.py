"""How remedies reach the live objects behind a finding."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from tightrope.study import Study


def parameter(study: Study, name: str | None) -> nn.Parameter | None:
    """The live parameter of a name on the tape; None when its model is not at hand."""
    owner, _, leaf = (name or "").rpartition(".")
    module = study.models.find(owner) if name else None
    found = getattr(module, leaf, None) if module is not None else None
    return found if isinstance(found, nn.Parameter) else None


def replacing(study: Study, path: str, make: Callable[[nn.Module], nn.Module]) -> Callable[[], None] | None:
    """An action that puts another module in the place of the one at `path`; None for a root or an unknown path."""
    parent, _, name = path.rpartition(".")
    owner, module = study.models.find(parent), study.models.find(path)
    if owner is None or module is None or owner._modules.get(name) is not module:
        return None

    def act() -> None:
        new = make(module)
        new.train(module.training)
        owner._modules[name] = new

    return act


__all__ = ["parameter", "replacing"]
