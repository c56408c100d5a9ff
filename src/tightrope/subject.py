"""What is examined: a model with its data, loss and optimizer where there are any, or a whole training loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tightrope.errors import InputError


@dataclass(frozen=True)
class Subject:
    """What a factory returns to `tightrope check`, `predict` and `fix`.

    Attributes:
        model: any `torch.nn.Module`.
        data: a batch or a loader of batches. A batch is `(inputs, target)` when `loss` takes two arguments,
            otherwise the inputs alone: a tensor, a tuple (positional), a dict (keyword arguments), a dataclass.
        loss: `loss(output, target)`, `loss(output)`, or None for a model whose output holds its loss.
        optimizer: a `torch.optim.Optimizer`, or None.
    """

    model: nn.Module
    data: Any = None
    loss: Callable[..., Tensor] | None = None
    optimizer: torch.optim.Optimizer | None = None


@dataclass(frozen=True)
class Program:
    """A training loop, for what only a run shows.

    Attributes:
        train: builds its model and data and makes its steps.
    """

    train: Callable[[], None]


def first_batch(data: Any) -> Any:
    """The batch itself, or the first one of a loader.

    Raises:
        InputError: the loader is empty.
    """
    if (
        isinstance(data, (Tensor, Mapping, tuple, list))
        or dataclasses.is_dataclass(data)
        or not isinstance(data, Iterable)
    ):
        return data
    for batch in data:
        return batch
    raise InputError("take a batch", f"{type(data).__name__} is empty", "Pass a loader with at least one batch")


def split(batch: Any, loss: Callable[..., Tensor] | None) -> tuple[Any, Callable[[Any], Tensor] | None]:
    """The inputs of the model and the loss of its output, from a batch as a training script has it."""
    if loss is None or not is_pair(batch, loss):
        return batch, loss
    inputs, target = batch

    def with_target(output: Any) -> Tensor:
        return loss(output, target)

    return inputs, with_target


def is_pair(batch: Any, loss: Callable[..., Tensor] | None) -> bool:
    """Whether a batch is `(inputs, target)`."""
    return loss is not None and isinstance(batch, (tuple, list)) and len(batch) == 2


__all__ = ["Program", "Subject", "first_batch", "is_pair", "split"]
