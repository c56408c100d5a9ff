"""Operations that pick, repeat or reorder elements: the law is picked with them, the gradient put back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tightrope.roles import Axes, Role
from tightrope.rules.expectation import latent, product
from tightrope.rules.registry import Call, Gradients, rule
from tightrope.rules.state import DTYPE, TABLE, State, state_shape
from tightrope.tape.tape import Ref

Move = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Pick:
    """A selection of elements.

    Attributes:
        move: does it on a tensor with the state's dimensions.
        touched: dimensions of the input that it looks at; along the others a law may be collapsed.
        share: fraction of the samples that are kept, when it selects among them.
    """

    move: Move
    touched: frozenset[int]
    share: float = 1.0


def picked(x: State, pick: Pick, axes: Axes) -> State:
    """The law of the picked elements."""

    def move(field: Tensor) -> Tensor:
        sizes = [x.shape[d] if d in pick.touched else n for d, n in enumerate(field.shape)]
        return pick.move(field.expand(sizes))

    return x.map(move, axes)


def put_back(upstream: State, pick: Pick, axes: Axes) -> State:
    """The gradient before a selection: zero where nothing was picked; what was picked twice adds up."""
    inner = state_shape(axes)
    free = [d for d in range(len(inner)) if d not in pick.touched]
    small = [1 if d in free else n for d, n in enumerate(inner)]
    probe = pick.move(torch.zeros(small, dtype=DTYPE)).shape
    target = upstream.shape

    def move(field: Tensor) -> Tensor:
        wide = [n if probe[d] == target[d] else field.shape[d] for d, n in enumerate(target)]
        open_dims = [wide[d] for d in range(len(target)) if probe[d] != target[d]]
        long = [d for d in free if inner[d] != 1]
        sizes = list(small)
        for d, n in zip(long, open_dims, strict=True):
            sizes[d] = n
        with torch.enable_grad():
            x = torch.zeros(sizes, dtype=DTYPE, requires_grad=True)
            return torch.autograd.grad(pick.move(x), x, field.expand(wide))[0]

    made = upstream.map(move, axes)
    if pick.share >= 1.0:
        return made
    thin = {name: getattr(made, name) * pick.share**2 for name in ("constant", "sample", "site")}
    kept = made.second_moment * pick.share - sum(thin.values(), (made.mean * pick.share).square())
    return replace(made, mean=made.mean * pick.share, **thin, residual=kept.clamp(min=0))


def _samples(axes: Axes, dim: int) -> int:
    """Length of the sample axes of a dimension that holds nothing else, else 1."""
    dim %= len(axes.dims)
    return axes.shape[dim] if axes.has(dim, Role.SAMPLE) and state_shape(axes)[dim] == 1 else 1


# -- one dimension -------------------------------------------------------------------------------


@rule("select", "narrow", "index_select", trivial=True)
def select(call: Call) -> State:
    """Positions along one dimension."""
    return picked(call.input, _single(call), call.axes[0])


@select.gradient
def _(call: Call, upstream: State) -> Gradients:
    number = call.id(0, "input")
    assert number is not None
    return {number: put_back(upstream, _single(call), call.input.axes)}


def _single(call: Call) -> Pick:
    dim = int(call.argument(1, "dim")) % len(call.input.axes.dims)
    samples = _samples(call.input.axes, dim)
    if call.entry.op == "select":
        at = int(call.argument(2, "index"))
        if samples > 1:
            return Pick(lambda f: f.select(dim, 0), frozenset({dim}), 1 / samples)
        return Pick(lambda f: f.select(dim, at), frozenset({dim}))
    if call.entry.op == "narrow":
        start, length = int(call.argument(2, "start")), int(call.argument(3, "length"))
        if samples > 1:
            return Pick(lambda f: f, frozenset({dim}), length / samples)
        return Pick(lambda f: f.narrow(dim, start, length), frozenset({dim}))
    if samples > 1:  # whichever they are
        return Pick(lambda f: f, frozenset({dim}), min(1.0, call.axes[0].shape[dim] / samples))
    index = call.content(2, "index")
    if index is None or index.is_meta:
        raise NotImplementedError("index_select with an index that is not known")
    return Pick(lambda f: f.index_select(dim, index), frozenset({dim}))


@rule("split", "chunk", "split_with_sizes", "tensor_split", "unbind", "hsplit", "vsplit", trivial=True)
def split(call: Call) -> list[State]:
    """Consecutive parts of one dimension."""
    dim = _split_dim(call)
    if call.entry.op != "unbind" and call.input.shape[dim] > 1 and all(f.shape[dim] == 1 for f in call.input.fields):
        return [call.input.map(lambda f: f, axes) for axes in call.axes]
    return [picked(call.input, pick, axes) for pick, axes in zip(_parts(call), call.axes, strict=True)]


@split.gradient
def _(call: Call, upstream: State | list[State | None]) -> Gradients:
    number = call.id(0, "input")
    assert number is not None
    total: State | None = None
    if isinstance(upstream, list) and call.entry.op != "unbind" and call.input.shape[_split_dim(call)] > 1:
        parts = [state for state in upstream if state is not None]
        if len(parts) == len(upstream) and _many(parts, _split_dim(call), call.input.axes):
            return {number: _blended(parts, _split_dim(call), call.input.axes)}
    for pick, state in zip(_parts(call), upstream if isinstance(upstream, list) else [upstream], strict=True):
        if state is not None:
            part = put_back(state, pick, call.input.axes)
            total = part if total is None else total.plus(part)
    return {} if total is None else {number: total}


def _many(parts: list[State], dim: int, axes: Axes) -> bool:
    """Whether parts that are alike within would make maps too large when put side by side."""
    alike = all(f.shape[dim] == 1 for part in parts for f in part.fields)
    return alike and max(f.numel() for part in parts for f in part.fields) * axes.shape[dim] > TABLE


def _blended(parts: list[State], dim: int, axes: Axes) -> State:
    """Parts side by side as one law for all positions: an average by their lengths."""
    shares = [part.axes.shape[dim] / axes.shape[dim] for part in parts]

    def average(fields: list[Tensor]) -> Tensor:
        return sum((s * f for s, f in zip(shares, fields, strict=True)), torch.zeros((), dtype=DTYPE))

    mean, *components = (average(list(fields)) for fields in zip(*(part.fields for part in parts), strict=True))
    components[0] = components[0] + average([(part.mean - mean).square() for part in parts])
    return State.from_fields(axes, (mean, *components), width=max(part.width for part in parts))


def _parts(call: Call) -> list[Pick]:
    dim = _split_dim(call)
    samples = _samples(call.input.axes, dim)
    found: list[Pick] = []
    start = 0
    for axes in call.axes:
        one = call.entry.op == "unbind"
        size = 1 if one else axes.shape[dim]
        if samples > 1:
            move: Move = (lambda f: f.select(dim, 0)) if one else (lambda f: f)
            found.append(Pick(move, frozenset({dim}), size / samples))
        elif one:
            found.append(Pick(lambda f, at=start: f.select(dim, at), frozenset({dim})))  # type: ignore[misc]
        else:
            found.append(Pick(lambda f, at=start, n=size: f.narrow(dim, at, n), frozenset({dim})))  # type: ignore[misc]
        start += size
    return found


def _split_dim(call: Call) -> int:
    rank = len(call.input.axes.dims)
    if call.entry.op == "unbind":
        return int(call.argument(1, "dim", 0)) % rank
    if call.entry.op in ("hsplit", "vsplit"):
        return 0 if call.entry.op == "vsplit" or rank == 1 else 1
    return int(call.argument(2, "dim", 0)) % rank


# -- general indices -----------------------------------------------------------------------------


@rule("getitem", trivial=True)
def getitem(call: Call) -> State:
    """Basic slices pick; index tensors of known content too; unknown ones leave the average law."""
    pick = _index(call)
    if pick is None:
        return averaged(call.input, call.axes[0])
    return picked(call.input, pick, call.axes[0])


@getitem.gradient
def _(call: Call, upstream: State) -> Gradients:
    number, pick = call.id(0, "input"), _index(call)
    assert number is not None
    if pick is not None:
        return {number: put_back(upstream, pick, call.input.axes)}
    rate = (
        upstream.axes.count(Role.SITE)
        * upstream.axes.count(Role.CHANNEL)
        / max(call.input.axes.count(Role.SITE) * call.input.axes.count(Role.CHANNEL), 1)
    )
    flat = averaged(upstream, call.input.axes)
    return {number: replace(flat.scaled(0.0), residual=flat.second_moment * rate)}


def averaged(x: State, axes: Axes) -> State:
    """A law without its map: what its mean spreads over channels and sites joins the components."""
    flat = x.moved()
    rank = len(axes.dims)
    return flat.map(lambda f: f.mean().reshape((1,) * rank), axes)


def _index(call: Call) -> Pick | None:
    """The selection that an index makes on a state, whose sample dimensions have length 1."""
    raw = call.entry.args[1]
    axes = call.input.axes
    items = _expanded(call, list(raw) if isinstance(raw, tuple) else [raw], len(axes.dims))
    index: list[Any] = []
    touched: set[int] = set()
    share, place = 1.0, 0
    for item in items:
        if item is None:
            index.append(None)
            continue
        samples = _samples(axes, place)
        width = 1
        if isinstance(item, Tensor):
            if item.is_meta:
                return None
            width = item.ndim if item.dtype == torch.bool else 1
            if samples > 1:
                if item.ndim != 1:
                    return None
                share *= min(1.0, (int(item.sum()) if item.dtype == torch.bool else len(item)) / samples)
                item = slice(None)
        elif samples > 1:
            share *= (1 if isinstance(item, int) else len(range(*item.indices(samples)))) / samples
            item = 0 if isinstance(item, int) else slice(None)
        if item != slice(None) if isinstance(item, slice) else True:
            touched.update(range(place, place + width))
        index.append(item)
        place += width
    key = tuple(index)
    return Pick(lambda f: f[key], frozenset(touched), share)


def _expanded(call: Call, items: list[Any], rank: int) -> list[Any]:
    """References replaced by their content, the ellipsis by full slices."""
    found: list[Any] = []
    for item in items:
        if isinstance(item, Ref):
            content = call.value(item).content
            item = torch.empty(0, device="meta") if content is None else content
        elif isinstance(item, (list, range)):
            item = torch.as_tensor(list(item))
        elif isinstance(item, bool):
            raise NotImplementedError("getitem with a truth value")
        found.append(item)
    used = sum(
        i.ndim if isinstance(i, Tensor) and i.dtype == torch.bool else 1
        for i in found
        if i is not None and i is not Ellipsis
    )
    if any(i is Ellipsis for i in found):
        at = next(n for n, i in enumerate(found) if i is Ellipsis)
        found[at : at + 1] = [slice(None)] * (rank - used)
    return found


# -- the same elements again, or elsewhere -------------------------------------------------------


@rule("flip", "roll", "repeat_interleave", "tril", "triu", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
      "rot90", "fliplr", "flipud", trivial=True)  # fmt: skip
def reordered(call: Call) -> State:
    """Elements in another order, or repeated."""
    return picked(call.input, _reorder(call), call.axes[0])


@reordered.gradient
def _(call: Call, upstream: State) -> Gradients:
    number = call.id(0, "input")
    assert number is not None
    return {number: put_back(upstream, _reorder(call), call.input.axes)}


def _reorder(call: Call) -> Pick:
    """The operation itself, on a field resolved over all dimensions it may touch."""
    axes = call.input.axes
    rank = len(axes.dims)
    over = _reorder_dims(call, rank)
    kept = frozenset(d for d in over if _samples(axes, d) == 1)
    if call.entry.op in ("flip", "roll") and len(kept) < len(over):
        dims = [d for d in over if d in kept]
        shifts = call.argument(1, "shifts")
        numbers = [shifts] * len(over) if isinstance(shifts, int) else list(shifts or [])
        if call.entry.op == "flip":
            return Pick(lambda f: f.flip(dims), kept)
        held = [n for d, n in zip(over, numbers, strict=True) if d in kept]
        return Pick(lambda f: f.roll(held, dims) if dims else f, kept)
    if call.entry.op == "repeat_interleave" and len(kept) < len(over):
        return Pick(lambda f: f, kept)
    args, kwargs = call.entry.args[1:], {k: v for k, v in call.entry.kwargs.items() if k != "input"}
    if any(isinstance(a, Ref) for a in (*args, *kwargs.values())):
        raise NotImplementedError(f"{call.entry.op} with a tensor argument")
    return Pick(lambda f: call.entry.function(f, *args, **kwargs), kept)


def _reorder_dims(call: Call, rank: int) -> list[int]:
    op = call.entry.op
    if op in ("tril", "triu"):
        return [rank - 2, rank - 1]
    if op in ("pixel_shuffle", "pixel_unshuffle"):
        return [rank - 3, rank - 2, rank - 1]
    if op == "channel_shuffle":
        return [1]
    if op in ("fliplr", "flipud"):
        return [1 if op == "fliplr" else 0]
    dims: Any = call.argument(
        2 if op in ("roll", "repeat_interleave", "rot90") else 1, "dims", call.entry.kwargs.get("dim")
    )
    if dims is None:
        raise NotImplementedError(f"{op} of a flattened tensor")
    return [int(d) % rank for d in (dims if isinstance(dims, Sequence) else [dims])]


# -- windows -------------------------------------------------------------------------------------


@rule("unfold", trivial=True)
def unfold(call: Call) -> State:
    """Windows of a map, or of one dimension of a tensor."""
    return picked(call.input, _windows(call), call.axes[0])


@unfold.gradient
def _(call: Call, upstream: State) -> Gradients:
    number = call.id(0, "input")
    assert number is not None
    pick = _windows(call)
    x = torch.zeros(call.input.shape, dtype=DTYPE, requires_grad=True)
    with torch.enable_grad():
        y = pick.move(x)

    def back(field: Tensor) -> Tensor:
        return torch.autograd.grad(y, x, field.expand(y.shape), retain_graph=True)[0]

    return {number: _overlapped(upstream, back, call.input.axes)}


def _windows(call: Call) -> Pick:
    """The operation itself, resolved over all dimensions but the samples."""
    axes = call.input.axes
    kept = frozenset(d for d in range(len(axes.dims)) if _samples(axes, d) == 1)
    args, kwargs = call.entry.args[1:], {k: v for k, v in call.entry.kwargs.items() if k != "input"}
    return Pick(lambda f: call.entry.function(f, *args, **kwargs), kept)


@rule("fold")
def fold(call: Call) -> State:
    """Windows put back into a map, where they overlap summed."""
    args, kwargs = call.entry.args[1:], {k: v for k, v in call.entry.kwargs.items() if k != "input"}
    shape = call.input.shape
    return _overlapped(call.input, lambda f: call.entry.function(f.expand(shape), *args, **kwargs), call.axes[0])


@fold.gradient
def _(call: Call, upstream: State) -> Gradients:
    number = call.id(0, "input")
    assert number is not None
    args, kwargs = call.entry.args[1:], {k: v for k, v in call.entry.kwargs.items() if k != "input"}
    x = torch.zeros(call.input.shape, dtype=DTYPE, requires_grad=True)
    with torch.enable_grad():
        y = call.entry.function(x, *args, **kwargs)

    def back(field: Tensor) -> Tensor:
        return torch.autograd.grad(y, x, field.expand(y.shape), retain_graph=True)[0]

    return {number: replace(upstream, latent=None, nodes=None).map(back, call.input.axes)}


def _overlapped(x: State, add: Move, axes: Axes) -> State:
    """A sum of windows: what all sites share adds up in amplitude, the rest in variance."""
    mean, *parts = x.fields
    constant, sample, site, residual = parts
    fields = (add(mean), add(constant.sqrt()).square(), add(sample.sqrt()).square(), add(site), add(residual))
    return State.from_fields(axes, fields, width=x.width)


@rule("glu")
def glu(call: Call) -> State:
    """Half of the channels times a gate from the other half."""
    value, gate = _halves(call)
    variable = latent(gate)
    call.saved["gate"] = variable
    return replace(product(value, variable.state(variable.z.sigmoid())), axes=call.axes[0])


@glu.gradient
def _(call: Call, upstream: State) -> Gradients:
    number = call.id(0, "input")
    assert number is not None
    plain = replace(upstream, latent=None, nodes=None, axes=call.axes[0])
    value, _gate = _halves(call)
    variable = call.saved["gate"]
    open_gate = variable.z.sigmoid()
    slope = variable.state(open_gate * (1 - open_gate))
    parts = (product(plain, variable.state(open_gate)), product(product(plain, value), slope))
    made = [put_back(replace(part, axes=call.axes[0]), pick, call.input.axes)
            for part, pick in zip(parts, _half_picks(call), strict=True)]  # fmt: skip
    return {number: made[0].plus(made[1])}


def _half_picks(call: Call) -> list[Pick]:
    dim = int(call.argument(1, "dim", -1)) % len(call.input.axes.dims)
    n = call.axes[0].shape[dim]
    return [Pick(lambda f, at=start: f.narrow(dim, at, n), frozenset({dim})) for start in (0, n)]  # type: ignore[misc]


def _halves(call: Call) -> list[State]:
    return [picked(call.input, pick, call.axes[0]) for pick in _half_picks(call)]
