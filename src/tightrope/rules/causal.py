"""Causal attention where positions differ in how many keys they see and in little else.

A row that sees n keys of one law gives each the weight 1 / n on average, whatever its scores, and E[A^2] = share / n.
Products with such a triangle of weights are cumulative sums: no map over (query, key) is made, so that long contexts
cost as much as their length. The first positions average few values and are louder than the last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from tightrope.rules.expectation import legendre
from tightrope.rules.state import DTYPE, State

KNOTS = 10
"""Lengths of rows for which the participation is computed; between them it is interpolated over ln(length)."""
FINE, STEP = 80, 0.1
"""Nodes for a standard deviation of the scores, and step over ln t, of the participation's integral."""
UNEVEN = 0.5
"""Most that the variance of scores may vary between keys, a standard deviation: shares are then 6 % too small."""


@dataclass(frozen=True)
class Causal:
    """Weights of causal rows, all of shape (query, 1).

    Attributes:
        mean: E[A_ij] = 1 / n for each key that the row sees.
        second: E[A_ij^2] before dropout.
        kept: 1 / (1 - p) of the dropout on weights.
        tilt: what rows gain because keys and values are maps of the same tokens, in units of the values' variance.
        scale: of the scores.
    """

    mean: Tensor
    second: Tensor
    kept: float
    tilt: Tensor
    scale: float

    @property
    def over(self) -> Tensor:
        """Var(A_ij), dropout included."""
        return (self.kept * self.second - self.mean.square()).clamp(min=0)

    def output(self, v: State) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Mean and components of A v, in order."""
        free, n = self._along(v.residual), len(self.mean)
        mean = v.mean
        held = mean.square() + v.constant + v.sample
        spread = self.kept * self.second * free.cumsum(-2) + self.over * self._along(v.site).cumsum(-2)
        spread = spread + (self.kept - 1) * self.second / self.mean * held
        spread = spread + self.tilt * free.mean(-2, keepdim=True)
        # Rows weigh the same values, so that what they average is in part the same for all of them.
        common = torch.minimum(self._average(_back(self.mean) / n * free), spread)
        site = self.mean.square() * self._along(v.site).cumsum(-2)
        return mean, self._average(v.constant), self._average(v.sample) + common, site, spread - common

    def gradients(self, q: State, k: State, v: State, upstream: State) -> tuple[State, State, State]:
        """Gradients of queries, keys and values."""
        g, second = upstream.map(self._along), self.kept * self.second
        alone = _back(second * (g.residual + g.site + g.constant)) + _back(self.over * g.mean.square())
        shared = _back(self.mean * g.sample.clamp(min=0).sqrt()).square()
        # Two keys share the queries after the later one: (T, 1) averages of sum_{i >= max(k, l)} w_i^2 g_i over l.
        both = _back(self.mean.square() * (g.residual + g.constant))
        common = torch.minimum((both / self.mean + _back(both) - both) / len(self.mean), alone)
        none = g.mean[..., :1, :1] * 0
        value = State(v.axes, _back(self.mean * g.mean), none, shared + common, none, alone - common)
        moment, width = g.second_moment, v.axes.shape[-1]
        free, key = v.residual + v.site, k.residual + k.site
        if free.shape[-2] == 1:
            asks, free = (moment * free).mean(-1, keepdim=True) * width, torch.ones_like(free[..., :1])
        else:
            asks, free = moment.mean(-1, keepdim=True) * width, free.mean(-1, keepdim=True)
        # d score_j = A_j (g v_j - sum_l A_l g v_l), of variance A_j^2 (1 - 2 A_j + sum_l A_l^2).
        own = self.scale**2 * asks * second * (1 - 2 * self.mean + self.second / self.mean).clamp(min=0)
        query = own * self._along(free * key).cumsum(-2)
        back = free * _back(own * q.second_moment)
        return State.of(q.axes, 0.0, residual=query), State.of(k.axes, 0.0, residual=back), value

    def _along(self, field: Tensor) -> Tensor:
        return field.expand(*field.shape[:-2], len(self.mean), field.shape[-1])

    def _average(self, field: Tensor) -> Tensor:
        """Average over the keys that each row sees."""
        return field if field.shape[-2] == 1 else self.mean * field.cumsum(-2)


def causal(q: State, k: State, v: State, scale: float, drop: float, channels: int) -> Causal | None:
    """The weights of causal rows; None where keys differ by more than chance.

    Args:
        q, k, v: operands, (..., position, channel), as many queries as keys.
        scale: of the scores.
        drop: probability of dropout on weights.
        channels: of a token, over all heads.
    """
    if any(s.mean.shape[-2] > 1 for s in (q, k, v)):
        return None
    length, width = q.axes.shape[-2:]
    n = torch.arange(1, length + 1, dtype=DTYPE).unsqueeze(-1)
    free, asks = k.residual + k.site, q.second_moment
    scores = scale**2 * (asks * free).mean(-1, keepdim=True) * width
    if free.shape[-2] > 1 and float((free / free.mean()).std()) * float(scores.mean()) > UNEVEN:
        return None
    free = free.expand(*free.shape[:-2], length, free.shape[-1]).cumsum(-2) / n
    variance = scale**2 * (asks * free).mean(-1, keepdim=True) * width
    variance = variance.reshape(-1, length, 1).mean(0)
    share = _participation(n, variance)
    tilt = variance * (1 - share).square() / max(channels, 1)
    return Causal(1 / n, share / n, 1 / (1 - drop), tilt, scale)


def _participation(n: Tensor, variance: Tensor) -> Tensor:
    """E[sum_j A_ij^2] of each row, (query, 1)."""
    length = len(n)
    if length == 1:
        return torch.ones_like(n)
    knots = tuple(sorted({round(math.exp(i * math.log(length) / (KNOTS - 1))) for i in range(KNOTS)}))
    found = variance[[m - 1 for m in knots]].squeeze(-1)
    # Three digits of the variance decide two thousandths of the share, and layers that are nearly equal meet.
    low, high = (float(f"{float(end):.3g}") for end in (found.min(), found.max()))
    at, values = torch.tensor(knots, dtype=DTYPE).log(), _ratios(knots, low).log()
    if high > low:
        values = values + (found - low) / (high - low) * (_ratios(knots, high).log() - values)
    x = n.squeeze(-1).log()
    right = torch.searchsorted(at, x).clamp(1, len(at) - 1)
    part = (x - at[right - 1]) / (at[right] - at[right - 1])
    return (values[right - 1] + part * (values[right] - values[right - 1])).exp().unsqueeze(-1) / n


@lru_cache(maxsize=512)
def _ratios(lengths: tuple[int, ...], variance: float) -> Tensor:
    """n E[sum_j A_j^2] for rows of n independent scores, for several n at once: as `participation`, on one grid."""
    n, std = torch.tensor(lengths, dtype=DTYPE), max(variance, 0.0) ** 0.5
    if std < 1e-6:
        return torch.ones_like(n)
    x, w = legendre(min(max(96, math.ceil(FINE * std)), 768))
    s, weight = 8.5 * std * x, w * torch.exp(-(8.5 * x).square() / 2)
    weight = weight / weight.sum()
    low, high = -math.log(max(lengths)) - 8.5 * std - 12.0, 8.5 * std + 5.0
    grid = torch.linspace(low, high, math.ceil((high - low) / STEP), dtype=DTYPE)
    inner = torch.exp(grid.unsqueeze(1) + s)
    falling = torch.exp(-inner)
    alone, pair = (falling @ weight).clamp(min=1e-300), falling @ (weight * torch.exp(2 * s))
    power = torch.exp((n - 1).unsqueeze(1) * alone.log())
    share = n * torch.trapezoid(torch.exp(2 * grid) * pair * power, grid)
    return n * torch.minimum(torch.maximum(share, 1 / n), torch.ones_like(n))


def _back(field: Tensor) -> Tensor:
    """Sums over this and all later rows: what arrives at a key."""
    return field.flip(-2).cumsum(-2).flip(-2)


__all__ = ["Causal", "causal"]
