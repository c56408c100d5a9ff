"""Operations that only move, copy or select elements: a state moves as its tensor does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tightrope.roles import Axes, Role
from tightrope.rules.lags import aligned, white
from tightrope.rules.registry import Call, Gradients, rule
from tightrope.rules.sites import settled
from tightrope.rules.state import State, state_shape, zero
from tightrope.tape.tape import Ref


@rule("contiguous", "clone", "alias", "to", "type_as", "float", "double", "half", "bfloat16", "detach", "data",
      "requires_grad", "cpu", "cuda", "type", "checkpoint", "identity", "fmt", trivial=True)  # fmt: skip
def copied(call: Call) -> State:
    """A copy, a cast or a move; truth values and indices that become numbers have the law of those numbers.

    Raises:
        NotImplementedError: they are not known.
    """
    if call.state(0, "input") is None:
        content = call.content(0, "input")
        if content is None or content.is_meta:
            raise NotImplementedError(f"{call.entry.op} of a tensor whose content is not known")
        return State.of_content(call.axes[0], content)
    return replace(call.input, axes=call.axes[0])


@copied.gradient
def _(call: Call, upstream: State) -> Gradients:
    number = call.id(0, "input")
    assert number is not None
    if call.entry.op in ("detach", "data") or number not in call.states:
        return {}
    return {number: replace(upstream, axes=call.input.axes)}


@rule("view", "reshape", "flatten", "unflatten", "view_as", "reshape_as", "unsqueeze", "squeeze", "ravel", trivial=True)
def reshaped(call: Call) -> State:
    """The same elements under another shape."""
    return reshape(call.input, call.axes[0])


@reshaped.gradient
def _(call: Call, upstream: State) -> Gradients:
    number = call.id(0, "input")
    assert number is not None
    made = reshape(upstream, call.input.axes)
    return {number: parted(made, _freed(call.axes[0], call.input.axes))}


def _freed(before: Axes, after: Axes) -> int:
    """Number of sites that stood beside channels in one dimension, each with a draw of its own, and no longer do."""
    held = [axis for dim in before.dims if any(a.role is Role.CHANNEL for a in dim) for axis in dim]
    kept = [axis for dim in after.dims if any(a.role is Role.CHANNEL for a in dim) for axis in dim]
    sizes = [[a.size for a in axes if a.role is Role.SITE] for axes in (held, kept)]
    return max(math.prod(sizes[0]) // math.prod(sizes[1]), 1)


def parted(state: State, groups: int) -> State:
    """Sites in groups that share nothing with one another, where each group shares what it has.

    As one state has one amplitude for all sites, so much stays shared that the sum over all sites keeps its variance:
    (n - 1) of (g n - 1) for g groups of n sites.
    """
    sites = state.axes.count(Role.SITE)
    if groups == 1 or sites == groups:
        return state
    kept = (sites / groups - 1) / (sites - 1)
    site, residual = state.site + state.constant * (1 - kept), state.residual + state.sample * (1 - kept)
    return replace(state, constant=state.constant * kept, sample=state.sample * kept, site=site, residual=residual)


def reshape(state: State, axes: Axes) -> State:
    """A state under another grouping of the same axes; what is the same along a dimension stays so."""
    source, target = state.shape, state_shape(axes)

    def move(field: Tensor) -> Tensor:
        if field.numel() == 1:
            return field.reshape((1,) * len(target))
        kept = [size for size in field.shape if size != 1]
        wanted = [size for size in target if size != 1]
        if tuple(field.shape) != source and kept != wanted:
            aligned = _align(field, source, target)
            if aligned is not None:
                return aligned
            field = field.expand(source)
        if field.numel() != _count(target):
            field = field.expand(source)
        return field.reshape(target)

    return state.map(move, axes)


def _align(field: Tensor, source: Sequence[int], target: Sequence[int]) -> Tensor | None:
    """Reshape a field in which some dimensions are collapsed, block by block, without filling them."""
    sizes: list[int] = []
    i = j = 0
    while i < len(source) or j < len(target):
        left, right = [i], [j]
        a = source[i] if i < len(source) else 1
        b = target[j] if j < len(target) else 1
        i, j = i + 1, j + 1
        while a != b:
            if a < b and i < len(source):
                a *= source[i]
                left.append(i)
                i += 1
            elif j < len(target):
                b *= target[j]
                right.append(j)
                j += 1
            else:
                return None
        held = [field.shape[d] == source[d] for d in left if d < len(source) and source[d] != 1]
        wanted = [target[d] for d in right if d < len(target)]
        if all(held):
            sizes += wanted
        elif not any(held):
            sizes += [1] * len(wanted)
        else:
            return None
    return field.reshape(sizes)


def _count(shape: Sequence[int]) -> int:
    found = 1
    for size in shape:
        found *= size
    return found


@rule("permute", "transpose", "t", "T", "mT", "movedim", trivial=True)
def permuted(call: Call) -> State:
    """The same elements in another order of dimensions."""
    order = _order(call)
    return call.input.map(lambda f: f.permute(order), call.axes[0])


@permuted.gradient
def _(call: Call, upstream: State) -> Gradients:
    number, order = call.id(0, "input"), _order(call)
    assert number is not None
    back = [order.index(i) for i in range(len(order))]
    return {number: upstream.map(lambda f: f.permute(back), call.input.axes)}


def _order(call: Call) -> list[int]:
    """The permutation, read off the operation itself on a tensor of distinct sizes."""
    rank = len(call.input.axes.dims)
    probe = torch.empty([i + 2 for i in range(rank)], device="meta")
    result = call.entry.function(probe, *call.entry.args[1:], **call.entry.kwargs) if call.entry.op not in (
        "T", "mT") else (probe.permute(*reversed(range(rank))) if call.entry.op == "T" else probe.mT)  # fmt: skip
    return [size - 2 for size in result.shape]


# -- joins and copies along dimensions -----------------------------------------------------------


@rule("cat", "stack", "hstack", "vstack", "dstack", "column_stack", trivial=True)
def joined(call: Call) -> State:
    """Tensors side by side: each keeps its own law."""
    states, dim = _joined_states(call), _join_dim(call)
    if call.entry.op == "stack":
        rank = len(call.axes[0].dims)

        def lift(field: Tensor) -> Tensor:
            return field.reshape((1,) * (rank - 1 - field.ndim) + tuple(field.shape)).unsqueeze(dim)

        states = [s.map(lift) for s in states]
    target = state_shape(call.axes[0])
    sizes = _join_sizes(call, dim)
    if target[dim] == 1 and sum(sizes) > 1:  # along samples: a mixture
        total = sum(sizes)
        return _mixture(states, [n / total for n in sizes], call.axes[0])

    def beside(name: str) -> Tensor:
        fields = [getattr(s, name) for s in states]
        wide = [max(f.shape[d] for f in fields) for d in range(len(target))]
        return torch.cat([f.expand([n if d == dim else wide[d] for d in range(len(wide))])
                          for f, n in zip(fields, sizes, strict=True)], dim)  # fmt: skip

    mean, *parts = (beside(name) for name in ("mean", "constant", "sample", "site", "residual"))
    made = State.from_fields(call.axes[0], (mean, *parts), width=max(s.width for s in states))
    if dim != 1 or all(s.lags is None for s in states) or any(s.residual[0, 0].numel() > 1 for s in states):
        return made
    held = aligned([white(mean) if s.lags is None else s.lags for s in states])
    return replace(made, lags=torch.cat([lags.expand(n, -1, -1) for lags, n in zip(held, sizes, strict=True)]))


@joined.gradient
def _(call: Call, upstream: State) -> Gradients:
    dim = _join_dim(call)
    found: Gradients = {}
    start = 0
    shared = state_shape(call.axes[0])[dim] == 1
    for number, size in zip(_join_ids(call), _join_sizes(call, dim), strict=True):
        axes = call.states[number].axes
        rank = len(axes.dims)

        def move(field: Tensor, at: int = start, n: int = size, rank: int = rank) -> Tensor:
            if not shared and field.shape[dim] > 1:
                field = field.narrow(dim, at, n)
            return field.reshape([s for d, s in enumerate(field.shape) if d != dim]) if field.ndim > rank else field

        made = upstream.map(move, axes)
        found[number] = made if number not in found else found[number].plus(made)
        start += size
    return found


def _join_ids(call: Call) -> list[int]:
    tensors = call.argument(0, "tensors")
    ids = [ref.id for ref in tensors if isinstance(ref, Ref)]
    empty = [n for n in ids if 0 in call.tape.values[n].shape]
    ids = [n for n in ids if n not in empty]
    if any(n not in call.states for n in ids):
        raise NotImplementedError(f"{call.entry.op} with a tensor whose law is not known")
    return ids


def _joined_states(call: Call) -> list[State]:
    return [replace(call.states[n], latent=None, nodes=None) for n in _join_ids(call)]


def _join_dim(call: Call) -> int:
    rank = len(call.axes[0].dims)
    fixed = {"hstack": min(1, rank - 1), "vstack": 0, "dstack": 2, "column_stack": 1}
    return fixed.get(call.entry.op, int(call.argument(1, "dim", 0)) % rank)


def _join_sizes(call: Call, dim: int) -> list[int]:
    if call.entry.op == "stack":
        return [1] * len(_join_ids(call))
    return [call.tape.values[n].shape[dim] for n in _join_ids(call)]


def _mixture(states: Sequence[State], shares: Sequence[float], axes: Axes) -> State:
    """The law of samples of which each share follows one of several laws."""
    mean = sum((s.mean * w for s, w in zip(states, shares, strict=True)), zero())
    parts = [sum((f * w for f, w in zip(fields, shares, strict=True)), zero())
             for fields in zip(*(s.fields[1:] for s in states), strict=True)]  # fmt: skip
    between = sum(((s.mean - mean).square() * w for s, w in zip(states, shares, strict=True)), zero())
    return State(axes, mean, parts[0], parts[1] + between, parts[2], parts[3], max(s.width for s in states))


@rule("expand", "expand_as", "broadcast_to", "repeat", "tile", trivial=True)
def repeated(call: Call) -> State:
    """The same elements again along new or longer dimensions."""
    x, target = settled(call.input), state_shape(call.axes[0])
    lead = len(target) - len(x.shape)

    def move(field: Tensor) -> Tensor:
        field = field.reshape((1,) * lead + tuple(field.shape))
        times = [1 if n in (1, t) else -(-t // n) for n, t in zip(field.shape, target, strict=True)]
        return field.repeat(times) if any(t > 1 for t in times) else field

    return x.map(move, call.axes[0])


@repeated.gradient
def _(call: Call, upstream: State) -> Gradients:
    from tightrope.rules.broadcast import reduced

    number = call.id(0, "input")
    assert number is not None
    x, whole = call.input, call.axes[0]
    lead = len(whole.dims) - len(x.axes.dims)
    plain = replace(upstream, latent=None, nodes=None)
    again = [d for d, n in enumerate(whole.shape) if d >= lead and 1 < x.axes.shape[d - lead] < n]
    if not again:
        return {number: reduced(plain, x, whole)}
    raise NotImplementedError("the gradient of a repeated dimension longer than one")


# -- writing into a tensor -----------------------------------------------------------------------


@rule("setitem", "write_through", "copy")
def written(call: Call) -> State:
    """A tensor of which a part was overwritten.

    Raises:
        NotImplementedError: which part is not known.
    """
    old, new = call.state(0), call.state(2 if call.entry.op == "setitem" else 1)
    axes, where = call.axes[0], _where(call)
    if where is None:
        if new is None or new.axes.shape != axes.shape:
            raise NotImplementedError(f"{call.entry.op} into a part of a tensor")
        return replace(new, axes=axes, latent=None, nodes=None)
    raw = call.entry.args[2 if call.entry.op == "setitem" else 1]
    if new is None:
        if isinstance(raw, Ref):
            raise NotImplementedError("setitem with a value whose law is not known")
        new = State.of(Axes(()), float(raw))
    assert old is not None
    index = _plain_index(where, axes)

    def put(name: str) -> Tensor:
        base: Tensor = getattr(old, name).expand(old.shape).clone()
        base[index] = getattr(new, name).expand(getattr(new, name).shape)
        return base

    mean, *parts = (put(name) for name in ("mean", "constant", "sample", "site", "residual"))
    return State.from_fields(axes, (mean, *parts), width=max(old.width, new.width))


@written.gradient
def _(call: Call, upstream: State) -> Gradients:
    plain = replace(upstream, latent=None, nodes=None)
    value = call.id(2 if call.entry.op == "setitem" else 1)
    where = _where(call)
    if where is None:
        known = value is not None and value in call.states
        return {value: replace(plain, axes=call.states[value].axes)} if known and value is not None else {}
    index, found = _plain_index(where, call.axes[0]), {}
    first = call.id(0)

    def cleared(field: Tensor) -> Tensor:
        base = field.expand(upstream.shape).clone()
        base[index] = 0
        return base

    if first is not None:
        found[first] = plain.map(cleared, call.axes[0])
    if value is not None and value in call.states:
        target = call.states[value]
        part = plain.map(lambda f: f.expand(upstream.shape)[index])
        if tuple(part.mean.shape) == target.shape:
            found[value] = replace(part, axes=target.axes)
    return found


def _where(call: Call) -> Any:
    """The index of the part that is overwritten; None for the whole tensor."""
    if call.entry.op == "setitem":
        return call.entry.args[1]
    first, second = call.id(0), call.id(1)
    if call.entry.op != "write_through" or first is None or second is None:
        return None
    if call.tape.values[first].shape == call.tape.values[second].shape:
        return None
    view = call.maker(call.maker(second).inputs[0])  # the overwritten view, and what made it
    if view.op != "getitem":
        raise NotImplementedError(f"a tensor behind {view.op} that is overwritten in part")
    return view.args[1]


def _plain_index(raw: Any, axes: Axes) -> tuple[Any, ...]:
    """An index of slices and integers, on a state whose sample dimensions have length 1."""
    items = list(raw) if isinstance(raw, tuple) else [raw]
    if any(isinstance(item, (Ref, list, bool)) for item in items):
        raise NotImplementedError("setitem with an index tensor")
    if any(item is Ellipsis for item in items):
        at = next(n for n, item in enumerate(items) if item is Ellipsis)
        used = sum(item is not None and item is not Ellipsis for item in items)
        items[at : at + 1] = [slice(None)] * (len(axes.dims) - used)
    place, index = 0, []
    for item in items:
        samples = item is not None and state_shape(axes)[place] != axes.shape[place]
        if samples and item != slice(None):
            raise NotImplementedError("setitem for a part of the samples")
        index.append(item)
        place += item is not None
    return tuple(index)


@rule("masked_fill")
def masked_fill(call: Call) -> State:
    """Positions of a known mask are set to a number.

    Raises:
        NotImplementedError: the mask is not known or differs between samples.
    """
    keep = _mask(call)
    value = call.argument(2, "value")
    if isinstance(value, Ref):
        content = call.value(value).content
        if content is None or content.numel() != 1:
            raise NotImplementedError("masked_fill with a tensor")
        value = float(content)
    x = replace(call.input, axes=call.axes[0], latent=None, nodes=None)
    filled = torch.where(keep, x.mean, torch.full_like(x.mean, float(value)))
    return State.from_fields(x.axes, (filled, *(f * keep for f in x.fields[1:])), width=x.width)


@masked_fill.gradient
def _(call: Call, upstream: State) -> Gradients:
    number, keep = call.id(0, "input"), _mask(call)
    assert number is not None
    plain = replace(upstream, latent=None, nodes=None)
    return {number: plain.map(lambda f: f * keep, call.input.axes)}


def _mask(call: Call) -> Tensor:
    """True where the input stays, at the shape of a state."""
    mask = call.content(1, "mask")
    if mask is None or mask.is_meta:
        raise NotImplementedError("masked_fill with a mask that is not known")
    shape, full = state_shape(call.axes[0]), call.axes[0].shape
    mask = mask.reshape((1,) * (len(full) - mask.ndim) + tuple(mask.shape))
    for dim, size in enumerate(shape):
        if size != full[dim] and mask.shape[dim] > 1:
            first = mask.narrow(dim, 0, 1)
            if not bool((mask == first).all()):
                raise NotImplementedError("masked_fill with a mask that differs between samples")
            mask = first
    return ~mask.cpu()
