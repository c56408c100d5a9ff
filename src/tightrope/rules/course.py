"""Courses: the law of a recurrent layer's units over time, with covariances between all pairs of steps.

A unit has its own mean and standard deviations at each step. How alike two steps are is a matter of the whole layer:
pre-activations are sums over many units, so that their correlation over time is the same for all units of a block of
rows up to fluctuations of 1 / sqrt(width). It is therefore pooled over blocks, (step, step) numbers for each.

Covariances exist at two levels: between two steps of one sample, and between steps of different samples. The second
one is what draws of the weights share; it is absent where the weights are known.

Reference: Alemohammad et al., The Recurrent Neural Tangent Kernel (2021), for the kernel over pairs of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tightrope.rules.state import DTYPE, State

TINY = 1e-300


@dataclass(frozen=True)
class Rows:
    """The law of one step beside those before it.

    Attributes:
        mean: (step, channel), the last step is the newest.
        cov: (level, step, channel), covariances of the newest step with each; level 0: in one sample, level 1:
            between samples.
    """

    mean: Tensor
    cov: Tensor

    @property
    def moment(self) -> Tensor:
        """E of the product of the newest step and each."""
        return self.cov + self.mean[-1] * self.mean

    @property
    def variance(self) -> Tensor:
        """Of the newest step, (level, channel)."""
        return self.cov[:, -1].clamp(min=0)

    def plus(self, other: Rows) -> Rows:
        """The sum with an independent course."""
        return Rows(self.mean + other.mean, self.cov + other.cov)

    def minus_from_one(self) -> Rows:
        """One minus it: what a gate leaves."""
        return Rows(1 - self.mean, self.cov)

    def blocks(self, count: int) -> list[Rows]:
        """The channels in blocks; laws that are the same for all channels are the same for all blocks."""
        if self.mean.shape[-1] == 1:
            return [self] * count
        return [Rows(m, c) for m, c in zip(self.mean.chunk(count, -1), self.cov.chunk(count, -1), strict=True)]

    def since(self, first: int) -> Rows:
        """Without the oldest steps."""
        return Rows(self.mean[first:], self.cov[:, first:])


def times(*factors: Rows) -> Rows:
    """The product of independent courses."""
    mean, moment = factors[0].mean, factors[0].moment
    for factor in factors[1:]:
        mean, moment = mean * factor.mean, moment * factor.moment
    return Rows(mean, moment - mean[-1] * mean)


def merged(blocks: Sequence[Rows]) -> Rows:
    """Blocks of channels side by side."""
    width = max(b.mean.shape[-1] for b in blocks)

    def wide(x: Tensor) -> Tensor:
        return x.expand(*x.shape[:-1], width)

    return Rows(torch.cat([wide(b.mean) for b in blocks], -1), torch.cat([wide(b.cov) for b in blocks], -1))


def added(gate: Rows, before: Rows, injected: Rows, cross: Tensor | None = None) -> Rows:
    """The memory y after y' = f y + e, where f wanders about its mean F.

    With e' = e + (f - F) y this is a linear filter: Cov(y', y_s) = F Cov(y, y_s) + Cov(e', y_s), and
    q_s = Cov(e', y_s) follows q_{s + 1} = F_s q_s + Cov(e', e'_s) along s.

    Args:
        gate: f over steps 0 ... k.
        before: y over steps 0 ... k.
        injected: e over steps 0 ... k.
        cross: E of the product of y and that by which f weighs it, if not y itself.

    Returns:
        y over steps 0 ... k + 1.
    """
    noise = injected.cov + gate.cov * (before.moment if cross is None else cross)
    factor = gate.mean
    gathered, reach = noise[:, :-1], factor[:-1]
    step, count = 1, reach.shape[0]
    while step < count:
        head = gathered[:, step:] + reach[step:] * gathered[:, :-step]
        far = reach[step:] * reach[:-step]
        gathered = torch.cat([gathered[:, :step], head], 1)
        reach = torch.cat([reach[:step], far], 0)
        step *= 2
    q = torch.cat([torch.zeros_like(noise[:, :1]), gathered], 1)
    row = factor[-1] * before.cov + q
    newest = factor[-1].square() * before.cov[:, -1:] + 2 * factor[-1] * q[:, -1:] + noise[:, -1:]
    mean = factor[-1] * before.mean[-1] + injected.mean[-1]
    old = before.mean.expand(-1, mean.shape[-1])
    return Rows(torch.cat([old, mean[None]]), torch.cat([row.expand(-1, -1, newest.shape[-1]), newest], 1))


def _grouped(x: Tensor, groups: int) -> Tensor:
    """Channels as (group, channel of the group)."""
    return x.reshape(*x.shape[:-1], groups, -1)


class Course:
    """The law of a layer's units over its steps; steps are put in one after the other.

    Args:
        levels: 1 where weights are known, else 2.
        groups: blocks of channels with correlations of their own.

    Attributes:
        mean, std: (step, channel).
        rho: (level, step, step, group), covariance over the product of both standard deviations.
    """

    def __init__(self, levels: int, groups: int = 1) -> None:
        self.mean = torch.empty((0, 1), dtype=DTYPE)
        self.std = torch.empty((0, 1), dtype=DTYPE)
        self.rho = torch.empty((levels, 0, 0, groups), dtype=DTYPE)
        self.groups = groups

    def __len__(self) -> int:
        return self.mean.shape[0]

    def put(self, rows: Rows) -> None:
        """The next step."""
        old, channels = len(self), max(rows.mean.shape[-1], rows.cov.shape[-1], self.mean.shape[-1])
        if old == 0:
            self.groups = self.groups if channels % self.groups == 0 else 1
            self.rho = self.rho[..., : self.groups]
        self.mean = torch.cat([self.mean.expand(old, channels), rows.mean[-1:].expand(1, channels)])
        newest = rows.variance[0].sqrt().expand(1, channels)
        self.std = torch.cat([self.std.expand(old, channels), newest])
        scale = self._pooled(self.std[-1] * self.std)
        found = torch.where(scale > 0, self._pooled(rows.cov) / scale.clamp(min=TINY), 0.0)
        grown = found.new_zeros((found.shape[0], old + 1, old + 1, self.groups))
        grown[:, :old, :old] = self.rho
        grown[:, old], grown[:, :, old] = found, found
        self.rho = grown

    def _pooled(self, x: Tensor) -> Tensor:
        return _grouped(x.expand(*x.shape[:-1], self.mean.shape[-1]), self.groups).sum(-1)

    def correlation(self, step: int) -> Tensor:
        """Of a step with all up to it, (level, step, channel or 1)."""
        rho = self.rho[:, step, : step + 1]
        return rho if self.groups == 1 else rho.repeat_interleave(self.mean.shape[-1] // self.groups, -1)

    def rows(self, step: int = -1) -> Rows:
        """A step beside those before it."""
        step %= len(self)
        cov = self.correlation(step) * self.std[step] * self.std[: step + 1]
        return Rows(self.mean[: step + 1], cov)

    def flipped(self) -> Course:
        """The same steps, last one first."""
        return self.like(self.mean.flip(0), self.std.flip(0), self.rho.flip(1, 2))

    def part(self, first: int, last: int) -> Course:
        """Some of the steps."""
        return self.like(self.mean[first:last], self.std[first:last], self.rho[:, first:last, first:last])

    def like(self, mean: Tensor, std: Tensor, rho: Tensor) -> Course:
        made = Course(len(rho), rho.shape[-1])
        made.mean, made.std, made.rho = mean, std, rho
        return made

    def delayed(self) -> Course:
        """One step later, with a certain 1 as the first step."""
        one, none = torch.ones_like(self.mean[:1]), torch.zeros_like(self.std[:1])
        rho = torch.zeros_like(self.rho)
        rho[:, 1:, 1:] = self.rho[:, :-1, :-1]
        return self.like(torch.cat([one, self.mean[:-1]]), torch.cat([none, self.std[:-1]]), rho)

    def pooled(self) -> Course:
        """With one correlation for all channels."""
        if self.groups == 1:
            return self
        weight = _grouped(self.std, self.groups)
        scale = torch.einsum("tgc,sgc->tsg", weight, weight)
        total = scale.sum(-1)
        rho = torch.where(total > 0, (self.rho * scale).sum(-1) / total.clamp(min=TINY), 0.0)
        return self.like(self.mean, self.std, rho[..., None])

    def moments(self, level: int | None) -> Tensor:
        """Mean over channels of E[x_t x_s], (step, step), at a level; None: that of the means alone."""
        n = self.mean.shape[-1]
        total = self.mean @ self.mean.T / n
        if level is None or level >= len(self.rho):
            return total
        s = _grouped(self.std, self.groups)
        return total + (torch.einsum("tgc,sgc->tsg", s, s) * self.rho[level]).sum(-1) / n

    def weighed(self, kernel: Tensor, level: int | None) -> Tensor:
        """Sum over pairs of steps of kernel times E[x_t x_s] of each channel."""
        found = ((kernel @ self.mean) * self.mean).sum(0)
        if level is None or level >= len(self.rho):
            return found
        s = _grouped(self.std, self.groups)
        table = kernel[..., None] * self.rho[level]
        return found + (torch.einsum("tsg,sgc->tgc", table, s) * s).sum(0).reshape(-1)

    def faded(self, share: Tensor) -> Course:
        """Zero but for a share of the samples at each step, those that are left at the steps behind it."""
        mean = self.mean * share[:, None]
        std = (share[:, None] * (self.std.square() + self.mean.square()) - mean.square()).clamp(min=0).sqrt()
        both = torch.minimum(share[:, None], share)
        scale = (std.square().mean(1) / self.std.square().mean(1).clamp(min=TINY)).sqrt().clamp(min=TINY)
        return self.like(mean, std, self.rho * (both / (scale[:, None] * scale))[..., None])

    def thinned(self, rate: float) -> Course:
        """Behind a dropout that draws anew at every step."""
        if rate == 0:
            return self
        before = self.std.square()
        std = (before + (before + self.mean.square()) * rate / max(1 - rate, 1e-9)).sqrt()
        shrink = (before.mean(1) / std.square().mean(1).clamp(min=TINY)).sqrt()
        rho = self.rho * (shrink[:, None] * shrink)[..., None]
        rho[0].diagonal().fill_(1.0)
        return self.like(self.mean, std, rho)


def levelled(course: Course, levels: int) -> Course:
    """With at least so many levels; where one is missing, only the means are shared."""
    if len(course.rho) >= levels:
        return course
    more = torch.zeros_like(course.rho[:1]).expand(levels - len(course.rho), *course.rho.shape[1:])
    return course.like(course.mean, course.std, torch.cat([course.rho, more]))


def side_by_side(left: Course, right: Course) -> Course:
    """The channels of both, each block with its own correlation."""
    left, right = left.pooled(), right.pooled()
    width = max(left.mean.shape[-1], right.mean.shape[-1])
    if width == 1:
        return left
    mean = torch.cat([left.mean.expand(-1, width), right.mean.expand(-1, width)], -1)
    std = torch.cat([left.std.expand(-1, width), right.std.expand(-1, width)], -1)
    return left.like(mean, std, torch.cat([left.rho, right.rho], -1))


def summed(left: Course, right: Course) -> Course:
    """The sum of independent courses."""
    made = Course(len(left.rho))
    for step in range(len(left)):
        made.put(left.rows(step).plus(right.rows(step)))
    return made


class Through:
    """A linear map, the same at every step, of a course that grows.

    Args:
        weight: (out, in), known or by its law.
        bias: is added, once for all steps and samples.
    """

    def __init__(self, weight: State, bias: State | None = None) -> None:
        self.inputs = weight.shape[-1]
        self.exact = weight.exact
        self.weight = weight.mean.expand(weight.shape) if self.exact else weight.mean
        self.square = self.weight.square()
        self.level = float(weight.mean.mean())
        self.spread = float(weight.variance.mean()) + float(weight.mean.var(unbiased=False))
        self.bias = bias
        self.mean: list[Tensor] = []
        self.std: list[Tensor] = []

    def __call__(self, source: Course) -> Rows:
        """The image of the newest step of a course beside those before it."""
        return self.offset(self._known(source) if self.exact else self._drawn(source))

    def offset(self, rows: Rows) -> Rows:
        """With the bias."""
        if self.bias is None:
            return rows
        return Rows(rows.mean + self.bias.mean, rows.cov + self.bias.variance)

    def _known(self, source: Course) -> Rows:
        step = len(self.mean)
        variance = _grouped(source.std[step].square().expand(self.inputs), source.groups)
        square = _grouped(self.square, source.groups)
        self.mean.append(source.mean[step].expand(self.inputs) @ self.weight.T)
        self.std.append(torch.einsum("gi,ogi->go", variance, square).sqrt())
        std = torch.stack(self.std)
        cov = (source.rho[:, step, : step + 1, :, None] * std[-1] * std).sum(2)
        return Rows(torch.stack(self.mean), cov)

    def _drawn(self, source: Course) -> Rows:
        step = len(self.mean)
        self.mean.append(source.mean[step])
        rows = source.rows(step)
        moment, cov = rows.moment.mean(-1, keepdim=True), rows.cov.mean(-1, keepdim=True)
        n = self.inputs
        mean = n * self.level * rows.mean.mean(-1, keepdim=True)
        return Rows(mean, n * self.spread * moment + n * self.level**2 * cov)

    def all(self, source: Course, groups: int = 1) -> Course:
        """The image of a whole course."""
        made = Course(len(source.rho), groups)
        for _ in range(len(source)):
            made.put(self(source))
        return made


__all__ = ["Course", "Rows", "Through", "added", "levelled", "merged", "side_by_side", "summed", "times"]
