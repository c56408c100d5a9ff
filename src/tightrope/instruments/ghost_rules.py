"""Ghost norms of single operations: linear, convolution, embedding, normalisers, and parameters added or multiplied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tightrope.instruments.ghost import Coupled, Ghost, Unsupported, outer, square

PATCHES = 1 << 22
"""Numbers that are unfolded at once: memory that stays in use is not asked for anew."""


def _apply(function: Any, *args: Any) -> Tensor:
    made: Tensor = function.apply(*args)
    return made


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, ghost: Ghost, keys: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.ghost, ctx.keys, ctx.time_major = ghost, keys, ghost.time_major
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        ghost: Ghost = ctx.ghost
        ghost.time_major = ctx.time_major
        d, a = ghost.rows(grad), ghost.rows(x)
        ghost.time_major = False
        needs = ctx.needs_input_grad
        gx = grad @ weight if needs[0] else None
        gw = gb = None
        if needs[1]:
            whole: list[Tensor | None] = [None]

            def squared() -> Tensor:
                norms, made = outer(d, a)
                whole[0] = None if made is None else made[0]
                return norms

            ghost.add(ctx.keys[0], squared, lambda: torch.bmm(d.transpose(1, 2), a))
            gw = whole[0] if whole[0] is not None else grad.flatten(0, -2).T @ x.flatten(0, -2)
        if needs[2]:
            of_bias = d.sum(1)
            ghost.add(ctx.keys[1], lambda: square(of_bias), lambda: of_bias)
            gb = of_bias.sum(0)
        return gx, gw, gb, None, None


def linear(ghost: Ghost, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`."""
    ghost.check(input)
    ghost.uses_of(weight, bias)
    return _apply(_Linear, input, weight, bias, ghost, (id(weight), id(bias)))


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, ghost: Ghost, keys: tuple[int, int], how: Any
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.ghost, ctx.keys, ctx.how = ghost, keys, how
        stride, padding, dilation, groups = how
        zeros = [0] * len(stride)
        return torch.convolution(x, weight, bias, stride, padding, dilation, False, zeros, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        ghost: Ghost = ctx.ghost
        stride, padding, dilation, groups = ctx.how
        needs = ctx.needs_input_grad
        whole: list[Tensor | None] = [None]
        if needs[1]:
            kernel = weight.shape[2:]
            d = grad.reshape(len(x) * groups, weight.shape[0] // groups, -1).transpose(1, 2)

            def squared() -> Tensor:
                norms = []
                step = max(PATCHES // (weight[0].numel() * groups * d.shape[1]), 1)
                for i in range(0, len(x), step):
                    a = _patches(x[i : i + step], kernel, ctx.how)
                    of_part, made = outer(d[i * groups : (i + step) * groups], a, groups)
                    norms.append(of_part)
                    if made is not None:
                        whole[0] = made if whole[0] is None else whole[0].add_(made)
                if whole[0] is not None:
                    whole[0] = whole[0].reshape(weight.shape)
                return torch.cat(norms)

            def each() -> Tensor:
                return torch.bmm(d.transpose(1, 2), _patches(x, kernel, ctx.how)).view(len(x), -1)

            ghost.add(ctx.keys[0], squared, each)
        gx, gw, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, stride, padding, dilation, False, [0] * len(stride), groups,
            [needs[0], needs[1] and whole[0] is None, False],
        )  # fmt: skip
        gb = None
        if needs[2]:
            of_bias = grad.flatten(2).sum(2)
            ghost.add(ctx.keys[1], lambda: square(of_bias), lambda: of_bias)
            gb = of_bias.sum(0)
        return gx, whole[0] if whole[0] is not None else gw, gb, None, None, None


def _patches(x: Tensor, kernel: Sequence[int], how: Any) -> Tensor:
    """What each site of the output reads: shape (samples * groups, sites, channels of the group * kernel)."""
    stride, padding, dilation, groups = how
    x = F.pad(x, [p for size in reversed(padding) for p in (size, size)]) if any(padding) else x.contiguous()
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel)]
    sites = [(size - span) // s + 1 for size, span, s in zip(x.shape[2:], spans, stride)]
    n, channels = x.shape[:2]
    steps = x.stride()
    within = [step * d for step, d in zip(steps[2:], dilation)]
    between = [step * s for step, s in zip(steps[2:], stride)]
    view = x.as_strided((n, channels, *kernel, *sites), (*steps[:2], *within, *between))
    count = 1
    for size in sites:
        count *= size
    return view.reshape(n * groups, -1, count).transpose(1, 2)


def _conv(dims: int) -> Callable[..., Tensor]:
    def tupled(size: Any) -> tuple[int, ...]:
        sizes = (size,) if isinstance(size, int) else tuple(size)
        return sizes * dims if len(sizes) == 1 else sizes

    def conv(
        ghost: Ghost, input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, groups: int = 1,
    ) -> Tensor:  # fmt: skip
        if input.dim() != dims + 2 or len(input) != ghost.samples:
            raise Unsupported(f"convolution of shape {tuple(input.shape)} in a batch of {ghost.samples}")
        if isinstance(padding, str):
            if padding == "same":
                spans = [d * (k - 1) for d, k in zip(tupled(dilation), weight.shape[2:])]
                input = F.pad(input, [p for span in reversed(spans) for p in (span // 2, span - span // 2)])
            padding = 0
        ghost.uses_of(weight, bias)
        how = (tupled(stride), tupled(padding), tupled(dilation), groups)
        return _apply(_Conv, input, weight, bias, ghost, (id(weight), id(bias)), how)

    return conv


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, index: Tensor, weight: Tensor, ghost: Ghost, key: int, padding: int) -> Tensor:
        ctx.save_for_backward(index)
        ctx.ghost, ctx.key, ctx.padding, ctx.shape = ghost, key, padding, weight.shape
        return F.embedding(index, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        ghost: Ghost = ctx.ghost
        (index,) = ctx.saved_tensors
        words = index.reshape(ghost.samples, -1)
        d = grad.reshape(*words.shape, -1)
        if ctx.padding >= 0:
            d = d * (words != ctx.padding)[..., None]

        def squared() -> Tensor:
            same = words[:, :, None] == words[:, None, :]
            both: Tensor = torch.bmm(d, d.transpose(1, 2)) * same
            return both.sum((1, 2), dtype=torch.float64).clamp(min=0)

        def each() -> Tensor:
            made: Tensor = d.new_zeros(ghost.samples, *ctx.shape)
            return made.scatter_add_(1, words[..., None].expand(d.shape), d)

        ghost.add(ctx.key, squared, each)
        gw = d.new_zeros(ctx.shape).index_add_(0, words.flatten(), d.flatten(0, 1))
        return None, gw, None, None, None


def embedding(
    ghost: Ghost, input: Tensor, weight: Tensor, padding_idx: int | None = None, max_norm: float | None = None,
    norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False,
) -> Tensor:  # fmt: skip
    """`F.embedding`."""
    if max_norm is not None or scale_grad_by_freq or input.dim() == 0 or len(input) % ghost.samples:
        raise Unsupported(f"embedding of shape {tuple(input.shape)} in a batch of {ghost.samples}")
    ghost.uses_of(weight)
    padding = -1 if padding_idx is None else padding_idx % len(weight)
    return _apply(_Embedding, input, weight, ghost, id(weight), padding)


class _Affine(torch.autograd.Function):
    """x * weight + bias, where both have one number for each place of a sample, or fewer."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, ghost: Ghost, keys: tuple[int, int], how: Any
    ) -> Tensor:
        ctx.ghost, ctx.keys, ctx.how = ghost, keys, how
        ctx.save_for_backward(*(x, weight) if weight is not None else ())
        if weight is None:
            assert bias is not None
            return x + bias.view(how[1])
        scale = weight.view(how[0])
        return x * scale if bias is None else torch.addcmul(bias.view(how[1]), x, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        needs, made = ctx.needs_input_grad, [None, None]
        x, weight = ctx.saved_tensors if ctx.saved_tensors else (None, None)
        for i, part in ((0, grad * x if x is not None and needs[1] else None), (1, grad if needs[2] else None)):
            if part is not None:
                made[i] = _reduced(ctx.ghost, ctx.keys[i], part, ctx.how[i], ctx.how[2 + i])
        gx = (grad if weight is None else grad * weight.view(ctx.how[0])) if needs[0] else None
        return gx, made[0], made[1], None, None, None


def _reduced(ghost: Ghost, key: int, part: Tensor, shape: Sequence[int], own: Sequence[int]) -> Any:
    """Sum over everything that the parameter is broadcast over, samples last; notes the samples' norms."""
    n = ghost.samples
    each = part.reshape(n, -1, *part.shape[1:]).sum(1)
    over = [i + 1 for i, size in enumerate(shape[1:]) if size == 1 and part.shape[i + 1] != 1]
    each = (each.sum(over, keepdim=True) if over else each).reshape(n, -1)
    ghost.add(key, lambda: square(each), lambda: each)
    return each.sum(0).view(own)


def _affine(ghost: Ghost, x: Tensor, weight: Tensor | None, bias: Tensor | None, place: Sequence[int]) -> Tensor:
    """Scale and shift along the dimensions `place` of x."""
    if weight is None and bias is None:
        return x
    ghost.uses_of(weight, bias)
    shape = [size if i in place else 1 for i, size in enumerate(x.shape)]
    own = [p.shape if p is not None else None for p in (weight, bias)]
    how = (shape, shape, *own)
    return _apply(_Affine, x, weight, bias, ghost, (id(weight), id(bias)), how)


def _first(ghost: Ghost, x: Tensor) -> Tensor:
    if x.dim() < 2 or len(x) % ghost.samples:
        raise Unsupported(f"a normaliser of shape {tuple(x.shape)} in a batch of {ghost.samples}")
    return x


def layer_norm(
    ghost: Ghost, input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None,
    bias: Tensor | None = None, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """`F.layer_norm`."""
    x = F.layer_norm(_first(ghost, input), list(normalized_shape), None, None, eps)
    return _affine(ghost, x, weight, bias, range(x.dim() - len(normalized_shape), x.dim()))


def rms_norm(
    ghost: Ghost, input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:  # fmt: skip
    """`F.rms_norm`."""
    x = F.rms_norm(_first(ghost, input), list(normalized_shape), None, eps)
    return _affine(ghost, x, weight, None, range(x.dim() - len(normalized_shape), x.dim()))


def group_norm(
    ghost: Ghost, input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """`F.group_norm`."""
    return _affine(ghost, F.group_norm(_first(ghost, input), num_groups, None, None, eps), weight, bias, (1,))


def instance_norm(
    ghost: Ghost, input: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None,
    weight: Tensor | None = None, bias: Tensor | None = None, use_input_stats: bool = True, momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """`F.instance_norm`."""
    x = F.instance_norm(
        _first(ghost, input), running_mean, running_var, None, None, use_input_stats, momentum, eps
    )  # fmt: skip
    return _affine(ghost, x, weight, bias, (1,))


def batch_norm(
    ghost: Ghost, input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """`F.batch_norm` with running statistics; those of the batch couple its samples."""
    if training or running_mean is None:
        raise Coupled("batch normalisation divides by statistics of the batch")
    x = F.batch_norm(_first(ghost, input), running_mean, running_var, None, None, False, momentum, eps)
    return _affine(ghost, x, weight, bias, (1,))


def _broadcast(ghost: Ghost, x: Any, p: Any, weight: bool) -> Tensor:
    """x * p or x + p for a parameter p that every sample shares."""
    if id(p) not in ghost.tracked:
        x, p = p, x
    fits = isinstance(x, Tensor) and id(x) not in ghost.tracked and x.dtype == p.dtype and x.dim() > 0
    shape = [1] * (x.dim() - p.dim()) + list(p.shape) if fits else []
    if not fits or len(x) % ghost.samples or len(shape) != x.dim() or shape[0] != 1:
        raise Unsupported("arithmetic of a parameter that does not belong to all samples alike")
    if any(s not in (1, size) for s, size in zip(shape, x.shape)):
        raise Unsupported("a parameter that spreads a tensor")
    ghost.uses_of(p)
    how = (shape, shape, p.shape, p.shape)
    pair = (p, None) if weight else (None, p)
    keys = (id(p), id(p))
    return _apply(_Affine, x, *pair, ghost, keys, how)


def add(ghost: Ghost, input: Any, other: Any) -> Tensor:
    """A parameter added: positions, biases written out."""
    return _broadcast(ghost, input, other, False)


def mul(ghost: Ghost, input: Any, other: Any) -> Tensor:
    """A parameter multiplied: layer scale, gates."""
    return _broadcast(ghost, input, other, True)


def expand(ghost: Ghost, input: Tensor, *sizes: Any) -> Tensor:
    """A parameter given to every sample: a class token."""
    shape = list(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else list(sizes)
    if len(shape) != input.dim() or shape[0] != ghost.samples or input.shape[0] != 1:
        raise Unsupported("expand of a parameter")
    shape = [own if size == -1 else size for own, size in zip(input.shape, shape)]
    return _broadcast(ghost, input.new_zeros(shape), input, False)


RULES: dict[Any, Callable[..., Tensor]] = {
    F.linear: linear,
    F.conv1d: _conv(1), F.conv2d: _conv(2), F.conv3d: _conv(3),
    F.embedding: embedding,
    F.layer_norm: layer_norm, F.rms_norm: rms_norm, F.group_norm: group_norm, F.instance_norm: instance_norm,
    F.batch_norm: batch_norm,
    torch.add: add, torch.Tensor.add: add, torch.Tensor.__add__: add, torch.Tensor.__radd__: add,
    torch.mul: mul, torch.Tensor.mul: mul, torch.Tensor.__mul__: mul, torch.Tensor.__rmul__: mul,
    torch.Tensor.expand: expand,
}  # fmt: skip

__all__ = ["RULES"]
