"""Matrix products: with weights on either side, or of two random tensors."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tightrope.roles import Axes, Role
from tightrope.rules.linear import bias_state, mapped, outer, total
from tightrope.rules.registry import Call, Gradients, rule
from tightrope.rules.state import State
from tightrope.rules.written_attention import lean, tilt


@rule("addmm")
def addmm(call: Call) -> State:
    """bias + x W, as linear layers with transposed weights are written."""
    x, weight, bias = call.state(1, "mat1"), call.state(2, "mat2"), call.state(0, "input")
    if x is None or weight is None or bias is None or _random(weight) or call.entry.kwargs:
        raise NotImplementedError("addmm of two random matrices, or scaled")
    out = mapped(x, _turned(weight), call.axes[0])
    return out.plus(bias_state(bias, out)) if len(bias.axes.dims) == 1 else out.plus(replace(bias, axes=call.axes[0]))


@addmm.gradient
def _(call: Call, upstream: State) -> Gradients:
    x, weight, bias = call.state(1, "mat1"), call.state(2, "mat2"), call.state(0, "input")
    ids = [call.id(0, "input"), call.id(1, "mat1"), call.id(2, "mat2")]
    assert x is not None and weight is not None and bias is not None and None not in ids
    found: Gradients = {ids[1] or 0: mapped(upstream, weight, x.axes)}
    turned = _turned(weight)
    found[ids[2] or 0] = _turned(outer(x, upstream, call.axes[0], turned))
    if len(bias.axes.dims) == 1:
        found[ids[0] or 0] = total(upstream, call.axes[0], bias)
    return found


@rule("matmul", "mm", "bmm")
def matmul(call: Call) -> State:
    """x W with known or drawn weights; W x; or the product of two random tensors, independent of each other."""
    left, right = call.state(0, "input"), call.state(1, "other") or call.state(1, "mat2")
    if left is None or right is None or len(left.axes.dims) < 2 or len(right.axes.dims) < 2:
        raise NotImplementedError("a product with a vector or with integers")
    if _is_weight(call, 1, right):
        return mapped(left, _turned(right), call.axes[0])
    if _is_weight(call, 0, left):
        swapped = mapped(_swap(right), left, _swap_axes(call.axes[0]))
        return _swap(swapped)
    made = product_over(left, right, call.axes[0])
    more = tilt(call)
    if more is None:
        return made
    return replace(made, residual=made.residual + more * right.residual.mean(-2, keepdim=True))


@matmul.gradient
def _(call: Call, upstream: State) -> Gradients:
    left, right = call.state(0, "input"), call.state(1, "other") or call.state(1, "mat2")
    a, b = call.id(0, "input"), call.id(1, "other") if call.id(1, "other") is not None else call.id(1, "mat2")
    assert left is not None and right is not None and a is not None and b is not None
    if _is_weight(call, 1, right):
        made = {a: mapped(upstream, right, left.axes)}
        return made | {b: _turned(outer(left, upstream, call.axes[0], _turned(right)))}
    if _is_weight(call, 0, left):
        turned = _swap(mapped(_swap(upstream), _turned(left), _swap_axes(right.axes)))
        return {b: turned, a: outer(_swap(right), _swap(upstream), _swap_axes(call.axes[0]), left)}
    to_left = product_over(upstream, _swap(right), left.axes)
    to_right = product_over(_swap(left), upstream, right.axes)
    more = lean(call, upstream, right)
    if more is not None:
        to_left = replace(to_left, residual=to_left.residual + more)
    return {a: to_left, b: to_right}


def product_over(left: State, right: State, axes: Axes) -> State:
    """The law of a product of independent random tensors, summed over the last dimension of the left one.

    Along a dimension of channels the terms are independent. Along one of sites they share what a sample shares: that
    adds up with the sum of the weights, the rest with the sum of their squares.
    """
    n = max(left.shape[-1], right.shape[-2])
    x = left.map(lambda f: f.expand(*f.shape[:-1], n))
    y = right.map(lambda f: f.expand(*f.shape[:-2], n, f.shape[-1]))
    mean = x.mean @ y.mean
    square = x.mean.square()
    if right.axes.has(len(right.axes.dims) - 2, Role.SITE):
        return _average(x, y, mean, axes, max(left.width, right.width))
    both = x.mean.square() @ y.mean.square()

    def level(a: Tensor, b: Tensor) -> Tensor:
        return ((square + a) @ (y.mean.square() + b) - both).clamp(min=0)

    constant = level(x.constant, y.constant)
    site = level(x.constant + x.site, y.constant + y.site) - constant
    sample = level(x.constant + x.sample, y.constant + y.sample) - constant
    everything = level(x.variance, y.variance)
    rest = (everything - constant - site - sample).clamp(min=0)
    return State(axes, mean, constant, sample.clamp(min=0), site.clamp(min=0), rest, width=left.width + right.width)


def _average(x: State, y: State, mean: Tensor, axes: Axes, width: float) -> State:
    """Sum over sites j of x_ij y_j: `x` are weights of a row, `y` what they weigh."""
    weight, second = x.mean, x.second_moment
    share = weight.sum(-1, keepdim=True)
    centre = mean / share.where(share.abs() > 1e-12, share.new_ones(()))
    off = second - weight.square()
    around = off @ y.mean.square() - 2 * centre * (off @ y.mean) + centre.square() * off.sum(-1, keepdim=True)
    constant = (weight @ y.constant.clamp(min=0).sqrt()).square()
    sample = (weight @ y.sample.clamp(min=0).sqrt()).square()
    rest = (second @ y.residual + off @ y.site + around).clamp(min=0)
    common = torch.minimum(weight @ (weight.mean(-2).unsqueeze(-1) * y.residual), rest).clamp(min=0)
    return State(axes, mean, constant, sample + common, weight.square() @ y.site, rest - common, width=width)


def _is_weight(call: Call, position: int, state: State) -> bool:
    """Whether an operand is a matrix of weights: two-dimensional, and no function of the data."""
    return len(state.axes.dims) == 2 and not _random(state)


def _random(state: State) -> bool:
    return any(a.role is Role.SAMPLE for dim in state.axes.dims for a in dim) or bool((state.sample != 0).any())


def _turned(weight: State) -> State:
    return weight.map(lambda f: f.transpose(-1, -2), Axes(weight.axes.dims[:-2] + weight.axes.dims[:-3:-1]))


def _swap_axes(axes: Axes) -> Axes:
    return Axes((*axes.dims[:-2], axes.dims[-1], axes.dims[-2]))


def _swap(state: State) -> State:
    return state.map(lambda f: f.transpose(-1, -2), _swap_axes(state.axes))


__all__ = ["addmm", "matmul", "product_over"]
