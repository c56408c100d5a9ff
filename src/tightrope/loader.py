"""Several batches of a loader, looked at without a step: what `check` knows of the data beyond one batch."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from tightrope.isolation import undisturbed
from tightrope.measure.batches import Batches, gather
from tightrope.subject import is_pair
from tightrope.tape.sampler import Place, Sample, Sampler, plain, thin
from tightrope.tape.source import UNKNOWN

BATCHES = 16
"""Batches that are drawn: a share of the variance between them is then known to about a third of itself."""
SECONDS = 1.0
"""No further batch is drawn after so long."""


def survey(data: Any, loss: Callable[..., Tensor] | None = None) -> Batches | None:
    """The first batches of a loader; None for a single batch, and for an iterator, which would be used up.

    Random states are left as they were found, the loader's own included.

    Args:
        data, loss: as in `Subject`.
    """
    single = isinstance(data, (Tensor, Mapping, tuple, list)) or dataclasses.is_dataclass(data)
    if single or isinstance(data, Iterator) or not isinstance(data, Iterable):
        return None
    sampler = Sampler()
    begin = time.perf_counter()
    own = getattr(data, "generator", None)
    state = own.get_state() if isinstance(own, torch.Generator) else None
    with undisturbed():
        for batch in data:
            inputs, target = batch if is_pair(batch, loss) else (batch, None)
            _note(sampler.inputs, inputs, "input", sampler.step)
            _note(sampler.targets, target, "target", sampler.step)
            sampler.step += 1
            if sampler.step > BATCHES or time.perf_counter() - begin > SECONDS:
                break
    if state is not None and isinstance(own, torch.Generator):
        own.set_state(state)
    return gather(sampler, data)


def _note(table: dict[Place, list[Sample]], part: Any, name: str, step: int) -> None:
    for turn, x in enumerate(t for t in tree_flatten(part)[0] if plain(t)):
        if x.ndim < (2 if name == "input" else 1) or (name == "input" and not x.is_floating_point()) or not len(x):
            continue
        place = Place(name, UNKNOWN, tuple(x.shape[1:]), turn)
        table.setdefault(place, []).append(Sample(step, len(x), thin(x)))


__all__ = ["survey"]
