"""What a step's loss would be in evaluation: its calls made again with dropout off and other batch statistics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tightrope.checks.trace import CHANCE
from tightrope.tape.rerun import values
from tightrope.tape.tape import Entry, Tape

Moments = dict[int, tuple[Tensor, Tensor]]


@dataclass
class Modes:
    """How dropouts and batch norms are called.

    Attributes:
        drop: whether dropout is on.
        given: mean and variance of each batch norm by the entry's index; those of the batch where there are none.
        seen: mean and variance of each batch norm's input in this run.
    """

    drop: bool
    given: Moments = field(default_factory=dict)
    seen: Moments = field(default_factory=dict)

    def __call__(self, entry: Entry, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The call in these modes."""
        if entry.op in CHANCE and not self.drop:
            return args[0].clone()
        if entry.op == "scaled_dot_product_attention" and not self.drop and len(args) < 5:
            return entry.function(*args, **{**kwargs, "dropout_p": 0.0})
        if entry.op != "batch_norm":
            return NotImplemented
        x = args[0]
        dims = [d for d in range(x.ndim) if d != 1]
        self.seen[entry.index] = (x.mean(dims), x.var(dims, correction=0))
        if entry.index not in self.given:
            return NotImplemented
        named = dict(zip(("weight", "bias", "training", "momentum", "eps"), args[3:], strict=False), **kwargs)
        mean, var = (t.to(x.dtype) for t in self.given[entry.index])
        return F.batch_norm(x, mean, var, named.get("weight"), named.get("bias"), False, 0.0, named.get("eps", 1e-5))


def loss_in(tape: Tape, modes: Modes) -> float:
    """The loss of a step, made again in these modes.

    Raises:
        Unplayable: the tape cannot be run again.
    """
    assert tape.loss is not None
    return float(values(tape, {tape.loss}, call=modes)[tape.loss])


def running(tape: Tape, entries: list[Entry]) -> Moments:
    """The running statistics of batch norms."""
    found = {}
    for entry in entries:
        mean, var = (tape.values[entry.argument(place, "").id].content for place in (1, 2))
        if mean is not None and var is not None:
            found[entry.index] = (mean, var)
    return found


def fall(before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]) -> float:
    """Median over channels of the ratio of two variances."""
    return float((after[1] / before[1].clamp(min=torch.finfo(torch.float32).tiny)).median())


__all__ = ["Modes", "Moments", "fall", "loss_in", "running"]
