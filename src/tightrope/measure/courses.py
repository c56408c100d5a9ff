"""How a recurrent layer's state, and the gradient through it, go with time; how a normaliser's input does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tightrope.measure.laws import arrange
from tightrope.roles import Axes
from tightrope.tape.tape import RECURRENT, Entry

SAMPLES, STEPS = 8, 512
"""Sequences that are followed, and the time steps of each: their gradients' rms has an error of a few percent."""
SHORTEST = 4
"""Time steps from which on there is a course."""


@dataclass(frozen=True)
class Course:
    """A recurrent layer over time, the first step first.

    Attributes:
        state: rms of the output at each step.
        gradient: rms of the gradient with respect to the input at each step, of a random direction in the last output.
    """

    state: tuple[float, ...]
    gradient: tuple[float, ...]


@dataclass(frozen=True)
class Sites:
    """What a normaliser that pools over sites reads at each of them, the first one first.

    Attributes:
        std: at each site, over samples and channels, each channel about its own mean.
        shift: rms over channels of the site's mean about the mean of all sites.
    """

    std: tuple[float, ...]
    shift: tuple[float, ...]


def site_course(x: Tensor, axes: Axes) -> Sites | None:
    """Scale and mean of a normaliser's input at each of its sites; None for fewer than `SHORTEST`."""
    if x.numel() == 0 or axes.shape != tuple(x.shape):
        return None
    table = arrange(x.float(), axes)
    if table.shape[1] < SHORTEST or table.shape[0] < 2:
        return None
    mean = table.mean(0)
    spread = table.var(0).mean(1).sqrt()
    shift = (mean - mean.mean(0)).square().mean(1).sqrt()
    return Sites(tuple(spread.tolist()), tuple(shift.tolist()))


def recurrent_course(entry: Entry, args: tuple[Any, ...]) -> Course | None:
    """Run a recurrent layer once more on some of its sequences, and send a gradient back from the last step.

    Nothing of the step is touched: the inputs are copies, no random number is drawn. None where that cannot be done.
    """
    if entry.op not in RECURRENT or len(args) != 9:
        return None
    try:
        return _course(entry, args)
    except (RuntimeError, TypeError, ValueError, IndexError):  # a layer in a form that is not known here
        return None


def _course(entry: Entry, args: tuple[Any, ...]) -> Course | None:
    packed = isinstance(args[1], Tensor) and args[1].ndim == 1 and args[1].dtype == torch.long
    if packed:
        x, states, rest = _longest(args[0], args[1]), args[2], args[3:]
    else:
        x, states, rest = args[0].transpose(0, 1) if args[8] else args[0], args[1], args[2:]
    weights, biased, layers, two_ways = rest[0], rest[1], rest[2], rest[5]
    if x.ndim != 3 or x.shape[0] < SHORTEST or x.is_meta:
        return None
    with torch.enable_grad():
        x = x.detach()[:STEPS, :SAMPLES].clone().requires_grad_(True)
        held = [
            h.detach()[:, : x.shape[1]].clone() for h in (states if isinstance(states, (tuple, list)) else [states])
        ]
        start = tuple(held) if isinstance(states, (tuple, list)) else held[0]
        frozen = [w.detach() for w in weights]
        y = entry.function(x, start, frozen, biased, layers, 0.0, True, two_ways, False)[0]
        last = y[-1, :, : y.shape[-1] // 2] if two_ways else y[-1]
        direction = torch.randn(last.shape, generator=torch.Generator().manual_seed(0)).to(last)
        (gradient,) = torch.autograd.grad(last, x, direction)
    return Course(_rms(y.detach()), _rms(gradient))


def _longest(data: Tensor, sizes: Tensor) -> Tensor:
    """The longest of packed sequences, time first."""
    kept = int(sizes[-1])
    starts = (sizes.cumsum(0) - sizes).tolist()
    return torch.stack([data[i : i + kept] for i in starts])


def _rms(x: Tensor) -> tuple[float, ...]:
    return tuple(x.double().square().mean((1, 2)).sqrt().tolist())


__all__ = ["Course", "Sites", "recurrent_course", "site_course"]
