"""Reductions: sums and means over dimensions."""

from __future__ import annotations

from tightrope.rules.elementwise import summed
from tightrope.rules.registry import Call, Gradients, rule
from tightrope.rules.state import State, state_shape


@rule("sum", "mean")
def reduction(call: Call) -> State:
    """A sum or mean over dimensions: what is shared adds up coherently, the rest in variance."""
    x = call.input
    over = _dims(call)
    full = x.map(lambda f: f.expand(x.shape))
    count = 1
    for dim in over:
        count *= x.axes.shape[dim]
    lone = call.axes[0]
    kept = len(lone.dims) == len(x.axes.dims)
    made = summed(full, x.axes, over, lone) if not kept else summed(full, x.axes, over, x.axes).map(lambda f: f, lone)
    if not kept and lone.dims:
        made = made.map(lambda f: f.reshape(state_shape(lone)), lone)
    return made.scaled(1.0 / count) if call.entry.op == "mean" else made


@reduction.gradient
def _(call: Call, upstream: State) -> Gradients:
    x, number = call.input, call.id(0, "input")
    assert number is not None
    over = _dims(call)
    count = 1
    for dim in over:
        count *= x.axes.shape[dim]
    keep = [1 if d in over else s for d, s in enumerate(x.shape)]
    spread = upstream.map(lambda f: f.reshape([1] * len(keep)) if f.numel() == 1 else f.reshape(keep), x.axes)
    return {number: spread.scaled(1.0 / count) if call.entry.op == "mean" else spread}


def _dims(call: Call) -> list[int]:
    rank = len(call.input.axes.dims)
    dim = call.argument(1, "dim", call.entry.kwargs.get("axis"))
    if dim is None or dim == () or dim == []:
        return list(range(rank))
    return sorted(d % rank for d in ([dim] if isinstance(dim, int) else dim))


