"""Layers that act in another way in training than in evaluation, as they stand on a tape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tightrope.checks.trace import CHANCE
from tightrope.isolation import undisturbed
from tightrope.tape.rerun import Unplayable, rerun
from tightrope.tape.tape import Entry, Kind, Ref, Tape, Value


@dataclass(frozen=True)
class Statistics:
    """A batch norm's running statistics beside those of the batch that it was given.

    Attributes:
        entry: the call.
        variance: median over channels of |running variance - batch variance| / batch variance.
        shift: median over channels of |running mean - batch mean| / batch std.
        count: numbers behind each channel's statistics.
        fresh: whether the running statistics are still 0 and 1, as they were built.
    """

    entry: Entry
    variance: float
    shift: float
    count: int
    fresh: bool


def norms(tape: Tape, *, training: bool) -> Iterator[Entry]:
    """Batch norms with running statistics that ran in this mode."""
    for entry in tape.entries:
        if entry.op != "batch_norm" or bool(entry.argument(5, "training", False)) is not training:
            continue
        if isinstance(entry.argument(1, "running_mean"), Ref) and isinstance(entry.argument(2, "running_var"), Ref):
            yield entry


def drops(tape: Tape, *, training: bool) -> Iterator[Entry]:
    """Dropouts of a positive rate that ran in this mode."""
    for entry in tape.entries:
        if entry.op in CHANCE and rate(entry) > 0 and bool(entry.argument(2, "training", True)) is training:
            yield entry


def rate(entry: Entry) -> float:
    """The share that a dropout drops."""
    return float(entry.argument(1, "p", 0.5))


def statistics(tape: Tape, entries: Sequence[Entry]) -> list[Statistics]:
    """Running statistics and those of the batch, in one run of the tape; none where that cannot be made again."""
    wanted = {entry.inputs[0] for entry in entries}
    found = {n: v for n in wanted if (v := tape.values[n].content) is not None and n not in tape.makers}
    moments = {n: _moments(x) for n, x in found.items()}
    try:
        with undisturbed():
            for entry, made in rerun(tape, wanted=wanted - found.keys()):
                moments.update({n: _moments(x) for n, x in zip(entry.outputs, made, strict=True) if n in wanted})
    except Unplayable:
        return []
    compared = (_compared(tape, entry, moments.get(entry.inputs[0])) for entry in entries)
    return [statistic for statistic in compared if statistic is not None]


def _moments(x: Tensor) -> tuple[Tensor, Tensor, int]:
    return (*of_channels(x), x.numel() // max(x.shape[1], 1))


def _compared(tape: Tape, entry: Entry, moments: tuple[Tensor, Tensor, int] | None) -> Statistics | None:
    mean, variance = (tape.values[entry.argument(place, "").id].content for place in (1, 2))
    if moments is None or mean is None or variance is None or moments[2] < 2:
        return None
    found, centre, count = moments
    scale = found.clamp(min=torch.finfo(torch.float32).tiny)
    return Statistics(
        entry, float(((variance.double() - found).abs() / scale).median()),
        float(((mean.double() - centre).abs() / scale.sqrt()).median()), count,
        bool((mean == 0).all()) and bool((variance == 1).all()),
    )  # fmt: skip


def of_channels(x: Tensor) -> tuple[Tensor, Tensor]:
    """Variance and mean of each channel of a tensor (samples, channels, sites...), in double precision."""
    table = x.detach().double().transpose(0, 1).flatten(1)
    variance, mean = torch.var_mean(table, 1)
    return variance, mean


def trained_before(tape: Tape, entry: Entry) -> bool:
    """Whether a parameter of the same model that is trained stands at a call or before it."""
    number = entry.outputs[0]
    root = entry.module.split(".")[0]
    return any(
        value.kind is Kind.PARAMETER and value.trained and _within(tape, value, root)
        for value in (tape.values[n] for n in tape.ancestors(number))
    )


def _within(tape: Tape, value: Value, root: str) -> bool:
    """Whether a parameter belongs to the model at this path, where there are several."""
    return root not in tape.modules or (value.name or "").split(".")[0] == root or "" in tape.modules


__all__ = ["Statistics", "drops", "norms", "of_channels", "rate", "statistics", "trained_before"]
