"""What checks ask of single tensors beyond their law: features of the data, rows of a softmax, sweet spots."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from tightrope.measure.laws import arrange
from tightrope.roles import Axes, Role
from tightrope.tape.tape import Entry, Ref

FEATURES = 1 << 16
"""Most features whose scales are kept one by one."""
ROWS = 512
"""Rows of a softmax that are looked at; the standard error of their mean logit spread is below 2 %."""
PEAK = 0.99
"""Weight of one key from which on a row passes less than a twenty-fifth of the largest gradient, w (1 - w) of 1/4."""
SLOPE = 0.1
"""The sweet spot of a function: where its slope is at least this share of the largest slope."""


@dataclass(frozen=True)
class Features:
    """The features of a tensor that depends on data alone.

    Attributes:
        mean, std: of each feature over samples and sites; shape (features,).
        zero: share of elements that are exactly zero.
        whole: share of elements that are whole numbers.
        values: number of elements behind each feature.
    """

    mean: Tensor = field(repr=False)
    std: Tensor = field(repr=False)
    zero: float
    whole: float
    values: int


@dataclass(frozen=True)
class Rows:
    """The rows of a softmax, on average.

    Attributes:
        keys: number of positions that are not masked.
        logit_std: standard deviation of the logits within a row.
        entropy: of the row, as a share of the largest possible, ln(keys).
        effective: effective number of keys, 1 / sum of the squared weights.
        sharp: share of the rows in which one key has more than `PEAK` of the weight.
    """

    keys: float
    logit_std: float
    entropy: float
    effective: float = math.nan
    sharp: float = 0.0


@dataclass(frozen=True)
class SweetSpot:
    """Between which inputs, and which outputs, a saturating function keeps a tenth of its largest slope."""

    low: float
    high: float
    low_output: float
    high_output: float


def features(x: Tensor, axes: Axes) -> Features | None:
    """Scale of every feature; None when there are too many features or a non-finite number."""
    if axes.count(Role.CHANNEL) > FEATURES:
        return None
    table = arrange(x, axes).double()
    spread, mean = torch.var_mean(table, (0, 1), correction=0)
    if not bool(torch.isfinite(spread).all()):
        return None
    whole = float((table == table.round()).double().mean())
    return Features(mean, spread.sqrt(), float((table == 0).double().mean()), whole, table.shape[0] * table.shape[1])


def softmax_rows(p: Tensor, dim: int) -> Rows | None:
    """Rows of a softmax's result: ln p is the logit up to a constant of the row."""
    rows = p.movedim(dim, -1).reshape(-1, p.shape[dim])
    return _rows(_some(rows).double())


def attention_rows(q: Tensor, k: Tensor, scale: float, mask: Tensor | None, causal: bool) -> Rows | None:
    """Rows of the softmax inside a fused attention, on a sample of the queries.

    Args:
        q, k: (..., queries, d) and (..., keys, d).
        scale: what multiplies q k^T.
        mask: boolean (True takes part) or added to the logits; broadcasts to (..., queries, keys).
        causal: whether query i sees keys 0 ... i.
    """
    if k.shape[:-2] != q.shape[:-2]:  # grouped queries: each key head serves several
        if k.shape[:-3] != q.shape[:-3] or q.shape[-3] % k.shape[-3]:
            return None
        k = k.repeat_interleave(q.shape[-3] // k.shape[-3], -3)
    queries, keys = q.shape[-2], k.shape[-2]
    step = max(1, queries // 16)
    chosen = torch.arange(step - 1, queries, step, device=q.device)
    lead = q.reshape(-1, queries, q.shape[-1]).shape[0]
    some = torch.arange(0, lead, max(1, lead * len(chosen) // ROWS), device=q.device)
    picked = q.reshape(-1, queries, q.shape[-1])[some][:, chosen].double()
    logits = scale * picked @ k.reshape(-1, keys, k.shape[-1])[some].double().transpose(-1, -2)
    if mask is not None:
        whole = mask.expand(*q.shape[:-2], queries, keys).reshape(-1, queries, keys)[some][:, chosen]
        logits = logits.masked_fill(~whole, -math.inf) if whole.dtype == torch.bool else logits + whole.double()
    if causal:
        logits = logits.masked_fill(torch.arange(keys, device=q.device) > chosen.unsqueeze(-1), -math.inf)
    return _rows(torch.softmax(logits, -1).reshape(-1, keys))


def _some(rows: Tensor) -> Tensor:
    return rows[:: max(1, rows.shape[0] // ROWS)]


def _rows(p: Tensor) -> Rows | None:
    """Averages over rows that have at least two positions."""
    inside = p > 0
    count = inside.sum(-1)
    kept = (count >= 2) & torch.isfinite(p).all(-1)
    if not bool(kept.any()):
        return None
    p, inside, count = p[kept], inside[kept], count[kept].double()
    log = torch.where(inside, p.clamp(min=1e-300).log(), torch.zeros_like(p))
    mean = log.sum(-1) / count
    spread = torch.where(inside, (log - mean.unsqueeze(-1)).square(), torch.zeros_like(p)).sum(-1) / count
    entropy = -(p * log).sum(-1) / count.log()
    effective, sharp = 1 / p.square().sum(-1), p.amax(-1) > PEAK
    return Rows(
        float(count.mean()), float(spread.mean().sqrt()), float(entropy.mean()), float(effective.mean()),
        float(sharp.double().mean()),
    )  # fmt: skip


def sweet_spot(entry: Entry) -> SweetSpot | None:
    """The sweet spot of an elementwise call; None for a function that does not saturate on both sides.

    The function itself is evaluated, with the options of the call, and its slope taken by autograd. A function
    that is flat on one side of zero (ReLU6) is no saturating one.
    """
    if len(entry.inputs) != 1 or len(entry.outputs) != 1 or entry.op not in _CANDIDATES:
        return None
    options = tuple(a for a in entry.args[1:] if isinstance(a, (int, float)))
    named = tuple(sorted((k, v) for k, v in entry.kwargs.items() if isinstance(v, (int, float)) and k != "inplace"))
    if len(options) + 1 < len(entry.args):
        return None
    return _spot(_Function(entry), (entry.op, options, named))


_CANDIDATES = frozenset(("tanh", "sigmoid", "softsign", "hardtanh", "hardsigmoid", "atan", "erf", "clamp"))


class _Function:
    """A call as a function of its tensor; equal to any other, so that the cache goes by the options."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Function)

    def __hash__(self) -> int:
        return 0

    def __call__(self, x: Tensor) -> Tensor:
        def fill(item: Any) -> Any:
            return x if isinstance(item, Ref) else item

        args, kwargs = tree_map(fill, (self.entry.args, dict(self.entry.kwargs)))
        if "inplace" in kwargs:
            kwargs["inplace"] = False
        function: Callable[..., Tensor] = self.entry.function
        return function(*args, **kwargs)


@lru_cache(maxsize=64)
def _spot(function: _Function, key: Any) -> SweetSpot | None:
    with torch.enable_grad():
        z = torch.linspace(-40, 40, 16001, dtype=torch.float64, requires_grad=True)
        y = function(z * 1.0)
        (slope,) = torch.autograd.grad(y.sum(), z)
    steep = (slope.abs() >= SLOPE * slope.abs().max()).nonzero().flatten()
    first, last = int(steep[0]), int(steep[-1])
    if first == 0 or last == len(z) - 1 or float(z[first]) >= -1e-9 or float(z[last]) <= 1e-9:
        return None
    edge = 1e-6 * float(y[last] - y[first])  # what lies on an end that is exactly flat is outside
    return SweetSpot(float(z[first]), float(z[last]), float(y[first]) + edge, float(y[last]) - edge)
