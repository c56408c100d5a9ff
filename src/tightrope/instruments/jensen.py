"""How far dropout's average network is from the network that is evaluated: the Jensen gap."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from tightrope.errors import InputError
from tightrope.inputs import arguments
from tightrope.predict import forecast
from tightrope.step import force_eager, preserved, trace

BLOCKS = 16
"""Parts of the draws whose disagreement gives the error of the gap."""


@dataclass(frozen=True, eq=False)
class JensenGap:
    """E[f(x, mask)] - f(x): the mean output over masks less the output at inference.

    Attributes:
        gap: its rms over samples and outputs, Monte-Carlo noise taken off.
        error: standard error of `gap`.
        law: the same rms from the law; None where an operation could not be predicted.
        miss: rms distance between measured and predicted gap beyond the Monte-Carlo noise; None without a law.
        z: rms of that distance in units of the Monte-Carlo error of each output: 1 where the law is exact.
        scale: standard deviation of the outputs at inference.
        spread: standard deviation of an output over masks.
        draws: number of masks.
        measured, standard_error: the gap of each output and its Monte-Carlo error; shape (samples, ...).
        predicted: the gap of each output from the law.
        unknown: operations that were simulated or could not be predicted.
    """

    gap: float
    error: float
    law: float | None
    miss: float | None
    z: float | None
    scale: float
    spread: float
    draws: int
    measured: Tensor = field(repr=False)
    standard_error: Tensor = field(repr=False)
    predicted: Tensor | None = field(default=None, repr=False)
    unknown: tuple[str, ...] = ()

    @property
    def relative(self) -> float:
        """The gap in units of the outputs' standard deviation."""
        return self.gap / self.scale if self.scale > 0 else math.inf if self.gap > 0 else 0.0

    def __str__(self) -> str:
        shape = " x ".join(str(size) for size in self.measured.shape)
        lines = [
            f"Jensen gap of {shape} outputs over {self.draws} masks",
            f"  measured  {self.gap:.3g} ± {self.error:.2g} rms, {self.relative:.3g} of their std {self.scale:.3g}",
            f"  law       {'unknown' if self.law is None else f'{self.law:.3g} rms'}"
            + ("" if self.z is None else f", off by {self.z:.2g} Monte-Carlo errors an output (1: exact)"),
            f"  masks     spread an output by {self.spread:.3g}",
        ]
        if self.unknown:
            lines.append(f"  without a rule: {', '.join(self.unknown)}")
        return "\n".join(lines)


def jensen_gap(model: nn.Module, inputs: Any, *, samples: int = 16, draws: int = 512) -> JensenGap:
    """The gap between the mean of a dropout net over its masks and the net as it is evaluated.

    Inverted dropout keeps the mean of what it masks, so the gap of a linear net is zero. Behind a curved f it is not:
    E f(z) - f(E z) is about f''(z) Var(z) / 2, and non-negative for a convex f. The law carries mean and variance of a
    single sample over the masks through the net, one sample at a time, with the rules of the forecast; the measurement
    draws masks. Normalisers with running statistics are evaluated on them in both.

    Args:
        model: with dropout or stochastic depth in whatever form its training mode has; nothing is changed.
        inputs: a batch, as the model takes it.
        samples: how many samples of the batch are looked at.
        draws: number of masks.

    Raises:
        InputError: fewer than two draws for each of 16 blocks, no sample, or the output holds no floating-point tensor.

    References:
        Srivastava et al. (2014), Dropout, JMLR 15; Wang, Manning (2013), Fast dropout training, ICML, for carrying the
        moments; Gal, Ghahramani (2016), Dropout as a Bayesian approximation, ICML, for the spread.
    """
    if draws < 2 * BLOCKS or samples < 1:
        found = f"draws is {draws}, samples is {samples}"
        raise InputError("measure the Jensen gap", found, f"Pass at least {2 * BLOCKS} draws and one sample")
    args, kwargs = _first(arguments(model, inputs), samples)
    with preserved(model), force_eager():
        model.eval()
        with torch.no_grad():
            plain = _output(model(*args, **kwargs)).double()
        with _masks_on(model):
            blocks, variance = _draw(model, args, kwargs, plain, draws)
            law, unknown = _law(model, args, kwargs, plain)
    error = (variance / draws).sqrt()
    gap, gap_error = _rms(blocks)
    middle = blocks.mean(0)
    miss = z = None
    if law is not None:
        miss, _ = _rms(blocks - law)
        told = error > 0
        z = float(((middle - law)[told] / error[told]).square().mean().sqrt()) if bool(told.any()) else 0.0
    return JensenGap(
        gap, gap_error, None if law is None else float(law.square().mean().sqrt()), miss, z,
        float(plain.std(correction=0)), float(variance.mean().sqrt()), draws, middle, error, law, unknown,
    )  # fmt: skip


def _first(call: Any, samples: int) -> Any:
    """The arguments with so many samples."""
    flat = [t for t in tree_flatten(call)[0] if isinstance(t, Tensor) and t.dim() > 0]
    if not flat:
        raise InputError("measure the Jensen gap", "the batch holds no sample", "Pass a batch of inputs")
    return _slice(call, 0, samples, flat[0].shape[0])


def _slice(call: Any, start: int, stop: int, size: int) -> Any:
    def cut(x: Any) -> Any:
        return x[start:stop] if isinstance(x, Tensor) and x.dim() > 0 and x.shape[0] == size else x

    return tree_map(cut, call)


def _output(made: Any) -> Tensor:
    found = next((t for t in tree_flatten(made)[0] if isinstance(t, Tensor) and t.is_floating_point()), None)
    if found is None:
        what = f"{type(made).__name__} holds no floating-point tensor"
        raise InputError("measure the Jensen gap", what, "Pass a model that returns one")
    return found


@contextmanager
def _masks_on(model: nn.Module) -> Iterator[None]:
    """Training mode, but for normalisers, whose running statistics stand."""
    model.train()
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.training = False
    yield


@torch.no_grad()
def _draw(model: nn.Module, args: Any, kwargs: Any, plain: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """Mean gap of each block of draws, and the variance of the outputs over masks."""
    sums = torch.zeros((BLOCKS, *plain.shape), dtype=torch.float64, device=plain.device)
    squares = torch.zeros_like(plain)
    counts = torch.zeros(BLOCKS, dtype=torch.float64, device=plain.device)
    for i in range(draws):
        off = _output(model(*args, **kwargs)).double() - plain
        sums[i % BLOCKS] += off
        squares += off.square()
        counts[i % BLOCKS] += 1
    mean = sums.sum(0) / draws
    variance = ((squares / draws - mean.square()) * draws / (draws - 1)).clamp(min=0)
    return sums / counts.view(-1, *[1] * plain.dim()), variance


def _rms(blocks: Tensor) -> tuple[float, float]:
    """Root of the mean square of what all blocks share, and its standard error by the jackknife over blocks."""
    flat = blocks.flatten(1)
    products = flat @ flat.T / flat.shape[1]

    def shared(p: Tensor) -> float:
        b = len(p)
        return float(p.sum() - p.trace()) / (b * (b - 1))

    square = shared(products)
    kept = [[j for j in range(len(flat)) if j != i] for i in range(len(flat))]
    parts = torch.tensor([shared(products[rows][:, rows]) for rows in kept], dtype=torch.float64)
    error = math.sqrt((len(parts) - 1) * float((parts - parts.mean()).square().mean()))
    rms = math.sqrt(max(square, 0.0))
    # d sqrt(v) = dv / (2 sqrt(v)); near zero the root itself is the bound
    return rms, error / (2 * rms) if square > error else math.sqrt(error)


def _law(model: nn.Module, args: Any, kwargs: Any, plain: Tensor) -> tuple[Tensor | None, tuple[str, ...]]:
    """Predicted gap of every output: the forecast of one sample is exact about it and random over masks alone."""
    made: list[Tensor] = []
    without: set[str] = set()
    for i in range(plain.shape[0]):
        one_args, one_kwargs = _slice((args, kwargs), i, i + 1, plain.shape[0])
        call = one_kwargs if one_kwargs and not one_args else one_args
        tape = trace(model, call, loss=lambda out: _output(out).sum())
        found = forecast(tape)
        without |= {entry.op for entry in found.simulated} | {entry.op for entry, _ in found.unknown}
        state = found.states.get(tape.makers[tape.loss].inputs[0]) if tape.loss is not None else None
        if state is None:
            return None, tuple(sorted(without))
        made.append(state.mean.expand(state.shape).to(plain.device).reshape(plain[i : i + 1].shape))
    return torch.cat(made) - plain, tuple(sorted(without))


__all__ = ["JensenGap", "jensen_gap"]
