"""What each normaliser of a model deletes: the effects that are constant over what it averages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from tightrope.inputs import arguments
from tightrope.law import Law
from tightrope.measure.measurement import Measurement, Meter
from tightrope.predict import forecast
from tightrope.roles import Axes, Role
from tightrope.step import record
from tightrope.tape.recorder import Recorder
from tightrope.tape.tape import Entry

NORMS = ("batch_norm", "instance_norm", "layer_norm", "group_norm", "rms_norm")
BLOCKS = 8
"""Parts of the batch whose disagreement gives the error of a share."""
MEAN = "mean"
EXACT = 1e-12
"""Shares below it are rounding."""


@dataclass(frozen=True)
class NormEffect:
    """One normaliser and what it does to the effects that make up its input.

    A tensor x[n, s, k] is the sum of a mean and of effects of the sample, the site, the channel and their interactions
    ("sample·channel": what differs between channels in another way for each sample). A share is an effect's part of
    E[x^2]; all shares add up to 1.

    Attributes:
        module, op, location: which normaliser.
        over: the axes that its statistics average over; empty for running statistics.
        deletes: the effects that it takes to zero: those that no axis of `over` belongs to.
        before: share of each effect in its input.
        after: the same in its output before gain and bias.
        expected: `after` by the law: what is deleted is gone, the rest keeps its proportions. Exact where the pools
            that share a statistic have one variance.
        error: standard error of `after` over samples; 0 with a single sample.
        predicted, measured: law of the normaliser's output, gain and bias included, from theory and from the batch.
    """

    module: str
    op: str
    location: str
    over: tuple[str, ...]
    deletes: tuple[str, ...]
    before: dict[str, float] = field(repr=False)
    after: dict[str, float] = field(repr=False)
    expected: dict[str, float] = field(repr=False)
    error: dict[str, float] = field(repr=False)
    predicted: Law | None = field(default=None, repr=False)
    measured: Law | None = field(default=None, repr=False)

    @property
    def deleted(self) -> float:
        """Share of the input's E[x^2] that it deletes."""
        return sum(self.before[name] for name in self.deletes)

    def __str__(self) -> str:
        over = f"averages over {' and '.join(self.over)}" if self.over else "uses running statistics: an affine map"
        lines = [f"{self.op} {self.module}  {over}; deletes {self.deleted:.1%} of E[x^2]  {self.location}".rstrip()]
        width = max(len(name) for name in self.before)
        lines.append(f"  {'effect':<{width}}  before   law   after")
        for name, share in self.before.items():
            gone = "  deleted" if name in self.deletes else ""
            lines.append(
                f"  {name:<{width}}  {share:6.1%} {self.expected[name]:6.1%} {self.after[name]:6.1%}"
                f" ± {self.error[name]:.1%}{gone}"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class NormEffects:
    """All normalisers of a model, in the order of the step."""

    layers: tuple[NormEffect, ...]

    def __iter__(self) -> Iterator[NormEffect]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int) -> NormEffect:
        return self.layers[index]

    def __str__(self) -> str:
        return "\n\n".join(str(layer) for layer in self.layers) or "no normaliser"


def explain_norm(model: nn.Module, inputs: Any, *, loss: Callable[[Any], Tensor] | None = None) -> NormEffects:
    """Which part of its input each normaliser deletes, by the law and measured on a batch.

    A normaliser subtracts the average over a set R of axes. An effect that belongs to none of those axes is constant
    over the average, and goes with it: batch norm (R: samples and sites) deletes the mean and what differs between
    channels alone, layer norm over channels what differs between samples, sites, and both, instance norm (R: sites)
    what differs between samples, channels, and both. What is left is divided by its spread. RMS norm subtracts
    nothing and deletes nothing.

    Args:
        model, inputs, loss: as for `tightrope.measure`; nothing is changed.

    Raises:
        InputError: the model, the batch or the loss is no such thing.
        RecordError: the model raised, or its loss has no gradient.

    References:
        Searle, Casella, McCulloch (1992), Variance components; Wu, He (2018), Group normalization, ECCV, for the sets.
    """
    meter = _Meter()
    found: list[Measurement] = []
    recorder = Recorder(meter, roots={"": model}, on_backward=lambda tape: found.append(meter.measurement(tape)))
    args, kwargs = arguments(model, inputs)
    record(model, args, kwargs, loss, recorder)
    measurement = found[-1]
    predicted = forecast(measurement.tape)
    made = []
    for entry in measurement.tape.entries:
        shares = meter.found.get(entry.index)
        if shares is not None:
            out = entry.outputs[0]
            laws = predicted.laws.get(out), measurement.laws.get(out)
            made.append(_effect(entry, str(measurement.tape.location(entry)), shares, *laws))
    return NormEffects(tuple(made))


@dataclass(frozen=True)
class _Shares:
    over: tuple[str, ...]
    centred: bool
    before: dict[str, float]
    after: dict[str, float]
    error: dict[str, float]


class _Meter(Meter):
    """Measures the effects of what normalisers read and make, while the tensors are there."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, _Shares] = {}

    def on_call(self, entry: Entry, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().on_call(entry, args, kwargs)
        axes = self.axes.get(entry.inputs[0]) if entry.op in NORMS else None
        x = args[0] if args else kwargs.get("input")
        if axes is None or not isinstance(x, Tensor) or x.is_meta:
            return
        with torch._C.DisableTorchFunction():
            self.found[entry.index] = _measure(entry, x.detach().double(), axes, args)


def _measure(entry: Entry, x: Tensor, axes: Axes, args: tuple[Any, ...]) -> _Shares:
    dims, eps = _pool(entry, x)
    groups = int(entry.argument(1, "num_groups")) if entry.op == "group_norm" else 1
    names = _names(entry, axes)
    if groups > 1:  # channels are counted within their group
        x = x.unflatten(1, (groups, -1))
        names = [names[0], "group", *names[1:]]
        dims = tuple(range(2, x.dim()))
    trains = entry.op != "batch_norm" or bool(entry.argument(5, "training", False))
    y = _normalised(entry, x, dims, eps) if trains else _standing(x, eps, *args[1:3])
    over = tuple(dict.fromkeys(names[d] for d in dims if x.shape[d] > 1)) if trains else ()
    before, after = shares(x, names), shares(y, names)
    return _Shares(over, entry.op != "rms_norm" and trains, before, after, _errors(y, names, after))


def _names(entry: Entry, axes: Axes) -> list[str]:
    """What each dimension is: by the layout that the operation fixes, else as it came."""
    roles = [axes.role(d) or Role.CHANNEL for d in range(len(axes.dims))]
    if entry.op not in ("layer_norm", "rms_norm"):
        first = Role.SAMPLE if roles[0] is Role.CHANNEL else roles[0]
        roles = [first, Role.CHANNEL, *[Role.SITE] * (len(roles) - 2)]
    return [role.value for role in roles]


def _pool(entry: Entry, x: Tensor) -> tuple[tuple[int, ...], float]:
    """Dimensions that a normaliser averages over, and what it adds to the variance."""
    rank = x.dim()
    if entry.op == "batch_norm":
        return (0, *range(2, rank)), float(entry.argument(7, "eps", 1e-5))
    if entry.op == "instance_norm":
        return tuple(range(2, rank)), float(entry.argument(7, "eps", 1e-5))
    if entry.op == "group_norm":
        return tuple(range(1, rank)), float(entry.argument(4, "eps", 1e-5))
    count = len(entry.argument(1, "normalized_shape"))
    given = entry.argument(4 if entry.op == "layer_norm" else 3, "eps", 1e-5 if entry.op == "layer_norm" else None)
    return tuple(range(rank - count, rank)), float(torch.finfo(torch.float32).eps if given is None else given)


def _normalised(entry: Entry, x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    """The result before gain and bias."""
    if entry.op == "rms_norm":
        return x / (x.square().mean(dims, keepdim=True) + eps).sqrt()
    return (x - x.mean(dims, keepdim=True)) / (x.var(dims, correction=0, keepdim=True) + eps).sqrt()


def _standing(x: Tensor, eps: float, mean: Tensor, variance: Tensor) -> Tensor:
    """Batch norm by its running statistics, before gain and bias."""
    shape = [1, -1] + [1] * (x.dim() - 2)
    return (x - mean.double().view(shape)) / (variance.double().view(shape) + eps).sqrt()


def shares(x: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Share of E[x^2] of the mean, of each axis's effect and of each interaction.

    Args:
        x: a tensor.
        names: what each dimension is; dimensions of one name count as one axis.
    """
    axes = [name for name in dict.fromkeys(names) if any(x.shape[d] > 1 for d, n in enumerate(names) if n == name)]
    subsets = [subset for size in range(len(axes) + 1) for subset in combinations(axes, size)]
    energy: dict[tuple[str, ...], float] = {}
    for subset in subsets:
        away = [d for d, name in enumerate(names) if name not in subset]
        energy[subset] = float((x.mean(away) if away else x).square().mean())
    total = energy[subsets[-1]]
    if not 0 < total < math.inf:
        return {"·".join(subset) or MEAN: 0.0 for subset in subsets}
    found = {}
    for subset in subsets:  # an effect is what a subset's means hold beyond those of its parts
        parts = [(part, (-1) ** (len(subset) - n)) for n in range(len(subset) + 1) for part in combinations(subset, n)]
        found["·".join(subset) or MEAN] = max(sum(sign * energy[part] for part, sign in parts), 0.0) / total
    return found


def _errors(y: Tensor, names: Sequence[str], whole: dict[str, float]) -> dict[str, float]:
    """Standard errors of the shares, by the jackknife over blocks of samples."""
    blocks = min(BLOCKS, y.shape[0])
    if names[0] != Role.SAMPLE.value or blocks < 3:
        return dict.fromkeys(whole, 0.0)
    rows = torch.arange(y.shape[0], device=y.device) % blocks
    parts = [shares(y[rows != b], names) for b in range(blocks)]
    found = {}
    for name in whole:
        if whole[name] < EXACT:  # zero in every batch, not in parts of one
            found[name] = 0.0
            continue
        values = [part.get(name, 0.0) for part in parts]
        mean = sum(values) / blocks
        found[name] = math.sqrt((blocks - 1) / blocks * sum((value - mean) ** 2 for value in values))
    return found


def _effect(entry: Entry, location: str, found: _Shares, predicted: Law | None, measured: Law | None) -> NormEffect:
    gone = [name for name in found.before if found.centred and not set(name.split("·")) & set(found.over)]
    left = 1 - sum(found.before[name] for name in gone)
    law = {name: 0.0 if name in gone or left <= 0 else share / left for name, share in found.before.items()}
    return NormEffect(
        entry.module, entry.op, location, found.over, tuple(gone), found.before, found.after, law, found.error,
        predicted, measured,
    )  # fmt: skip


__all__ = ["NormEffect", "NormEffects", "explain_norm", "shares"]
