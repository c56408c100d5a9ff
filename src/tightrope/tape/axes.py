"""How the roles of dimensions travel through each operation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tightrope.roles import Axes, Axis, Role, broadcast, default_axes
from tightrope.tape.tape import RECURRENT, Entry, Kind, Ref, Tape, Value

Travel = Callable[[Entry, list[Axes], tuple[int, ...]], Axes]

_TABLE: dict[str, Travel] = {}


def infer(tape: Tape, entry: Entry, known: dict[int, Axes]) -> list[Axes]:
    """Axes of an entry's outputs, given those of its inputs.

    Args:
        tape: where the entry stands.
        entry: the call.
        known: axes by value id; inputs that are missing are given their default and added.

    Returns:
        One `Axes` per output, always of the output's own shape.
    """
    for number in entry.inputs:
        if number not in known:
            known[number] = of_source(tape, tape.values[number], entry, known)
    inputs = [known[number] for number in entry.inputs]
    found = []
    for position, number in enumerate(entry.outputs):
        shape = tape.values[number].shape
        axes = _travel(entry, inputs, shape, position) if inputs else _from_nothing(shape, tape.samples)
        axes = axes if axes.shape == shape else _by_size(inputs, shape, tape.samples)
        found.append(_batched(axes, tape.values[number], entry, inputs, tape.samples))
    return found


_COPYING = frozenset({"expand", "expand_as", "broadcast_to", "repeat", "tile"})


def _batched(axes: Axes, value: Value, entry: Entry, inputs: list[Axes], samples: int | None) -> Axes:
    """What holds no samples, is copied to the batch's length or is known, and is as long as the batch, has samples.

    A class token is repeated for every sample; the ids of a sentence's parts and a mask are made for the whole batch.
    """
    if len(axes.dims) < 2 or samples is None or samples < 2 or axes.shape[0] != samples or axes.count(Role.SAMPLE) > 1:
        return axes
    copied = entry.op in _COPYING and (len(inputs[0].dims) < len(axes.dims) or inputs[0].shape[0] == 1)
    known = value.kind is Kind.KNOWN and (len(axes.dims) > 2 or axes.shape.count(samples) == 1)
    if known and len(axes.dims) == 3 and value.is_float and not copied:  # a slope for each head, if they differ
        content = value.content
        known = content is not None and not content.is_meta and bool((content == content[:1]).all())
    return Axes((_one(Role.SAMPLE, samples), *axes.dims[1:])) if copied or known else axes


def _from_nothing(shape: tuple[int, ...], samples: int | None) -> Axes:
    """Axes of a tensor made of numbers alone: a first dimension, and no other, of the batch's length is the sample.

    `zeros(batch, width)` starts a recurrent state; a square of the batch's length is a mask.
    """
    return default_axes(shape, samples if len(shape) > 1 and shape.count(samples or 0) == 1 else None)


_ALIKE = frozenset({"add", "sub", "rsub", "mul", "div", "rdiv", "where", "maximum", "minimum", "mse_loss", "l1_loss"})
"""Operations whose operands of one shape have the same roles."""


def of_source(tape: Tape, value: Value, reader: Entry | None = None, known: dict[int, Axes] | None = None) -> Axes:
    """Axes of a tensor from outside, judged by its shape and by the operation that reads it first.

    Args:
        tape: where it stands.
        value: the tensor.
        reader: the first operation that reads it.
        known: axes of other values; one that is read beside it and has its shape decides.
    """
    if value.kind in (Kind.PARAMETER, Kind.BUFFER):
        return default_axes(value.shape, None)
    shape = value.shape
    if reader is not None and reader.op in _ALIKE and known and len(shape) > 1:
        beside = (known[n] for n in reader.inputs if n in known and known[n].shape == shape)
        found = next(beside, None)
        if found is not None:
            return found
    if reader is not None and reader.op.startswith("conv") and len(shape) >= 3:
        sites = (_one(Role.SITE, n) for n in shape[2:])
        return Axes((_one(Role.SAMPLE, shape[0]), _one(Role.CHANNEL, shape[1]), *sites))
    if value.id in tape.time_first:
        return Axes(tuple(map(_one, (Role.SITE, Role.SAMPLE, *[Role.CHANNEL] * (len(shape) - 2)), shape)))
    if reader is not None and reader.op in RECURRENT and len(shape) == 3:
        second = reader.inputs[0] != value.id or reader.args[-1] is not True  # a state is (layer, sample, channel)
        roles = (Role.SITE, Role.SAMPLE, Role.CHANNEL) if second else (Role.SAMPLE, Role.SITE, Role.CHANNEL)
        return Axes(tuple(_one(role, n) for role, n in zip(roles, shape, strict=True)))
    if value.dtype.is_floating_point or len(shape) != 2:
        return default_axes(shape, tape.samples)
    return Axes((_one(Role.SAMPLE if shape[0] == tape.samples else Role.SITE, shape[0]), _one(Role.SITE, shape[1])))


def _one(role: Role, size: int) -> tuple[Axis, ...]:
    return (Axis(role, size),) if size != 1 else ()


def _travel(entry: Entry, inputs: list[Axes], shape: tuple[int, ...], position: int) -> Axes:
    rule = _TABLE.get(entry.op)
    try:
        if rule is not None:
            return rule(entry, inputs, shape)
        whole = broadcast(*inputs)
        return whole if whole.shape == shape else inputs[0]
    except (IndexError, ValueError, TypeError, KeyError):
        return Axes(())  # `infer` sees that the shape does not fit and falls back on sizes


def _by_size(inputs: Sequence[Axes], shape: tuple[int, ...], samples: int | None) -> Axes:
    """An unexplained result: dimensions of the first input are found again by position and length."""
    dims: list[tuple[Axis, ...]] = []
    source = inputs[0].dims if inputs else ()
    used: set[int] = set()
    for place, size in enumerate(shape):
        match = [i for i, dim in enumerate(source) if i not in used and math.prod(a.size for a in dim) == size]
        if size != 1 and match:
            best = min(match, key=lambda i: abs(i - place))
            used.add(best)
            dims.append(source[best])
        else:
            fallback = Role.CHANNEL if place == len(shape) - 1 else Role.SITE
            dims.append(_one(Role.SAMPLE if size == samples and place == 0 else fallback, size))
    return Axes(tuple(dims))


def _for(*names: str) -> Callable[[Travel], Travel]:
    def register(function: Travel) -> Travel:
        for name in names:
            _TABLE[name] = function
        return function

    return register


def _numbers(entry: Entry, start: int = 1) -> list[int]:
    """Integer arguments given one by one or as a sequence."""
    rest: list[Any] = list(entry.args[start:])
    if len(rest) == 1 and isinstance(rest[0], (tuple, list, torch.Size)):
        rest = list(rest[0])
    return [int(n) for n in rest]


@_for("linear", "bilinear")
def _linear(entry: Entry, inputs: list[Axes], shape: tuple[int, ...]) -> Axes:
    return Axes((*inputs[0].dims[:-1], _one(Role.CHANNEL, shape[-1])))


@_for("addmm", "baddbmm", "addbmm")
def _addmm(entry: Entry, inputs: list[Axes], shape: tuple[int, ...]) -> Axes:
    return _matmul(entry, inputs[1:], shape)


@_for("matmul", "mm", "bmm", "mv")
def _matmul(entry: Entry, inputs: list[Axes], shape: tuple[int, ...]) -> Axes:
    left, right = inputs[0], inputs[1]
    if len(left.dims) >= 2 and len(right.dims) >= 2:
        lead = broadcast(Axes(left.dims[:-2]), Axes(right.dims[:-2])).dims
        return Axes((*lead, left.dims[-2], right.dims[-1]))
    return Axes(left.dims[:-1] if len(right.dims) == 1 else right.dims[:-2] + right.dims[-1:])


@_for("einsum")
def _einsum(entry: Entry, inputs: list[Axes], shape: tuple[int, ...]) -> Axes:
    """A letter's role is that of the first operand that has it with samples, else of the first that has it."""
    left, _, out = entry.args[0].replace(" ", "").partition("->")
    roles: dict[str, tuple[Axis, ...]] = {}
    for part, axes in zip(left.split(","), inputs, strict=True):
        if "." in part or len(part) != len(axes.dims):
            raise ValueError
        for letter, dim in zip(part, axes.dims, strict=True):
            if letter not in roles or any(axis.role is Role.SAMPLE for axis in dim):
                roles[letter] = dim
    return Axes(tuple(roles[letter] for letter in out))


@_for("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution")
def _conv(entry: Entry, inputs: list[Axes], shape: tuple[int, ...]) -> Axes:
    first = inputs[0].dims[0] if len(inputs[0].dims) == len(shape) else ()
    return Axes((first, _one(Role.CHANNEL, shape[1]), *(_one(Role.SITE, n) for n in shape[2:])))


@_for("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "interpolate", "pad",
      "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "upsample",
      "adaptive_max_pool2d", "adaptive_max_pool3d", "lp_pool1d", "lp_pool2d", "roll", "flip", "repeat_interleave",
      "cumsum", "softmax", "log_softmax", "layer_norm", "batch_norm", "group_norm", "instance_norm", "rms_norm",
      "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "prelu", "narrow",
      "tril", "triu", "sort", "masked_fill", "clone", "contiguous", "detach", "write_through", "setitem", "copy",
      "gather", "scatter", "index_add", "index_copy")  # fmt: skip
def _resized(entry: Entry, inputs: list[Axes], shape: tuple[int, ...]) -> Axes:
    source = inputs[0]
    if len(source.dims) != len(shape):
        raise ValueError
    for dim, (old, new) in enumerate(zip(source.shape, shape, strict=True)):
        if old != new:
            source = source.resize(dim, new)
    return source


@_for("glu")
def _glu(entry: Entry, inputs: list[Axes], shape: tuple[int, ...]) -> Axes:
    dim = int(entry.argument(1, "dim", -1))
    return inputs[0].resize(dim, shape[dim])


@_for("unfold")
def _unfold(entry: Entry, inputs: list[Axes], shape: tuple[int, ...]) -> Axes:
    """Windows of a map: the places in a window stand behind the channel; the windows are sites."""
    source = inputs[0]
    if len(source.dims) == 4 and len(shape) == 3:
        channels = source.shape[1]
        window = (*_one(Role.CHANNEL, channels), *_one(Role.SITE, shape[1] // channels))
        return Axes((source.dims[0], window, _one(Role.SITE, shape[2])))
    if len(shape) != len(source.dims) + 1:
        raise ValueError
    dim = int(entry.argument(1, "dimension")) % len(source.dims)
    return Axes((*source.resize(dim, shape[dim]).dims, _one(source.role(dim) or Role.SITE, shape[-1])))


@_for("fold")
def _fold(entry: Entry, inputs: list[Axes], shape: tuple[int, ...]) -> Axes:
    if len(shape) != 4:
        raise ValueError
    return Axes((inputs[0].dims[0], _one(Role.CHANNEL, shape[1]), *(_one(Role.SITE, n) for n in shape[2:])))


@_for("embedding")
def _embedding(entry: Entry, inputs: list[Axes], shape: tuple[int, ...]) -> Axes:
    return Axes((*inputs[0].dims, _one(Role.CHANNEL, shape[-1])))


@_for("permute")
def _permute(entry: Entry, inputs: list[Axes], shape: tuple[int, ...]) -> Axes:
    order = entry.kwargs.get("dims")
    return inputs[0].permute(list(order) if order is not None else _numbers(entry))


@_for("transpose")
def _transpose(entry: Entry, inputs: list[Axes], shape: tuple[int, ...]) -> Axes:
    order = list(range(len(shape)))
    a, b = entry.argument(1, "dim0"), entry.argument(2, "dim1")
    order[a], order[b] = order[b], order[a]
    return inputs[0].permute(order)


@_for("t", "T", "mT", "H")
def _t(entry: Entry, inputs: list[Axes], shape: tuple[int, ...]) -> Axes:
    order = list(range(len(shape)))
    if entry.op == "mT":
        order[-2:] = [order[-1], order[-2]]
    else:
        order.reverse()
    return inputs[0].permute(order)


@_for("movedim")
def _movedim(entry: Entry, inputs: list[Axes], shape: tuple[int, ...]) -> Axes:
    order = list(range(len(shape)))
    source, target = entry.argument(1, "source"), entry.argument(2, "destination")
    if isinstance(source, int):
        source, target = [source], [target]
    moved = [s % len(shape) for s in source]
    order = [i for i in order if i not in moved]
    for t, s in sorted(zip((t % len(shape) for t in target), moved, strict=True)):
        order.insert(t, s)
    return inputs[0].permute(order)


@_for("view", "reshape", "flatten", "unflatten", "view_as", "reshape_as", "unsqueeze", "squeeze", "ravel")
def _reshape(entry: Entry, inputs: list[Axes], shape: tuple[int, ...]) -> Axes:
    return inputs[0].reshape(shape)


@_for("expand", "expand_as", "broadcast_to", "repeat", "tile")
def _expand(entry: Entry, inputs: list[Axes], shape: tuple[int, ...]) -> Axes:
    source = inputs[0]
    padded = Axes(((),) * (len(shape) - len(source.dims)) + source.dims)
    for dim, (old, new) in enumerate(zip(padded.shape, shape, strict=True)):
        if old != new:
            padded = padded.resize(dim, new, Role.SITE if old == 1 else None)
    return padded


@_for("mean", "sum", "var", "std", "amax", "amin", "max", "min", "prod", "logsumexp", "norm", "vector_norm",
      "linalg_vector_norm", "argmax", "argmin", "median", "any", "all", "var_mean", "std_mean",
      "count_nonzero")  # fmt: skip
def _reduce(entry: Entry, inputs: list[Axes], shape: tuple[int, ...]) -> Axes:
    source = inputs[0]
    position = 2 if entry.op in ("norm", "vector_norm", "linalg_vector_norm") else 1
    dim = entry.argument(position, "dim", entry.kwargs.get("axis"))
    if dim is None:
        return Axes(((),) * len(shape))
    dims = [dim] if isinstance(dim, int) else list(dim)
    if len(shape) == len(source.dims):
        for d in dims:
            source = source.resize(d, 1)
        return source
    return source.drop(dims)


@_for("select")
def _select(entry: Entry, inputs: list[Axes], shape: tuple[int, ...]) -> Axes:
    return inputs[0].drop([entry.argument(1, "dim")])


@_for("unbind")
def _unbind(entry: Entry, inputs: list[Axes], shape: tuple[int, ...]) -> Axes:
    return inputs[0].drop([entry.argument(1, "dim", 0)])


@_for("chunk", "split", "split_with_sizes", "tensor_split")
def _split(entry: Entry, inputs: list[Axes], shape: tuple[int, ...]) -> Axes:
    return inputs[0].resize(entry.argument(2, "dim", 0), shape[entry.argument(2, "dim", 0)])


@_for("cat")
def _cat(entry: Entry, inputs: list[Axes], shape: tuple[int, ...]) -> Axes:
    dim = entry.argument(1, "dim", 0)
    widest = max(inputs, key=lambda axes: len(axes.dims))
    rest = broadcast(*(axes.resize(dim, 1) for axes in inputs if len(axes.dims) == len(shape)))
    role = widest.role(dim) or next((a.role(dim) for a in inputs if a.role(dim)), None) or Role.SITE
    return Axes(tuple(_one(role, shape[dim]) if i == dim % len(shape) else d for i, d in enumerate(rest.dims)))


@_for("stack")
def _stack(entry: Entry, inputs: list[Axes], shape: tuple[int, ...]) -> Axes:
    dim = entry.argument(1, "dim", 0) % len(shape)
    dims = list(broadcast(*inputs).dims)
    dims.insert(dim, _one(Role.SITE, shape[dim]))
    return Axes(tuple(dims))


@_for("getitem")
def _getitem(entry: Entry, inputs: list[Axes], shape: tuple[int, ...]) -> Axes:
    source, index = inputs[0], entry.args[1]
    index = list(index) if isinstance(index, tuple) else [index]
    explicit = sum(1 for i in index if i is not None and i is not Ellipsis)
    if Ellipsis in [i for i in index if not isinstance(i, Ref)]:
        at = next(n for n, i in enumerate(index) if i is Ellipsis)
        index[at : at + 1] = [slice(None)] * (len(source.dims) - explicit)
    dims: list[tuple[Axis, ...]] = []
    place = 0
    for item in index:
        if item is None:
            dims.append(())
        elif isinstance(item, int):
            place += 1
        elif isinstance(item, slice):
            size = len(range(*item.indices(source.shape[place])))
            dims.append(source.dims[place] if size == source.shape[place] else source.resize(place, size).dims[place])
            place += 1
        else:  # an index tensor or list: let the sizes decide
            raise ValueError
    return Axes((*dims, *source.dims[place:]))


@_for("scaled_dot_product_attention")
def _attention(entry: Entry, inputs: list[Axes], shape: tuple[int, ...]) -> Axes:
    return Axes((*inputs[0].dims[:-1], inputs[2].dims[-1]))


@_for("lstm", "gru", "rnn_tanh", "rnn_relu")
def _recurrent(entry: Entry, inputs: list[Axes], shape: tuple[int, ...]) -> Axes:
    source = inputs[0]
    if len(source.dims) == 2 and isinstance(entry.args[3], (tuple, list)):  # packed: rows, and (layer, sample, channel)
        lead = source.dims[:1] if len(shape) == 2 else (_one(Role.SITE, shape[0]), _one(Role.SAMPLE, shape[1]))
        return Axes((*lead, _one(Role.CHANNEL, shape[-1])))
    if shape[:2] == source.shape[:2]:
        return Axes((*source.dims[:2], _one(Role.CHANNEL, shape[2])))
    sample = next((d for d in source.dims[:2] if any(a.role is Role.SAMPLE for a in d)), ())
    return Axes((_one(Role.SITE, shape[0]), sample, _one(Role.CHANNEL, shape[2])))


@_for("_pack_padded_sequence")
def _packed(entry: Entry, inputs: list[Axes], shape: tuple[int, ...]) -> Axes:
    return Axes((_one(Role.SAMPLE, shape[0]), *(inputs[0].dims[2:] if len(shape) > 1 else ())))


@_for("_pad_packed_sequence")
def _padded(entry: Entry, inputs: list[Axes], shape: tuple[int, ...]) -> Axes:
    if len(shape) < 3:
        return Axes(tuple(_one(Role.SAMPLE, n) for n in shape))
    roles = (Role.SAMPLE, Role.SITE) if entry.argument(2, "batch_first") else (Role.SITE, Role.SAMPLE)
    return Axes((*map(_one, roles, shape[:2]), inputs[0].dims[-1]))


@_for("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def _recurrent_cell(entry: Entry, inputs: list[Axes], shape: tuple[int, ...]) -> Axes:
    return Axes((*inputs[0].dims[:-1], _one(Role.CHANNEL, shape[-1])))


@_for("cross_entropy", "nll_loss", "mse_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits", "l1_loss",
      "smooth_l1_loss", "huber_loss", "kl_div")  # fmt: skip
def _loss(entry: Entry, inputs: list[Axes], shape: tuple[int, ...]) -> Axes:
    missing = len(inputs[0].dims) - len(shape)
    if not shape or missing < 0:
        return Axes(((),) * len(shape))
    return inputs[0].drop([-1]) if missing else inputs[0]
