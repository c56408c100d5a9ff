"""What several batches of a run have in common, and what tells them apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tightrope.tape.sampler import LOSSES, Place, Sample, Sampler
from tightrope.tape.source import Location

BINS = 64
"""Classes are counted modulo this number; so many bins show any order of more classes."""
SHUFFLES = 199
"""Permutations behind a verdict: beyond all of them is significant at 0.5 %."""


@dataclass(frozen=True)
class Stream:
    """The batches that one place of the program met, oldest first, each once.

    Attributes:
        place: where.
        samples: a few rows of each batch.
        seen: number of batches that passed, repeated ones counted.
    """

    place: Place
    samples: tuple[Sample, ...] = field(repr=False)
    seen: int = 0

    @property
    def size(self) -> float:
        """Mean length of a batch."""
        return sum(sample.size for sample in self.samples) / len(self.samples)

    @property
    def holds_classes(self) -> bool:
        """Whether the rows are numbers of classes."""
        return LOSSES.get(self.place.op, "classes") == "classes" and not self.samples[0].rows.is_floating_point()

    @property
    def sliced(self) -> bool:
        """Whether all batches are contiguous parts of larger tensors."""
        return all(sample.sliced for sample in self.samples)

    @property
    def made(self) -> bool:
        """Whether a model of the program makes such tensors."""
        return any(sample.made for sample in self.samples)

    def units(self) -> list[Tensor]:
        """One matrix a batch, of one row for each sample: shares of its classes, or its numbers; double precision."""
        if not self.holds_classes:
            return [sample.rows.double() for sample in self.samples]
        return [_shares(sample.rows) for sample in self.samples]


@dataclass(frozen=True)
class Batches:
    """The data over the first batches of a run, or of a loader.

    Attributes:
        targets: what losses compared with, by place.
        inputs: what weights read from outside, by place.
        loader: the `DataLoader` that the batches came from, when there is one.
        built: the line on which it was built.
    """

    targets: tuple[Stream, ...] = ()
    inputs: tuple[Stream, ...] = ()
    loader: Any = field(default=None, repr=False)
    built: Location | None = None

    @property
    def sequential(self) -> bool:
        """Whether the loader goes through its data in the order in which they are stored."""
        return isinstance(getattr(self.loader, "sampler", None), torch.utils.data.SequentialSampler)


@dataclass(frozen=True)
class Split:
    """How the variance of samples is split between and within batches.

    Attributes:
        rho: intra-class correlation: the share of the variance that lies between batches.
        error: standard error of `rho`.
        ratio: n times the variance of the batch means over the variance within; 1 by chance.
        deviation: of `ratio` from 1, in standard deviations of chance.
        groups: number of batches.
        size: mean number of samples of a batch that were looked at.
    """

    rho: float
    error: float
    ratio: float
    deviation: float
    groups: int
    size: float


def gather(sampler: Sampler, loader: Any = None, built: Location | None = None) -> Batches:
    """The batches that a sampler has met; one that comes again (full batch, a later epoch) counts once.

    Batches are told apart by their inputs; where no input is known every one counts.
    """
    fresh = _fresh(sampler.inputs)

    def streams(table: dict[Place, list[Sample]]) -> tuple[Stream, ...]:
        found = []
        for place, samples in table.items():
            kept = tuple(_on_cpu(s) for s in samples if fresh is None or s.step in fresh)
            if kept:
                found.append(Stream(place, kept, len(samples)))
        return tuple(found)

    return Batches(streams(sampler.targets), streams(sampler.inputs), loader, built)


def _fresh(inputs: dict[Place, list[Sample]]) -> frozenset[int] | None:
    """Numbers of the steps whose inputs were not seen in an earlier step; None where no input is known."""
    parts: dict[int, list[Any]] = {}
    for place, samples in inputs.items():
        for sample in samples:
            rows = sample.rows.detach().cpu().double()
            parts.setdefault(sample.step, []).append((hash(place), sample.size, hash(rows.numpy().tobytes())))
    first: dict[tuple[Any, ...], int] = {}
    for step in sorted(parts):
        first.setdefault(tuple(parts[step]), step)
    return frozenset(first.values()) if parts else None


def _on_cpu(sample: Sample) -> Sample:
    features = sample.features.detach().cpu() if sample.features is not None else None
    loss = sample.loss.cpu() if sample.loss is not None else None
    return replace(sample, rows=sample.rows.detach().cpu(), features=features, loss=loss)


def _shares(classes: Tensor) -> Tensor:
    """How each row of class numbers is spread over bins; rows without a class (all ignored) are left out."""
    valid = (classes >= 0).double()
    hot = torch.nn.functional.one_hot(classes.long().clamp(min=0) % BINS, BINS).double() * valid.unsqueeze(-1)
    count = valid.sum(1)
    return (hot.sum(1) / count.clamp(min=1).unsqueeze(1))[count > 0]


def split(groups: Sequence[Tensor], *, scaled: bool = False, lost: int = 0) -> Split | None:
    """One-way analysis of variance of rows over groups, summed over columns.

    The ratio's deviation from 1 uses the effective number of columns, (tr S)^2 / tr S^2 of their covariance S.

    Args:
        groups: one matrix (rows, columns) a batch, of equal columns.
        scaled: whether every column is given the same variance first.
        lost: degrees of freedom between the groups that a fit has taken.

    Returns:
        None where there are fewer than two groups of two rows, or nothing varies.
    """
    rows, of = _stacked(groups)
    k, total = len(groups), len(rows)
    free = k - 1 - lost
    if free < 1 or total <= k or not bool(torch.isfinite(rows).all()):
        return None
    rows = rows - rows.mean(0)
    if scaled:
        spread = rows.square().mean(0).sqrt()
        rows = rows[:, spread > 1e-9 * spread.max()] / spread[spread > 1e-9 * spread.max()]
    whole = float(rows.square().sum())
    if whole <= 0 or rows.shape[1] == 0:
        return None
    count = torch.bincount(of, minlength=k).double()
    between = _between(rows, of, count)
    usual = (total - float(count.square().sum()) / total) / (k - 1)
    inside = max((whole - between) / (total - k), 1e-12 * whole / total)
    ratio = between / free / inside
    covariance = rows.T @ rows if rows.shape[1] <= total else rows @ rows.T
    effective = whole**2 / float(covariance.square().sum())
    chance = math.sqrt(2 / effective / free + 2 / effective / (total - k))
    rho = (ratio - 1) / (ratio - 1 + usual)
    error = usual / (ratio - 1 + usual) ** 2 * ratio * chance
    return Split(rho, error, ratio, (ratio - 1) / chance, k, usual)


def unexplained(groups: Sequence[Tensor], by: Sequence[Tensor]) -> tuple[list[Tensor], int]:
    """What a linear fit on other rows of the same samples leaves of the groups, and the rank of the fit."""
    rows, _ = _stacked(groups)
    other, _ = _stacked(by)
    rows, other = rows - rows.mean(0), other - other.mean(0)
    fit = torch.linalg.lstsq(other, rows, driver="gelsd")
    return list((rows - other @ fit.solution).split([len(group) for group in groups])), int(fit.rank)


def beyond_chance(groups: Sequence[Tensor]) -> bool:
    """Whether more of the variance lies between the groups than for any of `SHUFFLES` random regroupings."""
    rows, of = _stacked(groups)
    rows = rows - rows.mean(0)
    count = torch.bincount(of, minlength=len(groups)).double()
    seen = _between(rows, of, count)
    generator = torch.Generator().manual_seed(0)
    for _ in range(SHUFFLES):
        if _between(rows, of[torch.randperm(len(of), generator=generator)], count) >= seen * (1 - 1e-9):
            return False
    return True


def _stacked(groups: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    of = torch.cat([torch.full((len(group),), i) for i, group in enumerate(groups)])
    return torch.cat(list(groups)).double(), of


def _between(rows: Tensor, of: Tensor, count: Tensor) -> float:
    """Sum of squares of the group means, weighted by the groups' lengths; `rows` are centred."""
    sums = torch.zeros(len(count), rows.shape[1], dtype=rows.dtype).index_add_(0, of, rows)
    return float((sums.square().sum(1) / count.clamp(min=1)).sum())


__all__ = ["Batches", "Split", "Stream", "beyond_chance", "gather", "split", "unexplained"]
