"""The law of softmax probabilities and of log-sum-exp for Gaussian logits, by antithetic draws.

The classes of one position depend on each other through the normaliser, so that no one-dimensional quadrature
serves. The draws come from a generator with a fixed seed: a forecast is the same every time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from tightrope.law import COMPONENTS
from tightrope.rules.amplitude import OMEGA
from tightrope.rules.state import DTYPE, State

BUDGET = 1 << 22
"""Numbers that are drawn: the draws of a position times its classes times the positions."""
CACHED = 1 << 16
"""Numbers that are worked on at once: half a MiB, which stays in a processor's cache."""
MOST_DRAWS, LEAST_DRAWS = 16384, 16
QUASI_DIMENSIONS = 1024
"""Most dimensions for which draws are spread evenly (Sobol) and not at random."""

_SHARED = {"constant": (1,), "sample": (1, 2), "site": (1, 3), "residual": ()}
"""Fields that two elements share, by what they have in common: weights, the sample, the site."""


@dataclass(frozen=True)
class Softmax:
    """Moments of the softmax of logits and of the loss that is made from them.

    Attributes:
        probability: law of p; its last dimension is the class, of length 1 where all classes are alike.
        partition: E[ln sum exp z] at each position, last dimension of length 1.
        variance: Var of the loss at each position given its target, as levels: what two positions share.
        sampled: positions that were looked at, where there are too many.
    """

    probability: State
    partition: Tensor
    variance: tuple[Tensor, Tensor, Tensor, Tensor]
    sampled: slice


def softmax_law(logits: State, chosen: Callable[[int, slice], Tensor | None]) -> Softmax:
    """Moments over logits that are Gaussian about their mean map, classes last.

    Args:
        logits: law of the logits, positions first and classes last.
        chosen: class indices (draw, position) of targets for a number of draws, -1 for none; None without targets.
    """
    classes = logits.shape[-1]
    alike = all(f.shape[-1] == 1 for f in logits.fields) and logits.covariance is None
    lead = torch.broadcast_shapes(*(f.shape for f in logits.fields))[:-1]
    positions = math.prod(lead)
    step = min(positions, math.ceil(positions * classes * LEAST_DRAWS / BUDGET))
    sampled = slice(0, positions, step)
    fields = [f.expand(*lead, f.shape[-1]).reshape(positions, f.shape[-1])[sampled] for f in logits.fields]
    count = len(fields[0])
    draws = 2 * max(LEAST_DRAWS // 2, min(MOST_DRAWS // 2, BUDGET // (2 * count * classes)))
    present = [bool((f != 0).any()) for f in fields[1:]]
    if logits.covariance is not None:  # the draws are whole: what varies most speaks for all
        sizes = [float(f.mean()) for f in fields[1:]]
        present = [there and i == sizes.index(max(sizes)) for i, there in enumerate(present)]
    moments = _Moments(present)
    target = chosen(draws, sampled)
    for weight, where, batch in _batches(logits, fields, classes, draws, moments.partners):
        moments.add(weight, where, batch, fields[0][where], None if target is None else target[:, where])
    return moments.result(logits, lead if step == 1 else (1,) * len(lead), alike, sampled)


Batch = tuple[float, slice, list[Tensor]]
"""The share of these draws, the positions that they are of, and the draws with their partners."""


def _batches(logits: State, fields: list[Tensor], classes: int, draws: int, partners: list[str]) -> Iterator[Batch]:
    """Draws of the logits, (draw, position, class), and of partners that share a part of them; with weights."""
    generator = torch.Generator().manual_seed(20260102)

    def noise(rows: int) -> Tensor:
        return _normal(draws // 2, rows * classes, generator).reshape(-1, rows, classes)

    mean, *parts = fields
    count = len(mean)
    if logits.covariance is not None:
        yield from _correlated(logits, lambda rows: _both(noise(rows)))
        return
    scales = [part.clamp(min=0).sqrt() for part in parts]
    rows = (1, 1, count, count)
    there = [bool((s != 0).any()) for s in scales]

    def fresh() -> list[Tensor | None]:
        return [noise(r) if drawn else None for r, drawn in zip(rows, there, strict=True)]

    sets = [fresh()]
    for name in partners:
        again, held = fresh(), _SHARED[name]
        sets.append([sets[0][i] if i + 1 in held else again[i] for i in range(4)])

    def summed(terms: list[Tensor | None], where: slice) -> Tensor:
        centre = mean[where].expand(-1, classes)
        total = torch.zeros_like(centre).expand(draws // 2, *centre.shape)
        for term, scale in zip(terms, scales, strict=True):
            if term is not None:
                total = total + (term if term.shape[1] == 1 else term[:, where]) * scale[where]
        return torch.cat([centre + total, centre - total])

    step = max(1, CACHED // (draws * classes))
    for first in range(0, count, step):
        where = slice(first, min(first + step, count))
        yield 1.0, where, [summed(terms, where) for terms in sets]


def _both(half: Tensor) -> Tensor:
    """Draws and their opposites."""
    return torch.cat([half, -half])


def _normal(draws: int, dimensions: int, generator: torch.Generator) -> Tensor:
    """Standard normal draws, (draw, dimension)."""
    if dimensions > QUASI_DIMENSIONS:
        return torch.randn((draws, dimensions), generator=generator, dtype=DTYPE)
    seed = int(torch.randint(1 << 30, (), generator=generator))
    points = SobolEngine(dimensions, scramble=True, seed=seed).draw(draws, dtype=DTYPE)
    # In random order: two scrambled sequences are independent of each other only so.
    points = points[torch.randperm(draws, generator=generator)]
    quantiles: Tensor = torch.special.ndtri(points.clamp(1e-12, 1 - 1e-12))
    return quantiles


def _correlated(logits: State, noise: Callable[[int], Tensor]) -> Iterator[Batch]:
    """Draws where classes vary together, sample amplitude by sample amplitude."""
    assert logits.covariance is not None
    mean = logits.mean.expand(logits.shape).reshape(-1)
    loud = torch.ones(1, dtype=DTYPE) if logits.amplitude is None else torch.exp(logits.amplitude)
    shares = OMEGA if logits.amplitude is not None else torch.ones(1, dtype=DTYPE)
    inner = mean / (shares * loud).sum()
    within = logits.covariance + mean[:, None] * mean[None]
    within = within / (shares * loud.square()).sum() - inner[:, None] * inner[None]
    values, vectors = torch.linalg.eigh(within)
    root = vectors * values.clamp(min=0).sqrt()
    for share, factor in zip(shares, loud, strict=True):
        yield float(share), slice(None), [factor * (inner + noise(1) @ root.T)]


class _Moments:
    """Running moments of p and of the loss, and their products with partners."""

    def __init__(self, present: list[bool]) -> None:
        names = [name for name, there in zip(COMPONENTS, present, strict=True) if there]
        self.only = names[0] if len(names) == 1 else None
        self.partners = [] if len(names) <= 1 else ["constant", "site", "sample"]
        self._parts: dict[int, dict[str, Tensor]] = {}
        self._first = 0

    @property
    def sums(self) -> dict[str, Tensor]:
        """The moments of all positions."""
        tables = [self._parts[first] for first in sorted(self._parts)]
        return {name: torch.cat([table[name] for table in tables]) for name in tables[0]}

    def add(self, weight: float, where: slice, batch: list[Tensor], mean: Tensor, target: Tensor | None) -> None:
        """Count draws of the positions at `where`; `weight` is their share, `mean` the map that they scatter about."""
        self._first = where.start or 0
        first = None
        held = mean.expand(mean.shape[0], batch[0].shape[-1])
        for name, z in zip(["", *self.partners], batch, strict=True):
            z = z.permute(2, 0, 1).contiguous()  # sums over few classes are slow where classes are neighbours
            top = z.amax(0)
            p = (z - top).exp_()
            whole = p.sum(0)
            p /= whole
            partition = top + whole.log_()
            loss = partition
            if target is not None:
                place = target.clamp(min=0)
                loss = loss - z.gather(0, place.unsqueeze(0))[0] + held.gather(1, place.T).T
                target = target.roll(1, 0)  # a partner is another sample: it has another target
            if first is None:
                first = (p, loss)
                self._sum("p", weight * p.mean(1).T)
                self._sum("pp", weight * p.square().mean(1).T)
                self._sum("lse", weight * partition.mean(0).unsqueeze(-1))
                self._sum("l", weight * loss.mean(0))
                self._sum("ll", weight * loss.square().mean(0))
            else:
                self._sum("p" + name, (p * first[0]).mean(1).T)
                self._sum("l" + name, ((loss - loss.mean(0)) * (first[1] - first[1].mean(0))).mean(0))

    def _sum(self, name: str, value: Tensor) -> None:
        table = self._parts.setdefault(self._first, {})
        table[name] = table[name] + value if name in table else value

    def _levels(self, mean: Tensor, total: Tensor, shared: Callable[[str], Tensor]) -> tuple[Tensor, ...]:
        none = torch.zeros_like(total)
        if self.partners:
            parts = [torch.minimum(shared(name).clamp(min=0), total) for name in ("constant", "site", "sample")]
        elif self.only == "residual" or self.only is None:
            parts = [none, none, none]
        else:
            parts = [total if self.only in ("constant", name) else none for name in ("", "site", "sample")]
        return (*parts, total)

    def result(self, logits: State, lead: tuple[int, ...], alike: bool, sampled: slice) -> Softmax:
        """The moments in the shape of the logits' state."""
        sums = self.sums

        def settle(x: Tensor) -> Tensor:
            x = x if lead == () or len(x) == math.prod(lead) else x.mean(0, keepdim=True)
            return x.reshape(*lead, -1)

        def averaged(x: Tensor) -> Tensor:
            return settle(x.mean(-1, keepdim=True) if alike else x)

        mean = averaged(sums["p"])
        variance = (averaged(sums["pp"]) - mean.square()).clamp(min=0)
        found = self._levels(mean, variance, lambda name: averaged(sums["p" + name]) - mean.square())
        spread = (sums["ll"] - sums["l"].square()).clamp(min=0)
        loss = self._levels(sums["l"], spread, lambda name: sums["l" + name])
        a, site, sample, total = found
        only_site, only_sample = (site - a).clamp(min=0), (sample - a).clamp(min=0)
        rest = (total - a - only_site - only_sample).clamp(min=0)
        probability = State(logits.axes, mean, a, only_sample, only_site, rest, logits.width)
        levels = tuple(settle(x.unsqueeze(-1)) for x in loss)
        return Softmax(probability, settle(sums["lse"]), (levels[0], levels[1], levels[2], levels[3]), sampled)
