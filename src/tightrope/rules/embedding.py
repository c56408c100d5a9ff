"""Looking rows up in a table."""

from __future__ import annotations

from tightrope.roles import Role
from tightrope.rules.registry import Call, Gradients, rule
from tightrope.rules.state import DTYPE, State


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
    """Each row of the table receives the sum over its occurrences."""
    number, table = call.id(1, "weight"), call.state(1, "weight")
    assert number is not None and table is not None
    positions = call.axes[0].count(Role.SAMPLE) * call.axes[0].count(Role.SITE)
    per_row = positions / table.axes.shape[0]
    return {number: State.of(table.axes, 0.0, residual=per_row * upstream.second_moment.mean(), width=upstream.width)}
