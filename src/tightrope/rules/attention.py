"""Scaled dot-product attention, fused: rows of softmax weights over keys, averages of values.

With queries q_i, keys k_j and values v_j of mean maps m and components as in `State`, the scores of a row vary by

    c^2 sum_d (m_q^2 + V_q) D_k + V_q (m_k - mean_j m_k)^2

where D leaves out what all keys of a sample share: it adds the same to a whole row, and softmax does not see it.
The output averages values: what they share survives whole, the rest by sum_j E[A_ij^2].

References:
    Vaswani et al. (2017), Attention is all you need; Kedia et al. (2024), Transformers get stable, ICML, whose
    formulas leave out the gradient's ways through queries and keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tightrope.roles import Role
from tightrope.rules.causal import Causal
from tightrope.rules.causal import causal as causal_rows
from tightrope.rules.registry import Call, Gradients, rule
from tightrope.rules.softmax import Rows, participation, rows
from tightrope.rules.state import State

BUCKETS = 12
"""Lengths of causal rows that stand for all of them where positions are alike."""


@dataclass(frozen=True)
class _Attention:
    """One call, its operands aligned, and the weights it predicts."""

    q: State
    k: State
    v: State
    scale: float
    drop: float
    weights: Rows | None  # maps over (query, key); None where positions are alike
    share: float  # E[sum_j A_ij^2], averaged over rows
    reach: float  # mean over keys of (sum_i E[A_ij])^2
    queries: int
    keys: int
    tilt: float = 0.0  # see `_tilt`, where positions are alike
    row_tilt: Tensor = field(default_factory=lambda: torch.zeros(()))  # and by row
    triangle: Causal | None = None  # causal rows over keys of one law


@rule("scaled_dot_product_attention")
def attention(call: Call) -> State:
    """softmax(c q k^T + mask) v."""
    a = _align(call)
    call.saved["attention"] = a
    v, kept = a.v, 1.0 / (1.0 - a.drop)
    free = v.residual + v.site
    if a.triangle is not None:
        return State(call.axes[0], *a.triangle.output(v), width=v.width)
    if a.weights is None:
        held = v.mean.square() + v.constant + v.sample
        common = min(a.reach / a.keys, a.share) * free
        rest = a.share * kept * free - common + (kept - 1) * a.share * held + a.tilt * free
        return State(call.axes[0], v.mean, v.constant, v.sample + common, v.mean * 0, rest, width=v.width)
    w, second = a.weights.mean, a.weights.second * kept
    full = _over_keys(v, a.keys)
    mean = w @ full.mean
    held = full.mean.square() + full.constant + full.sample
    spread = second @ full.residual + (second - w.square()).clamp(min=0) @ full.site
    spread = spread + _around(a.weights.variance, full.mean, mean) + (kept - 1) * a.weights.second @ held
    spread = spread + a.row_tilt * full.residual.mean(-2, keepdim=True)
    common = shared(w, full.residual, spread)
    held = (w @ full.sample.clamp(min=0).sqrt()).square()
    return State(
        call.axes[0], mean, w @ full.constant, held + common, w.square() @ full.site, spread - common,
        width=v.width,
    )  # fmt: skip


@attention.gradient
def _(call: Call, upstream: State) -> Gradients:
    """The ways through values, queries and keys."""
    a: _Attention = call.saved["attention"]
    if a.triangle is not None:
        made = a.triangle.gradients(a.q, a.k, a.v, upstream)
    else:
        made = _map_gradients(a, upstream) if a.weights is not None else _alike_gradients(a, upstream)
    found: Gradients = {}
    for position, (name, gradient) in enumerate(zip(("query", "key", "value"), made, strict=True)):
        number, target = call.id(position, name), call.state(position, name)
        assert number is not None and target is not None
        groups = a.q.axes.shape[-3] // target.axes.shape[-3] if len(target.axes.dims) > 2 and position else 1
        state = replace(_ungrouped(gradient, groups), axes=target.axes, width=upstream.width)
        found[number] = state if number not in found else found[number].plus(state)
    return found


def _align(call: Call) -> _Attention:
    q, k, v = (call.state(i, name) for i, name in enumerate(("query", "key", "value")))
    assert q is not None and k is not None and v is not None
    queries, width = q.axes.shape[-2:]
    keys = k.axes.shape[-2]
    if q.shape[-2] != queries or k.shape[-2] != keys:
        raise NotImplementedError("attention between samples")
    given = call.argument(6, "scale")
    scale = float(given) if given is not None else 1.0 / math.sqrt(width)
    drop = float(call.argument(4, "dropout_p", 0.0) or 0.0)
    groups = q.axes.shape[-3] // k.axes.shape[-3] if len(q.axes.dims) > 2 and len(k.axes.dims) > 2 else 1
    k, v = grouped(k, groups), grouped(v, groups)
    mask, causal = mask_of(call, queries, keys), bool(call.argument(5, "is_causal", False))
    if causal and mask is None and queries == keys:
        triangle = causal_rows(q, k, v, scale, drop, q.axes.count(Role.CHANNEL))
        if triangle is not None:
            return _Attention(q, k, v, scale, drop, None, 0.0, 0.0, queries, keys, triangle=triangle)
    alike = all(f.shape[-2] == 1 for s in (q, k, v) for f in s.fields) and mask is None
    if alike:
        lengths, shares = _lengths(queries, keys, causal)
        variance = row_variance(q, k, scale, width).mean()
        each = [participation(n, float(variance)) for n in lengths]
        share = sum(s * w for s, w in zip(each, shares, strict=True))
        reach = _reach(queries, keys, causal)
        tilt = float(variance) * (1 - share) ** 2 / max(q.axes.count(Role.CHANNEL), 1)
        return _Attention(q, k, v, scale, drop, None, share, reach, queries, keys, tilt)
    full_q = q.map(lambda f: f.expand(*f.shape[:-1], width))
    full_k = _over_keys(k.map(lambda f: f.expand(*f.shape[:-1], width)), keys)
    mean = scale * full_q.mean @ full_k.mean.transpose(-1, -2)
    variance = row_variance(full_q, full_k, scale, width)
    if causal:
        ban = torch.ones(queries, keys, dtype=torch.bool).triu(1)
        mean = mean.expand(*mean.shape[:-2], queries, keys).masked_fill(ban, -math.inf)
    weights = _masked_rows(mean, variance, mask, queries, keys)
    by_row = _tilt(variance, weights, q.axes.count(Role.CHANNEL))
    return _Attention(full_q, full_k, v, scale, drop, weights, 0.0, 0.0, queries, keys, row_tilt=by_row)


def pair_covariance(weight: Tensor, residual: Tensor) -> Tensor:
    """Covariance of each row of averages with the others, on average: rows weigh the same things.

    Args:
        weight: (row, key).
        residual: R, (key, channel), what keys do not share; rows i and k have the covariance sum_j w_ij w_kj R_j.
    """
    rows = weight.shape[-2]
    whole = weight @ (weight.sum(-2).unsqueeze(-1) * residual)
    return ((whole - weight.square() @ residual) / max(rows - 1, 1)).clamp(min=0)


def shared(weight: Tensor, residual: Tensor, spread: Tensor) -> Tensor:
    """u_i^2 of the form u_i u_k, which a component shared by all sites has, whose rows have the covariances' means.

    Args:
        weight, residual: as for `pair_covariance`.
        spread: (row, channel) variance of the averages, which bounds the result.
    """
    others = pair_covariance(weight, residual)
    return torch.minimum(others.square() / others.mean(-2, keepdim=True).clamp(min=1e-300), spread)


def _tilt(variance: Tensor, weights: Rows, channels: int) -> Tensor:
    """What rows add to the output because keys and values are maps of the same tokens.

    A row weighs a token more the better its key fits, and with the key comes its value: to first order the output
    moves by c Cov(v, k) q, whose energy is the scores' variance over the number of channels that tokens have.
    """
    share = weights.second.sum(-1, keepdim=True).clamp(max=1.0)
    return (variance * weights.mean).sum(-1, keepdim=True) * (1 - share).square() / max(channels, 1)


def row_variance(q: State, k: State, scale: float, width: int) -> Tensor:
    """Variance of the scores within a row, (query, key)."""
    free = k.residual + k.site
    off = k.mean - k.mean.mean(-2, keepdim=True)
    parts = q.second_moment.expand(*q.second_moment.shape[:-1], width) @ _last(free, width).transpose(-1, -2)
    if bool((off != 0).any()):
        parts = parts + _last(q.variance, width) @ _last(off.square(), width).transpose(-1, -2)
    return scale**2 * parts


def _last(field: Tensor, width: int) -> Tensor:
    return field.expand(*field.shape[:-1], width)


def _masked_rows(mean: Tensor, variance: Tensor, mask: Tensor | None, queries: int, keys: int) -> Rows:
    """Moments of the weights, averaged over samples where the mask differs between them."""
    mean = mean.expand(*mean.shape[:-2], queries, keys)
    if mask is None:
        return rows(mean, variance)
    samples = mask.shape[0] if mask.ndim == mean.ndim else 1
    picked = range(0, samples, max(samples // 8, 1))
    found = []
    for n in picked:
        one = mask[n : n + 1] if mask.ndim == mean.ndim else mask
        found.append(rows(mean + one, variance))
    parts = zip(*((r.mean, r.second, r.slope) for r in found), strict=True)
    return Rows(*(sum(each, torch.zeros(())) / len(found) for each in parts))


def mask_of(call: Call, queries: int, keys: int) -> Tensor | None:
    """The mask as numbers to add to the scores."""
    if call.argument(3, "attn_mask") is None:
        return None
    content = call.content(3, "attn_mask")
    if content is None or content.is_meta:
        state = call.state(3, "attn_mask")
        if state is None:
            raise NotImplementedError("a mask whose content is not known")
        return state.mean
    if content.dtype == torch.bool:
        return torch.zeros(content.shape, dtype=torch.float64).masked_fill(~content.cpu(), -math.inf)
    return content.detach().cpu().double()


def _lengths(queries: int, keys: int, causal: bool) -> tuple[list[int], list[float]]:
    """Lengths of the rows that stand for all, and their shares."""
    if not causal:
        return [keys], [1.0]
    edges = torch.linspace(0, queries, min(BUCKETS, queries) + 1)
    rows_at = [max(int((a + b) / 2) + 1, 1) for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]
    return [min(n + max(keys - queries, 0), keys) for n in rows_at], [1.0 / len(rows_at)] * len(rows_at)


def _reach(queries: int, keys: int, causal: bool) -> float:
    """Mean over keys of (sum_i A_ij)^2 for flat weights: what all queries' gradients share arrives with it."""
    if not causal or queries != keys:
        return (queries / keys) ** 2
    return 2.0 - sum(1.0 / n for n in range(1, keys + 1)) / keys


def grouped(state: State, groups: int) -> State:
    """Keys or values of grouped-query attention, repeated for the queries of their group."""
    if groups == 1:
        return state
    return state.map(lambda f: f if f.shape[-3] == 1 else f.repeat_interleave(groups, -3))


def _ungrouped(gradient: State, groups: int) -> State:
    """The gradient of a key or value that several queries share: the sum over its group."""
    if groups == 1:
        return gradient
    return gradient.map(lambda f: f.unflatten(-3, (-1, groups)).sum(-3) if f.shape[-3] > 1 else f * groups)


def _over_keys(state: State, keys: int) -> State:
    return state.map(lambda f: f.expand(*f.shape[:-2], keys, f.shape[-1]))


def _around(variance: Tensor, values: Tensor, centre: Tensor) -> Tensor:
    """sum_j Var(A_ij) (v_j - centre_i)^2, for values (key, channel) and centres (query, channel)."""
    return (
        variance @ values.square() - 2 * centre * (variance @ values) + centre.square() * variance.sum(-1, keepdim=True)
    ).clamp(min=0)


def _map_gradients(a: _Attention, upstream: State) -> tuple[State, State, State]:
    """Gradients of queries, keys and values where the weights are maps over (query, key)."""
    assert a.weights is not None
    kept, width = 1.0 / (1.0 - a.drop), a.v.axes.shape[-1]
    w, second = a.weights.mean, a.weights.second * kept
    g = upstream.map(lambda f: f.expand(*f.shape[:-2], a.queries, width))
    v = _over_keys(a.v.map(lambda f: _last(f, width)), a.keys)
    none, over, turned = g.mean[..., :1, :1] * 0, (second - w.square()).clamp(min=0), w.transpose(-1, -2)
    held = g.mean.square() + g.constant + g.sample
    alone = second.transpose(-1, -2) @ (g.residual + g.site) + (over.transpose(-1, -2) @ held).clamp(min=0)
    # The first keys of causal rows share much with few: the mean over pairs compounds less from layer to layer.
    common = torch.minimum(pair_covariance(turned, g.residual).mean(-2, keepdim=True), alone)
    lasting, sample = (
        f.sum(-2, keepdim=True).sign() * (turned @ f.abs().sqrt()).square() for f in (g.constant, g.sample)
    )
    value = State(a.v.axes, turned @ g.mean, lasting, sample + common, none, alone - common)
    moment, centre = g.second_moment, w @ v.mean
    off = moment @ v.mean.square().transpose(-1, -2) - 2 * (moment * centre) @ v.mean.transpose(-1, -2)
    off = (off + (moment * centre.square()).sum(-1, keepdim=True)).clamp(min=0)
    free = moment @ (v.residual + v.site).transpose(-1, -2)
    energy = kept * a.weights.slope * (free + off)
    if a.drop:
        held = v.mean.square() + v.constant + v.sample
        energy = energy + (kept - 1) * a.weights.slope * (moment @ held.transpose(-1, -2))
    loose = a.k.residual + a.k.site
    query = energy @ loose + _around(energy, a.k.mean, w @ a.k.mean)
    # Keys and values are maps of the same tokens: sum_j A_ij (g v_j) k_j has a mean, of the size of the output's tilt.
    even = (1 - a.weights.second.sum(-1, keepdim=True).clamp(max=1.0)).square() / max(a.q.axes.count(Role.CHANNEL), 1)
    query = query + even * (free * w).sum(-1, keepdim=True) * (w @ loose)
    asked = a.q.second_moment
    key = energy.transpose(-1, -2) @ asked.expand(*asked.shape[:-2], a.queries, asked.shape[-1])
    scale = a.scale**2
    return State.of(a.q.axes, 0.0, residual=scale * query), State.of(a.k.axes, 0.0, residual=scale * key), value


def _alike_gradients(a: _Attention, upstream: State) -> tuple[State, State, State]:
    """The same where all positions are alike."""
    kept, ratio = 1.0 / (1.0 - a.drop), a.queries / a.keys
    g, width, share = upstream, a.v.axes.shape[-1], a.share * kept
    alone, common = ratio * share * (g.residual + g.site), g.residual * 0
    if a.keys > 1:  # what two keys receive of one query
        common = torch.minimum(ratio * max(1 - a.share, 0.0) / (a.keys - 1) * g.residual, alone)
    value = State(
        a.v.axes, g.mean * ratio, g.constant * a.reach, g.sample * a.reach + common, g.mean * 0, alone - common
    )
    moment = (g.second_moment * (a.v.residual + a.v.site)).mean(-1, keepdim=True) * width
    energy = a.scale**2 * share * moment * max(1 - a.share, 0.0) ** 2
    tilt = a.scale**2 * moment * max(1 - a.share, 0.0) ** 2 / max(a.q.axes.count(Role.CHANNEL), 1)
    query, key = (energy + tilt) * (a.k.residual + a.k.site), energy * ratio * a.q.second_moment
    return State.of(a.q.axes, 0.0, residual=query), State.of(a.k.axes, 0.0, residual=key), value
