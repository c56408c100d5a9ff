"""Predictions of the members of an ensemble: several models, or one model under several dropout masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from tightrope.errors import InputError
from tightrope.inputs import bind
from tightrope.step import force_eager, preserved

ASKED = "take the members' predictions"


def as_models(models: Any) -> list[nn.Module]:
    """The models of an ensemble; a `ModuleList` is one.

    Raises:
        InputError: there is none, or something else is among them.
    """
    several = isinstance(models, (Sequence, nn.ModuleList)) and not isinstance(models, str)
    found = list(models) if several else [models]
    if not found:
        raise InputError(ASKED, "there is no model", "Pass a model or a list of models")
    for model in found:
        if not isinstance(model, nn.Module):
            what = f"{type(model).__name__} is no torch.nn.Module"
            raise InputError(ASKED, what, "Pass a model or a list of models, and precomputed outputs to decompose")
    return found


@torch.no_grad()
def ensemble(models: list[nn.Module], inputs: Any) -> list[Any]:
    """What each model returns in evaluation mode."""
    made = []
    for model in models:
        args, kwargs = bind(model, inputs)
        with preserved(model), force_eager():
            model.eval()
            made.append(model(*args, **kwargs))
    return made


@torch.no_grad()
def masked(model: nn.Module, inputs: Any, draws: int, seed: int) -> tuple[list[Any], tuple[str, ...]]:
    """What a model returns under each draw of its random layers, and the names of those layers.

    Every other module stays in evaluation mode: normalisers use their running statistics. Without a random layer there
    is one prediction.
    """
    args, kwargs = bind(model, inputs)
    with preserved(model), force_eager(), _plain_encoders():
        model.eval()
        probe = _Probe(model, args, kwargs)
        names = probe.random_modules()
        for name in names:
            probe.modules[name].training = True
        torch.manual_seed(seed)
        made = [model(*args, **kwargs) for _ in range(draws if names or probe.always else 1)]
    return made, (*names, *(["its evaluation mode"] if probe.always else []))


class _Probe:
    """Which modules of a model in evaluation mode draw random numbers when they are put into training mode.

    Attributes:
        modules: by name.
        always: whether it draws in evaluation mode, too.
    """

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.model, self.args, self.kwargs = model, args, kwargs
        self.modules = dict(model.named_modules())
        self.start = _generators()
        model(*args, **kwargs)
        self.end = _generators()
        self.always = _differ(self.start, self.end)

    def random_modules(self) -> list[str]:
        """Torch's own are known. Others are switched on alone, and count if the generators then end elsewhere."""
        found, doubtful = [], []
        for name, module in self.modules.items():
            if isinstance(module, _DropoutNd):
                found += [name] if module.p > 0 else []
            elif isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
                found += [name] if module.dropout > 0 else []
            elif isinstance(module, nn.RReLU):
                found.append(name)
            elif not type(module).__module__.startswith("torch.nn."):
                doubtful.append(name)
        if doubtful and self._draws(doubtful):
            found += [name for name in doubtful if self._draws([name])] or doubtful
        return found

    def _draws(self, names: list[str]) -> bool:
        torch.set_rng_state(self.start[0])
        if len(self.start) > 1:
            torch.cuda.set_rng_state_all(self.start[1:])
        for name in names:
            self.modules[name].training = True
        try:
            self.model(*self.args, **self.kwargs)
        except Exception:  # some modules cannot be called in training mode alone
            return False
        finally:
            for name in names:
                self.modules[name].training = False
        return _differ(self.end, _generators())


def _differ(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) != len(b) or any(not torch.equal(x, y) for x, y in zip(a, b, strict=True))


def _generators() -> list[Tensor]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *cuda]


@contextmanager
def _plain_encoders() -> Iterator[None]:
    """Transformer layers in evaluation mode go through their dropout; the fused kernel of torch leaves it out."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


__all__ = ["ASKED", "as_models", "ensemble", "masked"]
