"""What happens inside each attention of a step: spread of the scores, number of keys attended to, largest score.

Given its query, the scores of a row are near Gaussian and independent between keys, of a variance that is proportional
to the query's energy; what all keys of a sample share leaves the softmax unmoved. Moments of rows are exact for their
real, finite length (`softmax_rows`) and averaged over the query's energy, over heads and over the lengths that a causal
or padding mask leaves. No field is ever made as large as (query, key) unless a mask or a map of means has that size.

Reference: Zhai et al., Stabilizing transformer training by preventing attention entropy collapse (2023), for what low
entropy does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tightrope.roles import Role
from tightrope.rules.attention import grouped, mask_of, row_variance
from tightrope.rules.expectation import legendre
from tightrope.rules.registry import Call
from tightrope.rules.softmax_rows import DEPTH, levels, row_moments
from tightrope.rules.state import DTYPE, State
from tightrope.tape.tape import Entry, Tape, softmax_dim

BUCKETS = 12
"""Buckets of query positions."""
HEADS, POSITIONS, SAMPLES = 4, 8, 4
"""Heads, positions of a bucket and samples of a mask that speak for all."""
ENERGIES = ((-math.sqrt(3.0), 1 / 6), (0.0, 2 / 3), (math.sqrt(3.0), 1 / 6))
"""Gauss-Hermite nodes and weights of the query's energy, in standard deviations of its logarithm."""
SPOTS = 256
"""Scores whose laws speak for all in the law of the largest."""
BETWEEN = frozenset(
    {"mul", "div", "add", "sub", "masked_fill", "where", "float", "to", "view", "reshape", "contiguous"}
)
"""Operations between a product of queries and keys and the softmax."""


@dataclass(frozen=True)
class Bucket:
    """Rows of neighbouring queries.

    Attributes:
        first, last: positions of the first and the last query.
        length: mean number of keys that a row sees.
        logit_std, participation, entropy: as in `AttentionLaw`.
    """

    first: int
    last: int
    length: float
    logit_std: float
    participation: float
    entropy: float


@dataclass(frozen=True)
class AttentionLaw:
    """The law inside one attention.

    Attributes:
        module: path of the module that calls it.
        index: of the entry on the tape (the fused call, or the softmax).
        length: mean number of keys that a row sees.
        logit_std: root of the mean variance of the scores within a row, before the softmax, masked ones left out.
        participation: E sum_j A_ij^2, averaged over rows; one over it is the number of keys attended to.
        entropy: of a row, in nats, averaged over rows.
        max_logit: expected largest absolute score of the whole step.
        buckets: the same by the query's position; one bucket where all positions are alike.
    """

    module: str
    index: int
    length: float
    logit_std: float
    participation: float
    entropy: float
    max_logit: float
    buckets: tuple[Bucket, ...]


@dataclass(frozen=True)
class _Scores:
    """Scores of one attention, before the mask: fields broadcast to (head, query, key).

    Attributes:
        mean, variance: within a row.
        total: variance of a score over all samples and rows.
        energy: variance of the logarithm of a row's variance, from query to query.
        mask: (sample, 1 or head, 1 or query, key) to add, or None.
        rows: number of rows of one query position: samples times heads.
    """

    mean: Tensor
    variance: Tensor
    total: Tensor
    energy: float
    mask: Tensor | None
    causal: bool
    queries: int
    keys: int
    rows: int

    @property
    def alike(self) -> bool:
        """Whether rows differ in nothing but their length."""
        flat = self.mean.shape[-2:] == (1, 1) and self.variance.shape[-2:] == (1, 1)
        return flat and self.mask is None


def attention_laws(tape: Tape, states: Mapping[int, State]) -> tuple[AttentionLaw, ...]:
    """The law of every attention on a tape, fused or written out, in the order of the tape.

    Args:
        tape: the step.
        states: predicted laws by value, as in `Forecast.states`; an attention whose operands have none is left out.
    """
    found = []
    with torch.no_grad():
        for entry in tape.entries:
            scores = _scores(tape, states, entry)
            if scores is not None and (buckets := tuple(_alike(scores) if scores.alike else _resolved(scores))):
                found.append(_law(entry, scores, buckets))
    return tuple(found)


# -- scores --------------------------------------------------------------------------------------


def _scores(tape: Tape, states: Mapping[int, State], entry: Entry) -> _Scores | None:
    if entry.op not in ("scaled_dot_product_attention", "softmax") or entry.outputs[0] not in states:
        return None
    if any(n not in states for n in entry.inputs if tape.values[n].is_float):
        return None
    call = Call(tape, entry, dict(states), [states[entry.outputs[0]].axes])
    return _fused(call) if entry.op == "scaled_dot_product_attention" else _written(call)


def _fused(call: Call) -> _Scores | None:
    q, k = call.state(0, "query"), call.state(1, "key")
    if q is None or k is None or q.shape[-2] != q.axes.shape[-2] or k.shape[-2] != k.axes.shape[-2]:
        return None
    (queries, width), keys = q.axes.shape[-2:], k.axes.shape[-2]
    if len(q.axes.dims) > 2:
        k = grouped(k, q.axes.shape[-3] // k.axes.shape[-3])
    given = call.argument(6, "scale")
    scale = float(given) if given is not None else 1.0 / math.sqrt(width)
    q, k = (s.map(lambda f: f.expand(*f.shape[:-1], width)) for s in (q, k))
    mean = scale * q.mean @ k.mean.transpose(-1, -2)
    total = scale**2 * q.second_moment @ k.second_moment.transpose(-1, -2) - mean.square()
    try:
        mask = mask_of(call, queries, keys)
    except NotImplementedError:
        return None
    rows = math.prod(q.axes.shape[:-2])
    return _Scores(
        _heads(mean), _heads(row_variance(q, k, scale, width)), _heads(total.clamp(min=0)), _energy(q, k),
        None if mask is None else _four(mask), bool(call.argument(5, "is_causal", False)), queries, keys, rows,
    )  # fmt: skip


def _written(call: Call) -> _Scores | None:
    """A softmax along positions."""
    x, rank = call.input, len(call.input.axes.dims)
    dim = softmax_dim(call.argument(1, "dim", -1), rank)
    if dim != rank - 1 or rank < 3 or not x.axes.has(dim, Role.SITE) or x.shape[-2:] != x.axes.shape[-2:]:
        return None
    queries, keys = x.axes.shape[-2:]
    energy = 0.0
    product = _product(call)
    if product is not None:
        left, right = (call.states[n] for n in product.inputs[-2:])
        energy = _energy(left, right.map(lambda f: f.transpose(-1, -2)))
    return _Scores(
        _heads(x.mean), _heads(x.residual + x.site), _heads(x.variance), energy, None, False, queries, keys,
        math.prod(x.axes.shape[:-2]),
    )  # fmt: skip


def _product(call: Call) -> Entry | None:
    """The product of queries and keys behind a softmax, if nothing but scales, biases and masks came between."""
    number = call.entry.inputs[0]
    while (entry := call.tape.makers.get(number)) is not None:
        if entry.op in ("matmul", "bmm", "baddbmm"):
            known = all(n in call.states and not call.states[n].exact for n in entry.inputs[-2:])
            return entry if known and len(entry.inputs) >= 2 else None
        random = [n for n in entry.inputs if n in call.states and not call.states[n].exact]
        if entry.op not in BETWEEN or not random:
            return None
        number = random[0]
    return None


def _heads(field: Tensor) -> Tensor:
    """(head, query, key)."""
    return field.reshape(-1, *field.shape[-2:])


def _four(mask: Tensor) -> Tensor:
    return mask.reshape(*(1,) * (4 - mask.ndim), *mask.shape) if mask.ndim < 4 else mask


def _energy(q: State, k: State) -> float:
    """Variance of ln sum_d q_d^2 D_d over queries, D_d the variance of the keys' channel d."""
    width = q.axes.shape[-1]
    mean, variance = (f.expand(*f.shape[:-1], width) for f in (q.mean, q.variance))
    free = (k.residual + k.site).mean(-2, keepdim=True)
    free = free.expand(*free.shape[:-1], width)
    centre = (free * (mean.square() + variance)).sum(-1)
    spread = (free.square() * (2 * variance.square() + 4 * mean.square() * variance)).sum(-1)
    share = float((spread / centre.square().clamp(min=1e-300)).mean())
    return math.log1p(share)


# -- rows ----------------------------------------------------------------------------------------


def _law(entry: Entry, scores: _Scores, buckets: tuple[Bucket, ...]) -> AttentionLaw:
    weights = [b.last - b.first + 1 for b in buckets]

    def average(name: str, power: int = 1) -> float:
        total = sum(w * float(getattr(b, name)) ** power for w, b in zip(weights, buckets, strict=True))
        return math.pow(total / sum(weights), 1 / power)

    length = average("length")
    return AttentionLaw(
        entry.module, entry.index, length, average("logit_std", 2), average("participation"), average("entropy"),
        _largest(scores, length / scores.keys), buckets,
    )  # fmt: skip


def _edges(queries: int) -> Iterator[tuple[int, int]]:
    """First and last position of each bucket."""
    count = min(BUCKETS, queries)
    for i in range(count):
        yield i * queries // count, (i + 1) * queries // count - 1


def _over_energies(counts: Tensor, variance: float, energy: float) -> tuple[Tensor, Tensor]:
    """Participation and entropy of rows, averaged over a log-normal variance."""
    participation, entropy = torch.zeros(len(counts), dtype=DTYPE), torch.zeros(len(counts), dtype=DTYPE)
    spread = math.sqrt(energy)
    for node, weight in ENERGIES if spread > 0.01 else ((0.0, 1.0),):
        found = row_moments(counts, math.sqrt(variance * math.exp(spread * node - energy / 2)))
        participation, entropy = participation + weight * found.participation, entropy + weight * found.entropy
    return participation, entropy


def _alike(scores: _Scores) -> Iterator[Bucket]:
    """Buckets of rows that differ in their length alone; one where they do not even in that."""
    variance = float(scores.variance.mean())
    for first, last in _edges(scores.queries) if scores.causal else [(0, scores.queries - 1)]:
        lengths, weights = _lengths(scores, first, last)
        participation, entropy = _over_energies(lengths.unsqueeze(1), variance, scores.energy)
        inner = variance * float(((1 - 1 / lengths) * weights).sum())
        yield Bucket(
            first, last, float((lengths * weights).sum()), math.sqrt(max(inner, 0.0)),
            float((participation * weights).sum()), float((entropy * weights).sum()),
        )  # fmt: skip


def _lengths(scores: _Scores, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Lengths of rows whose weighted mean is that over a bucket: each, or Gauss-Legendre nodes of their logarithm."""
    if not scores.causal:
        return torch.tensor([float(scores.keys)], dtype=DTYPE), torch.ones(1, dtype=DTYPE)
    if last - first < 16:
        all_of_them = torch.arange(first + 1, last + 2, dtype=DTYPE).clamp(max=scores.keys)
        return all_of_them, torch.full_like(all_of_them, 1 / len(all_of_them))
    nodes, weights = legendre(16)
    begin = first + 0.5
    head = torch.zeros(0, dtype=DTYPE)
    if first == 0:  # the first rows one by one: there the number of keys is small
        head, begin = torch.arange(1.0, 9.0, dtype=DTYPE), 8.5
    low, high = math.log(begin), math.log(last + 1.5)
    lengths = torch.exp(low + (high - low) * (nodes + 1) / 2)
    shares = weights * lengths * (high - low) / 2
    shares = shares * (last + 1.5 - begin) / shares.sum()
    whole = torch.cat([torch.ones_like(head), shares])
    return torch.cat([head, lengths]).clamp(max=scores.keys), whole / whole.sum()


def _resolved(scores: _Scores) -> Iterator[Bucket]:
    """Buckets of rows whose mean scores, variances or masks differ."""
    for first, last in _edges(scores.queries):
        span = torch.linspace(first, last, min(POSITIONS, last - first + 1)).round().long()
        mean, variance = _bucket_rows(scores, span)
        top = mean.amax(-1, keepdim=True)
        inside = (mean > top - DEPTH) & torch.isfinite(mean)
        seen = inside.any(-1)
        if not bool(seen.any()):
            continue
        mean, variance, inside = mean[seen], variance[seen], inside[seen]
        length = inside.sum(-1).to(DTYPE)
        own = torch.where(inside, variance, variance.new_zeros(())).sum(-1) / length
        level = torch.where(inside, mean, mean.new_zeros(()))
        off = torch.where(inside, level - (level.sum(-1) / length).unsqueeze(-1), mean.new_zeros(()))
        typical = float(own.mean())
        uneven = float(own.var(unbiased=False)) / max(typical, 1e-300) ** 2
        participation, entropy = _over_energies(levels(mean), typical, scores.energy + math.log1p(uneven))
        inner = own * (1 - 1 / length) + off.square().sum(-1) / length
        yield Bucket(
            first, last, float(length.mean()), math.sqrt(float(inner.mean())), float(participation.mean()),
            float(entropy.mean()),
        )  # fmt: skip


def _bucket_rows(scores: _Scores, span: Tensor) -> tuple[Tensor, Tensor]:
    """Means, -inf where masked, and variances of the scores of rows at some positions, (row, key)."""

    def picked(field: Tensor) -> Tensor:
        part = field[..., :: max(1, -(-field.shape[-3] // HEADS)), :, :]
        part = part[..., span, :] if part.shape[-2] > 1 else part.expand(*part.shape[:-2], len(span), part.shape[-1])
        return part.expand(*part.shape[:-1], scores.keys)

    mean, variance = picked(scores.mean), picked(scores.variance)
    if scores.mask is not None:
        mean = mean + picked(scores.mask[:: max(1, len(scores.mask) // SAMPLES)])
    if scores.causal:
        mean = mean.masked_fill(torch.arange(scores.keys) > span.unsqueeze(-1), -math.inf)
    mean, variance = torch.broadcast_tensors(mean, variance)
    return mean.reshape(-1, scores.keys), variance.reshape(-1, scores.keys)


# -- the largest ---------------------------------------------------------------------------------


def _largest(scores: _Scores, share: float) -> float:
    """E of the largest absolute score of all rows and open keys: int 1 - prod P(|s| < x) dx."""
    shape = torch.broadcast_shapes(scores.mean.shape, scores.total.shape)
    mean = scores.mean.expand(shape).reshape(-1)
    std = scores.total.expand(shape).reshape(-1).clamp(min=0).sqrt()
    opened = torch.isfinite(mean) & (mean > mean[torch.isfinite(mean)].max() - 1e4)
    mean, std = mean[opened], std[opened]
    step = max(1, len(mean) // SPOTS)
    mean, std = mean[::step], std[::step]
    count = scores.rows * scores.queries * scores.keys * min(share, 1.0) / len(mean)
    high = float((mean.abs() + std).max()) * 12 * math.exp(math.sqrt(scores.energy))
    if high <= 0:
        return 0.0
    x, weights = legendre(256)
    x, weights = (x + 1) * high / 2, weights * high / 2
    nodes, shares = _hermite()
    factor = torch.exp(0.5 * (math.sqrt(scores.energy) * nodes - scores.energy / 2))
    scaled = (std.unsqueeze(-1) * factor).clamp(min=1e-12).reshape(-1, 1, len(nodes))
    upper = torch.special.ndtr((x.unsqueeze(-1) - mean.reshape(-1, 1, 1)) / scaled)
    lower = torch.special.ndtr((-x.unsqueeze(-1) - mean.reshape(-1, 1, 1)) / scaled)
    outside = 1 - ((upper - lower) * shares).sum(-1)
    below = torch.exp(count * torch.log1p(-outside.clamp(max=1 - 1e-12)).sum(0))
    return float(((1 - below) * weights).sum())


def _hermite() -> tuple[Tensor, Tensor]:
    """Nodes and weights of a standard normal that reach its tails."""
    nodes, weights = legendre(33)
    nodes = 6 * nodes
    weights = weights * torch.exp(-nodes.square() / 2)
    return nodes, weights / weights.sum()


__all__ = ["AttentionLaw", "Bucket", "attention_laws"]
