"""Functions of parameters alone: standardised, normalised, decomposed or projected weights.

With the actual weights at hand such a tensor is known: the operation is run once on the parameters, and no sample is.
Its gradient is the transposed Jacobian's image of the incoming law, probed with draws of that law.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tightrope.roles import Role
from tightrope.rules import numerical
from tightrope.rules.functions import CHAINING
from tightrope.rules.registry import Call, Gradients, Rule, find
from tightrope.rules.state import DTYPE, State
from tightrope.tape.names import RANDOM
from tightrope.tape.tape import Kind

PROBES, MANY, FEW = 8, 1 << 16, 2
"""Draws of the incoming gradient behind the law of a parameter's gradient; few for a tensor of many elements."""
_OWN_RULE = CHAINING | {"embedding", "embedding_bag", "dropout", "setitem", "write_through", "copy"}
"""Operations whose rule is exact on known operands, or draws."""


def applies(call: Call) -> bool:
    """Whether an operation reads nothing but known weights and makes nothing that differs between samples."""
    op, found = call.entry.op, find(call.entry.op)
    if op in RANDOM or op in _OWN_RULE or (found is not None and found.trivial) or not call.entry.inputs:
        return False
    values = [call.tape.values[n] for n in call.entry.inputs]
    if not any(v.id in call.tape.parametric for v in values):
        return False
    if any(axis.role is Role.SAMPLE and axis.size > 1 for axes in call.axes for dim in axes.dims for axis in dim):
        return False
    for value in values:
        if value.id in call.states:
            if value.kind is Kind.INPUT or not call.states[value.id].exact:
                return False
        elif value.content is None or value.content.is_meta:
            return False
    return all(call.tape.values[n].is_float for n in call.entry.outputs)


def forward(call: Call) -> list[State]:
    """The operation itself on the weights."""
    with numerical.quiet(call), torch.no_grad():
        results = numerical.run(call, {n: _content(call, n) for n in call.entry.inputs if n in call.states})
    return [State.of(axes, y.to(DTYPE)) for y, axes in zip(results, call.axes, strict=True)]


def backward(call: Call, upstream: State | list[State | None]) -> Gradients:
    """J^T g of draws g: the mean of the law exactly, its variance from the probes."""
    states = upstream if isinstance(upstream, list) else [upstream]
    ids = [n for n in dict.fromkeys(call.entry.inputs) if n in call.states]
    with numerical.quiet(call), torch.enable_grad():
        operands = {n: _content(call, n).requires_grad_(True) for n in ids}
        results = numerical.run(call, operands)
        pairs = [(y, s) for y, s in zip(results, states, strict=True) if s is not None and y.requires_grad]
        if not pairs:
            return {}

        def image(gradients: list[Tensor]) -> tuple[Tensor | None, ...]:
            return torch.autograd.grad(
                [y for y, _ in pairs], list(operands.values()), gradients, retain_graph=True, allow_unused=True
            )

        means = image([s.mean.expand(y.shape).to(y) for y, s in pairs])
        squares = [torch.zeros_like(x) for x in operands.values()]
        probes = PROBES if sum(y.numel() for y, _ in pairs) < MANY else FEW
        for _ in range(probes):
            drawn = [s.variance.clamp(min=0).sqrt().expand(y.shape).to(y) * torch.randn_like(y) for y, s in pairs]
            for total, part in zip(squares, image(drawn), strict=True):
                total += 0 if part is None else part.square() / probes
    width = max(s.width for _, s in pairs)
    return {
        n: State.of(call.states[n].axes, mean.to(DTYPE), residual=square.to(DTYPE), width=width)
        for n, mean, square in zip(ids, means, squares, strict=True)
        if mean is not None
    }


def _content(call: Call, number: int) -> Tensor:
    state, value = call.states[number], call.tape.values[number]
    return state.mean.expand(state.shape).reshape(value.shape).to(value.dtype).clone()


WEIGHTS = Rule((), forward, __file__, backward=backward)
"""The rule for operations to which `applies` applies."""
