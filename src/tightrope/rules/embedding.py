"""Looking rows up in a table."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tightrope.law import COMPONENTS
from tightrope.roles import Axes, Role
from tightrope.rules.registry import Call, Gradients, rule
from tightrope.rules.state import DTYPE, State

PAIRS = 1 << 24
"""Numbers of a table of occurrences (row, sample, site) that are worth their memory."""


@rule("embedding")
def embedding(call: Call) -> State:
    """Rows of a known table at known indices have known content; otherwise each row is a draw of the table's law."""
    table, indices = call.state(1, "weight"), call.content(0, "input")
    assert table is not None
    if table.exact and indices is not None and not indices.is_meta:
        rows = table.mean.expand(table.shape)[indices.to("cpu").reshape(-1)]
        return State.of_content(call.axes[0], rows.reshape(*indices.shape, -1))
    spread = table.variance.mean() + (table.mean - table.mean.mean()).square().mean()
    same = 0.0  # how often two positions hold the same index
    if indices is not None and not indices.is_meta:
        counts = indices.reshape(-1).bincount().to(dtype=DTYPE)
        same = float((counts / counts.sum()).square().sum())
    return State.of(call.axes[0], table.mean.mean(), constant=same * spread, residual=(1 - same) * spread)


@embedding.gradient
def _(call: Call, upstream: State) -> Gradients:
    """Each row of the table receives the sum over its occurrences, which share what their positions share."""
    number, table = call.id(1, "weight"), call.state(1, "weight")
    assert number is not None and table is not None
    rows, indices = table.axes.shape[0], call.content(0, "input")
    positions = call.axes[0].count(Role.SAMPLE) * call.axes[0].count(Role.SITE)
    energy: Tensor | None = None
    if indices is not None and not indices.is_meta:
        skipped = call.argument(2, "padding_idx")
        energy = _by_row(indices.to("cpu"), upstream, call.axes[0], None if skipped is None else int(skipped) % rows)
    if energy is None:  # each position holds any row
        energy = positions / rows * upstream.second_moment.mean()
        return {number: State.of(table.axes, 0.0, residual=energy, width=upstream.width)}
    found = torch.zeros(rows, 1, dtype=DTYPE)
    found[: len(energy), 0] = energy
    return {number: State.of(table.axes, 0.0, residual=found, width=upstream.width)}


def _by_row(indices: Tensor, upstream: State, axes: Axes, skipped: int | None) -> Tensor | None:
    """Energy of the sum over a row's occurrences, a mean over channels, for each row up to the largest index.

    With n(b, s) occurrences of the row: E (sum n g)^2 = (sum n m)^2 + (sum n sqrt(constant))^2 + sum_b (sum_s n
    sqrt(sample))^2 + sum_s (sum_b n)^2 site + sum n residual.

    Returns:
        None where the occurrences would fill too large a table.
    """
    held, place = indices.reshape(-1).unique(return_inverse=True)
    layout = [axis for dim in axes.dims[:-1] for axis in dim]
    samples = math.prod(axis.size for axis in layout if axis.role is Role.SAMPLE)
    sites = math.prod(axis.size for axis in layout if axis.role is not Role.SAMPLE)
    if len(held) * samples * sites > PAIRS or samples * sites != indices.numel():
        return None
    order = torch.arange(indices.numel()).reshape([axis.size for axis in layout] or [1])
    first = [i for i, axis in enumerate(layout) if axis.role is Role.SAMPLE]
    order = order.permute([*first, *(i for i in range(len(layout)) if i not in first)]).reshape(-1) if layout else order
    counts = torch.zeros(len(held), samples * sites, dtype=DTYPE)
    counts[place[order.reshape(-1)], torch.arange(samples * sites)] = 1.0
    counts = counts.reshape(len(held), samples, sites)
    mean = upstream.mean.expand(upstream.shape).reshape(sites, -1)
    constant, sample, site, residual = (
        getattr(upstream, n).expand(upstream.shape).reshape(sites, -1).mean(-1) for n in COMPONENTS
    )
    total = counts.sum(1)
    energy = ((total @ (mean @ mean.T / mean.shape[1])) * total).sum(-1)
    energy = energy + (total @ _root(constant)).square() * constant.mean().sign()
    energy = energy + ((counts @ _root(sample)).square() * sample.mean().sign()).sum(-1)
    energy = (energy + total.square() @ site + total @ residual).clamp(min=0)
    if skipped is not None:
        energy = torch.where(held == skipped, 0.0, energy)
    found = torch.zeros(int(held[-1]) + 1, dtype=DTYPE)
    found[held] = energy
    return found


def _root(field: Tensor) -> Tensor:
    return field.abs().sqrt()
