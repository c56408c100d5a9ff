"""What a model is called with, and the refusal of what no step can be made from."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from tightrope.errors import InputError

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def arguments(model: nn.Module, inputs: Any, *, finite: bool = True) -> Arguments:
    """Positional and keyword arguments of the model's call.

    Args:
        model: what is called.
        inputs: a tensor, a tuple or list (positional), a mapping or a dataclass whose fields are parameters of
            `forward` (keywords); anything else is the one positional argument.
        finite: whether to refuse data that holds NaN or infinity.

    Raises:
        InputError: the model is none, has nothing to train or holds complex numbers; the data are empty,
            complex or, if asked for, not finite.
    """
    if not isinstance(model, nn.Module):
        found = f"{getattr(model, '__name__', model)!s:.80} is of type {type(model).__name__}, no torch.nn.Module"
        raise InputError("record a step", found, "Pass the model itself")
    _refuse_model(model)
    args, kwargs = bind(model, inputs)
    for where, tensor in _tensors(args, kwargs):
        _refuse_tensor(where, tensor, finite)
    return args, kwargs


def bind(model: nn.Module, inputs: Any) -> Arguments:
    """Positional and keyword arguments, as `inputs` has them."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if dataclasses.is_dataclass(inputs) and not isinstance(inputs, type):
        fields = {field.name: getattr(inputs, field.name) for field in dataclasses.fields(inputs)}
        if set(fields) <= set(inspect.signature(model.forward).parameters):
            return (), fields
    if isinstance(inputs, (tuple, list)) and not hasattr(inputs, "_fields"):
        return tuple(inputs), {}
    return (inputs,), {}


def _refuse_model(model: nn.Module) -> None:
    parameters = dict(model.named_parameters())
    name = type(model).__name__
    if not parameters:
        raise InputError(f"record a training step of {name}", "it has no parameters", "Pass the model that is trained")
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise InputError(
            f"record a training step of {name}", f"each of its {len(parameters)} parameters is frozen",
            "Unfreeze those that are to be trained (requires_grad_())",
        )  # fmt: skip
    for path, parameter in parameters.items():
        if parameter.is_complex():
            found = f"parameter {path} is {_name(parameter.dtype)}"
            raise InputError(f"record a training step of {name}", found, "Laws are for real numbers: use real ones")


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor among the arguments, with the words for where it stands."""
    places = [*((f"input {i + 1}", x) for i, x in enumerate(args)), *((f"input {k!r}", x) for k, x in kwargs.items())]
    for where, argument in places:
        yield from ((where, leaf) for leaf in tree_flatten(argument)[0] if isinstance(leaf, Tensor))


def _refuse_tensor(where: str, tensor: Tensor, finite: bool) -> None:
    shape = tuple(tensor.shape)
    if tensor.numel() == 0:
        raise InputError(
            "record a step", f"{where} is empty, of shape {shape}", "Pass a batch with at least one sample"
        )
    if tensor.is_complex():
        found = f"{where} is {_name(tensor.dtype)}, of shape {shape}"
        raise InputError("record a step", found, "Laws are defined for real numbers: pass real and imaginary parts")
    if not finite or tensor.is_meta or not tensor.is_floating_point():
        return
    bad = ~torch.isfinite(tensor)
    count = int(bad.sum())
    if count:
        first = tuple(int(i) for i in bad.nonzero()[0])
        raise InputError(
            "take the law of the data",
            f"{count} of {tensor.numel()} numbers of {where} are NaN or infinite, the first at {first}",
            "Clean the data, or mask what is missing",
        )  # fmt: skip


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


__all__ = ["arguments", "bind"]
