"""How noisy the gradient of a mini-batch is, and which batch size that noise asks for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tightrope.errors import InputError
from tightrope.finding import Evidence, Finding, Severity
from tightrope.inputs import arguments
from tightrope.instruments.estimate import Estimate, beale, covariance, plain, positive, ratio, relative_log, student
from tightrope.instruments.per_sample import ASKED, PerSample, count, cut, find
from tightrope.isolation import undisturbed
from tightrope.step import force_eager, preserved
from tightrope.subject import split

GROUPS = range(10, 25)
"""Numbers of parts that a single batch is cut into; their disagreement gives the errors."""
FEWEST = 4
"""Batches, or samples of a single one, below which there is no interval worth its name."""
WASTE = 10.0
"""Steps over the fewest, or samples over the fewest, from which a batch size is called wrong."""


@dataclass(frozen=True, eq=False)
class BatchNoise:
    """The noise of mini-batch gradients at the model's present weights; it grows as the loss falls.

    The mean gradient of m samples, with correlation rho between samples of one batch, varies by
    sigma2 / m (1 + (m - 1) rho), summed over all parameters. Every `Estimate` has its 95 % interval.

    Attributes:
        sigma2: trace of the covariance of the gradient of a sample. Where samples have no gradient of their own
            (`method` is "batch"), batch size times the variance of the batch gradients.
        signal: squared norm of the expected gradient, free of the noise's share; not significant where it may be <= 0.
        rho: correlation between samples of one batch, against different batches; None from a single batch, which
            cannot tell, and where samples have no gradient of their own.
        effective: independent samples that a batch is worth, m / (1 + (m - 1) rho); None with `rho`.
        noise_scale: sigma2 / signal, the simple gradient noise scale of independent samples.
        critical: batch size at which noise and signal are equal, with this rho; infinite where rho sigma2, the floor
            that no batch size goes below, exceeds the signal. Equal to `noise_scale` without `rho`.
        recommended: `critical` where rho differs significantly from 0, else `noise_scale`, as a power of two: training
            with it takes twice the fewest steps and twice the fewest samples.
        batch_size, batches: what was measured; batches of another size are left out.
        method, reason, certificate: how single samples were seen, as in `PerSample.method`, `.reason` and
            `.discrepancy`: "ghost" norms, "vmap", "loop", or "batch".
        reduction: whether the loss is the mean or the sum over samples; gradients here are of the mean.
    """

    sigma2: Estimate
    signal: Estimate
    rho: Estimate | None
    effective: Estimate | None
    noise_scale: Estimate
    critical: Estimate
    recommended: Estimate
    batch_size: int
    batches: int
    method: str
    reason: str = ""
    certificate: float | None = None
    reduction: str = "mean"

    @property
    def floor(self) -> float:
        """Variance that remains however large the batch: rho sigma2."""
        return max(self.rho.value, 0.0) * self.sigma2.value if self.rho is not None else 0.0

    def variance(self, batch_size: int | None = None) -> float:
        """Of the mean gradient of so many samples, summed over parameters: sigma2 / m (1 + (m - 1) rho)."""
        m = batch_size or self.batch_size
        rho = self.rho.value if self.rho is not None else 0.0
        return max(self.sigma2.value / m * (1 + (m - 1) * rho), 0.0)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """`loader-correlation`, `batch-too-small`, `batch-too-large`, each beyond its interval."""
        return tuple(_findings(self))

    def __str__(self) -> str:
        what = f"{self.batches} batches of {self.batch_size}" if self.batches > 1 else f"a batch of {self.batch_size}"
        how = {"ghost": "ghost norms", "vmap": "gradients side by side", "loop": "gradients one by one"}
        lines = [f"noise of the gradient of {what}, samples seen by {how.get(self.method, 'whole batches only')}"]
        rows = (
            ("sigma^2", self.sigma2), ("signal |G|^2", self.signal), ("rho", self.rho),
            ("worth, samples", self.effective), ("noise scale", self.noise_scale),
            ("critical batch size", self.critical), ("recommended", self.recommended),
        )  # fmt: skip
        lines += [f"  {name:<20} {found if found is not None else 'unknown'}" for name, found in rows]
        if self.certificate is not None and self.method != "batch":
            lines.append(f"  {'checked':<20} single samples agree to {self.certificate:.1g}")
        lines += [f"  {line}" for line in (self.reason, *(f.summary for f in self.findings)) if line]
        return "\n".join(lines)


def batch_noise(
    model: nn.Module, data: Any, *, loss: Callable[..., Tensor] | None = None, batches: int = 16
) -> BatchNoise:
    """Noise of mini-batch gradients: sigma^2, rho, m_eff, noise scale, critical and recommended batch size.

    From a loader, one-way analysis of variance of the gradients, batches as groups: B batches of m samples g_bi give
    MSB = m sum_b |g_b - g|^2 / (B - 1) and MSW = sum_bi |g_bi - g_b|^2 / (B (m - 1)), with E MSB = sigma^2
    (1 + (m - 1) rho) and E MSW = sigma^2 (1 - rho); so (MSB + (m - 1) MSW) / m and |g|^2 - MSB / (B m) are
    unbiased for sigma^2 and for |G|^2. From a single batch, whose samples are taken as independent, the same with
    rho = 0. Errors are by the jackknife over batches (over about 16 parts of a single one), ratios by `Fieller` and
    `Beale` (see `tightrope.instruments.estimate.ratio`).

    Squared norms of samples' gradients come from the backward pass of the batch (ghost norms) for linear, convolution,
    embedding and normalisation layers, their biases, and parameters added or multiplied; else from
    `torch.func`. The way is tried on two samples against each sample alone. Batch normalisation in training mode and
    losses that are no mean or sum over samples couple samples: whole batches are then compared, which needs a loader.
    Dropout stays on and counts as noise. One gradient a batch is held in memory.

    Args:
        model: any module; nothing is changed.
        data: a batch or a loader; a batch is `(inputs, target)` where `loss` takes two arguments, else inputs.
        loss: `loss(output, target)`, `loss(output)`, or None for a model whose output holds its loss.
        batches: how many a loader is asked for.

    Raises:
        InputError: too few batches or samples, no such model, batch or loss, or coupled samples in a single batch.
        RecordError: the loss has no gradient.

    References:
        McCandlish et al. (2018), An empirical model of large-batch training, arXiv 1812.06162, for both scales; Kish
        (1965), Survey sampling, for the worth of a batch; Searle, Casella, McCulloch (1992), Variance components.
    """
    if batches < FEWEST:
        raise InputError(ASKED, f"batches is {batches}", f"Ask for {FEWEST} or more")
    with undisturbed(), preserved(model), force_eager(), torch.enable_grad():
        taken = list(_batches(data, batches))
        arguments(model, split(taken[0], loss)[0])
        sizes = [count(batch) for batch in taken]
        m = max(set(sizes), key=sizes.count)
        taken = [batch for batch, size in zip(taken, sizes) if size == m]
        way = find(model, taken[0], loss)
        if len(taken) == 1:
            return _of_one(way, taken[0], m)
        if len(taken) < FEWEST:
            raise InputError(
                ASKED, f"the loader has {len(taken)} batches of {m} samples",
                f"Pass {FEWEST} batches or more of one size, or a single batch",
            )  # fmt: skip
        sums = _collect(way, iter(taken))
    return _result(way, sums, m, None if way.method == "batch" else m)


def _batches(data: Any, most: int) -> Iterator[Any]:
    """The first batches of a loader, whose own random state is left as it was; or the batch."""
    single = isinstance(data, (Tensor, Mapping, tuple, list)) or dataclasses.is_dataclass(data)
    if single or not isinstance(data, Iterable):
        yield data
        return
    if isinstance(data, Iterator):
        raise InputError(ASKED, f"{type(data).__name__} would be used up", "Pass the loader itself")
    own = getattr(data, "generator", None)
    state = own.get_state() if isinstance(own, torch.Generator) else None
    taken = 0
    for batch in data:
        yield batch
        taken += 1
        if taken == most:
            break
    if state is not None and isinstance(own, torch.Generator):
        own.set_state(state)
    if not taken:
        raise InputError(ASKED, f"{type(data).__name__} is empty", "Pass a loader with at least one batch")


@dataclass(frozen=True)
class Sums:
    """What the estimates are made of, one number a group, double precision.

    Attributes:
        squares: sum of the samples' squared norms; None where samples have none.
        own: squared norm of the group's mean gradient.
        shared: its product with the mean of all groups.
        whole: squared norm of the mean of all groups.
    """

    squares: Tensor | None
    own: Tensor
    shared: Tensor
    whole: float


def _collect(way: PerSample, groups: Iterator[Any]) -> Sums:
    found = [way(group) for group in groups]
    squares = [squared.sum() for squared, _ in found if squared is not None]
    means = [mean.detach() for _, mean in found]
    middle = torch.zeros_like(means[0], dtype=torch.float64)
    for mean in means:
        middle += mean / len(means)
    own = torch.stack([_dot(mean, mean) for mean in means])
    shared = torch.stack([_dot(mean, middle) for mean in means])
    if not bool(torch.isfinite(own).all()):
        raise InputError(ASKED, "gradients are NaN or infinite", "Find where with tightrope check")
    return Sums(torch.stack(squares).cpu() if squares else None, own.cpu(), shared.cpu(), float(_dot(middle, middle)))


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Inner product in double precision, a part at a time."""
    parts = (
        torch.dot(a.to(torch.float64), b.to(torch.float64)) for a, b in zip(x.split(1 << 22), y.split(1 << 22))
    )  # fmt: skip
    return torch.stack(list(parts)).sum()


def _of_one(way: PerSample, batch: Any, m: int) -> BatchNoise:
    """A single batch: its parts are the groups, its samples are independent."""
    if way.method == "batch":
        found = f"a single batch, and {way.reason}"
        raise InputError(ASKED, found, "Pass a loader of several batches, or model.eval() for running statistics")
    if m < FEWEST:
        raise InputError(ASKED, f"the batch holds {m} samples", f"Pass {FEWEST} or more, or a loader")
    parts = min((k for k in GROUPS), key=lambda k: (m % k, abs(k - 16))) if m >= GROUPS[0] else m
    size = m // parts
    sums = _collect(way, (cut(batch, i * size, (i + 1) * size) for i in range(parts)))
    return _result(way, sums, m, size, independent=True)


def _moments(sums: Sums, size: int | None, independent: bool) -> tuple[Tensor, Tensor]:
    """sigma^2, |G|^2, MSB and MSW: from all groups, and with each one left out.

    Returns:
        Shape (4,) and (groups, 4).
    """
    b = len(sums.own)
    whole = torch.tensor(sums.whole, dtype=torch.float64)
    left = (b * b * whole - 2 * b * sums.shared + sums.own) / (b - 1) ** 2
    squares = sums.squares if sums.squares is not None else torch.zeros_like(sums.own)

    def of(square: Tensor, own: Tensor, mean: Tensor, groups: int) -> Tensor:
        if independent:
            assert size is not None
            n = groups * size
            sigma2 = (square - n * mean) / (n - 1)
            return torch.stack([sigma2, mean - sigma2 / n, sigma2, sigma2], -1)
        m = size or 1
        between = m * (own - groups * mean) / (groups - 1)
        within = (square - m * own) / (groups * (m - 1)) if m > 1 else torch.zeros_like(between)
        return torch.stack([(between + (m - 1) * within) / m, mean - between / (groups * m), between, within], -1)

    full = of(squares.sum(), sums.own.sum(), whole, b)
    return full, of(squares.sum() - squares, sums.own.sum() - sums.own, left, b - 1)


def _result(way: PerSample, sums: Sums, m: int, size: int | None, independent: bool = False) -> BatchNoise:
    """All estimates; `size` is None where only whole batches are seen."""
    full, left = _moments(sums, size, independent)
    if size is None:  # in units of samples: the variance of a batch gradient is sigma^2 / m
        unit = torch.tensor([m, 1.0, m, m], dtype=torch.float64)
        full, left = full * unit, left * unit
    t = student(len(sums.own) - 1)
    spread = covariance(left)
    values = [float(x) for x in full]
    sigma2, signal = positive(values[0], float(spread[0, 0]), t), plain(values[1], float(spread[1, 1]), t)
    scale = ratio(values[0], values[1], spread[:2, :2], t)
    rho, worth, critical = None, None, scale
    if size is not None and size > 1 and not independent:
        rho, worth = _correlation(full, left, m, t)
        # noise at batch size M: sigma^2 rho + sigma^2 (1 - rho) / M, equal to the signal
        rest = [x[..., 1] - (x[..., 2] - x[..., 3]) / m for x in (full, left)]
        both = covariance(torch.stack([left[:, 3], rest[1]], 1))
        critical = ratio(values[3], float(rest[0]), both, t)
    differs = rho is not None and not rho.low <= 0 <= rho.high
    return BatchNoise(
        sigma2, signal, rho, worth, scale, critical, _powers(critical if differs else scale), m,
        1 if independent else len(sums.own), way.method, way.reason, way.discrepancy, way.reduction,
    )  # fmt: skip


def _correlation(full: Tensor, left: Tensor, m: int, t: float) -> tuple[Estimate, Estimate]:
    """rho and m_eff: both are monotone in F = MSB / MSW, whose logarithm has the symmetric interval."""
    between, within = float(full[2]), float(full[3])
    if between <= 0 or within <= 0 or bool((left[:, 2:] <= 0).any()):
        rho = -1 / (m - 1) if between <= 0 else 1.0
        return Estimate(rho, math.inf, -1 / (m - 1), 1.0), Estimate(
            m / max(1 + (m - 1) * rho, 1e-300), math.inf, 1.0, math.inf
        )
    f, error = between / within, relative_log(left[:, 2] / left[:, 3])
    low, high = f * math.exp(-t * error), f * math.exp(t * error)

    def rho_of(x: float) -> float:
        return (x - 1) / (x + m - 1)

    def worth_of(x: float) -> float:
        return 1 + (m - 1) / x

    alike = torch.stack([left[:, 2] - left[:, 3], left[:, 2] + (m - 1) * left[:, 3], left[:, 2], left[:, 3]], 1)
    both = covariance(alike)
    rho = beale(between - within, between + (m - 1) * within, float(both[0, 1]), float(both[1, 1]))
    worth = 1 + (m - 1) * beale(within, between, float(both[3, 2]), float(both[2, 2]))
    return (
        Estimate(rho, error * f * m / (f + m - 1) ** 2, rho_of(low), rho_of(high)),
        Estimate(worth, error * (m - 1) / f, worth_of(high), worth_of(low)),
    )


def _powers(of: Estimate) -> Estimate:
    """The same in powers of two from 1 on."""

    def power(x: float) -> float:
        return x if math.isinf(x) else 2.0 ** round(math.log2(max(x, 1.0)))

    return Estimate(power(of.value), of.error, power(of.low), power(of.high))


def _findings(noise: BatchNoise) -> Iterator[Finding]:
    m, scale = noise.batch_size, noise.noise_scale
    if noise.rho is not None and noise.effective is not None and noise.effective.high < m / 2:
        yield Finding(
            "loader-correlation", Severity.WARNING, "", "",
            f"a batch of {m} is worth {noise.effective.value:.3g} samples: its gradients correlate by "
            f"{noise.rho.value:.3g}; shuffle the data",
            (
                Evidence("correlation of the gradients of a batch", noise.rho.value, 0.0, noise.rho.error),
                Evidence("samples that a batch is worth", noise.effective.value, float(m), noise.effective.error),
            ),
        )  # fmt: skip
    if not math.isinf(scale.low) and 1 + scale.low / m > WASTE:
        yield Finding(
            "batch-too-small", Severity.ADVICE, "", "",
            f"a batch of {m} takes {1 + scale.low / m:.3g} times the fewest steps or more: the noise scale is {scale}",
            (Evidence("gradient noise scale", scale.value, float(m), scale.error),),
        )  # fmt: skip
    if 1 + m / max(scale.high, 1.0) > WASTE:
        yield Finding(
            "batch-too-large", Severity.ADVICE, "", "",
            f"a batch of {m} takes {1 + m / max(scale.high, 1.0):.3g} times the fewest samples or more: the noise "
            f"scale is {scale}",
            (Evidence("gradient noise scale", scale.value, float(m), scale.error),),
        )  # fmt: skip


__all__ = ["BatchNoise", "batch_noise"]
