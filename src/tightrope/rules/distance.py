"""Losses element by element: squared, absolute and Huber distances, binary cross-entropy, Kullback-Leibler.

A binary cross-entropy is linear in its target, l = A(z) + y B(z): with y = E[y] + d its gradient is one function of
z at the mean target plus d times another, and the two are uncorrelated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tightrope.roles import Axes, Role, broadcast
from tightrope.rules.adjoint import Adjoint
from tightrope.rules.broadcast import reduced
from tightrope.rules.expectation import Latent, latent, product
from tightrope.rules.loss import reduction, scaled_by
from tightrope.rules.registry import Call, Gradients, rule
from tightrope.rules.state import State
from tightrope.tape.tape import Ref

Function = Callable[[Tensor], Tensor]


# -- distances -----------------------------------------------------------------------------------


@rule("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
def distance(call: Call) -> State:
    """E f(z - y) for independent prediction and target; their difference is taken as Gaussian."""
    x, y = _pair(call)
    difference = _difference(call, x, y)
    function, _, kinks = _distance(call)
    variable = latent(difference, kinks)
    call.saved["variable"] = variable
    return _settled(call, variable.state(function(variable.z)))


@distance.gradient
def _(call: Call, upstream: State) -> Gradients:
    x, y = _pair(call)
    _, slope, _ = _distance(call)
    variable: Latent = call.saved["variable"]
    found: Gradients = {}
    plain = _spread(call, upstream, variable.state(slope(variable.z)))
    for sign, number, state in ((1.0, call.id(0, "input"), x), (-1.0, call.id(1, "target"), y)):
        if number is not None and number in call.states:
            found[number] = reduced(plain.scaled(sign), state, plain.axes)
    number = call.id(0, "input")
    if call.entry.op == "mse_loss" and number is not None and isinstance(x.latent, Latent) and x.nodes is not None:
        found[number] = _joint(call, upstream, y, 2 * (x.nodes - y.mean.unsqueeze(-1)), -2 * torch.ones_like(x.nodes))
    return found


def _distance(call: Call) -> tuple[Function, Function, tuple[float, ...]]:
    """The loss of a difference, its derivative, and where that one jumps or bends."""
    op = call.entry.op
    if op == "mse_loss":
        return torch.square, lambda d: 2 * d, ()
    if op == "l1_loss":
        return torch.abs, torch.sign, (0.0,)
    name = "beta" if op == "smooth_l1_loss" else "delta"
    edge = float(call.entry.kwargs.get(name, 1.0))
    if op == "smooth_l1_loss" and edge == 0:
        return torch.abs, torch.sign, (0.0,)
    scale = edge if op == "smooth_l1_loss" else 1.0

    def value(d: Tensor) -> Tensor:
        return F.huber_loss(d, torch.zeros_like(d), reduction="none", delta=edge) / scale

    return value, lambda d: d.clamp(-edge, edge) / scale, (-edge, edge)


# -- binary cross-entropy ------------------------------------------------------------------------


@rule("binary_cross_entropy", "binary_cross_entropy_with_logits")
def binary(call: Call) -> State:
    """-E[y ln p + (1 - y) ln(1 - p)]."""
    x, y = _pair(call)
    variable, values = _nodes(call, x)
    base, slope = _binary(call)
    mean = y.mean.unsqueeze(-1)
    weight = _weight(call)
    state = variable.state(weight.unsqueeze(-1) * (base(values) + mean * slope(values)))
    return _settled(call, replace(state, axes=broadcast_axes(x, y)))


@binary.gradient
def _(call: Call, upstream: State) -> Gradients:
    x, y = _pair(call)
    number, other = call.id(0, "input"), call.id(1, "target")
    assert number is not None
    variable, values = _nodes(call, x)
    base, slope = _slopes(call, values)
    weight = _weight(call).unsqueeze(-1)
    fixed, varying = weight * (base + y.mean.unsqueeze(-1) * slope), weight * slope
    found = {number: _joint(call, upstream, y, fixed, varying)}
    if other is not None and other in call.states:
        made = _spread(call, upstream, variable.state(weight * _binary(call)[1](values)))
        found[other] = reduced(made, y, broadcast_axes(x, y))
    return found


def _binary(call: Call) -> tuple[Function, Function]:
    """A and B of l = A(z) + y B(z)."""
    if call.entry.op == "binary_cross_entropy":
        precision = call.value(call.argument(0, "input")).dtype

        def negative(p: Tensor) -> Tensor:
            """A probability that rounds to 1 costs 100, as the operation has it."""
            return -torch.log1p(-p.to(precision).to(p.dtype)).clamp(min=-100)

        return negative, lambda p: -p.log().clamp(min=-100) - negative(p)
    given = call.state(5, "pos_weight") if len(call.entry.args) > 5 else _named(call, "pos_weight")
    more = torch.ones(()) if given is None else given.mean
    if more.ndim:
        more = more.unsqueeze(-1)
    return F.softplus, lambda z: more * F.softplus(-z) - F.softplus(z)


def _named(call: Call, name: str) -> State | None:
    ref = call.entry.kwargs.get(name)
    return call.states.get(ref.id) if isinstance(ref, Ref) else None


def _weight(call: Call) -> Tensor:
    given = call.state(2, "weight")
    return torch.ones((), dtype=torch.float64) if given is None else given.mean


def _slopes(call: Call, values: Tensor) -> tuple[Tensor, Tensor]:
    """A' and B'."""
    if call.entry.op == "binary_cross_entropy":
        flat = (values * (1 - values)).clamp(min=1e-12)
        return values / flat, -1.0 / flat
    made = []
    for function in _binary(call):
        with torch.enable_grad():
            x = values.detach().clone().requires_grad_(True)
            made.append(torch.autograd.grad(function(x).sum(), x)[0])
    return made[0], made[1]


def _nodes(call: Call, x: State) -> tuple[Latent, Tensor]:
    """A variable behind the prediction and the prediction at its nodes."""
    if isinstance(x.latent, Latent) and x.nodes is not None:
        return x.latent, x.nodes
    if "variable" not in call.saved:
        call.saved["variable"] = latent(x)
    variable: Latent = call.saved["variable"]
    inside = call.entry.op == "binary_cross_entropy"
    return variable, variable.z.clamp(1e-6, 1 - 1e-6) if inside else variable.z


# -- divergence ----------------------------------------------------------------------------------


@rule("kl_div")
def divergence(call: Call) -> State:
    """E[y (ln y - x)] for a target y (or its logarithm) and the logarithm x of a prediction."""
    x, y = _pair(call)
    spread, entropy = _target_probability(call, y)
    mean = entropy - spread.mean * x.mean
    made = replace(product(spread, x), axes=broadcast_axes(x, y), mean=mean)
    return _settled(call, made)


@divergence.gradient
def _(call: Call, upstream: State) -> Gradients:
    x, y = _pair(call)
    number = call.id(0, "input")
    assert number is not None
    made = _spread(call, upstream, _target_probability(call, y)[0].scaled(-1.0))
    return {number: reduced(replace(made, axes=broadcast_axes(x, y)), x, broadcast_axes(x, y))}


def _target_probability(call: Call, y: State) -> tuple[State, Tensor]:
    """The law of a target probability and its E[y ln y], of its content where that is known."""
    logarithmic = bool(call.entry.kwargs.get("log_target", False))
    ref = call.argument(1, "target")
    content = call.value(ref).content
    if content is not None and not content.is_meta:
        known = content.double()
        plain = State.of_content(y.axes, known.exp() if logarithmic else known)
        entropy = State.of_content(y.axes, known.exp() * known if logarithmic else torch.xlogy(known, known))
        return plain, entropy.mean
    variable = latent(y)
    values = variable.z.exp() if logarithmic else variable.z.clamp(min=0)
    return variable.state(values), variable.expect(values * variable.z if logarithmic else torch.xlogy(values, values))


# -- common --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _TargetAdjoint(Adjoint):
    """The way back from a loss to a chain of elementwise functions: a gradient at the mean target, and what the
    target's spread adds.
    """

    fixed: Tensor
    varying: Tensor
    spread: State
    scale: State

    def state(self, nodes: Tensor) -> State:
        """The gradient whose derivative from the chain's end has these values at the nodes."""
        about = replace(self.variable.state(self.fixed * nodes), latent=None, nodes=None)
        other = product(self.variable.state(self.varying * nodes), self.spread)
        made = product(about.plus(replace(other, axes=about.axes)), self.scale)
        return replace(made, axes=about.axes, latent=self, nodes=nodes)


def _joint(call: Call, upstream: State, y: State, fixed: Tensor, varying: Tensor) -> State:
    """The gradient fixed + (y - E[y]) varying, of functions of one variable."""
    x = call.input
    variable, _ = _nodes(call, x)
    spread = replace(y, mean=y.mean * 0, latent=None, nodes=None, covariance=None, amplitude=None)
    scale = replace(upstream, latent=None, nodes=None, covariance=None)
    if reduction(call) != "none":
        scalar = _scalar(call, upstream)
        scale = State.of(x.axes, float(scalar.mean), constant=float(scalar.variance))
    adjoint = _TargetAdjoint(variable, upstream, fixed, varying, spread, scale)
    return replace(adjoint.state(torch.ones_like(fixed)), axes=x.axes)


def _pair(call: Call) -> tuple[State, State]:
    """Prediction and target.

    Raises:
        NotImplementedError: the target is no floating-point tensor with a law.
    """
    y = call.state(1, "target")
    if y is None:
        raise NotImplementedError(f"the target of {call.entry.op} has no law")
    return call.input, y


def broadcast_axes(x: State, y: State) -> Axes:
    """Axes of the loss before its reduction."""
    return broadcast(x.axes, y.axes)


def _difference(call: Call, x: State, y: State) -> State:
    plain = replace(x, latent=None, nodes=None)
    return replace(plain.plus(y.scaled(-1.0)), axes=broadcast_axes(x, y))


def _settled(call: Call, state: State) -> State:
    """The loss from its law at each element."""
    how = reduction(call)
    if how == "none":
        return replace(state, axes=call.axes[0], latent=None, nodes=None)
    axes = state.axes
    n, s = axes.count(Role.SAMPLE), axes.count(Role.SITE)
    count = n * s * axes.count(Role.CHANNEL)
    c = max(count // (n * s), 1)
    spread = sum(
        float(part.expand(state.shape).mean()) / k
        for part, k in zip(state.fields[1:], (c, c * n, c * s, count), strict=True)
    )
    scale = _total(call, count, n)
    return State.of(call.axes[0], float(state.mean.expand(state.shape).mean()) * scale, residual=spread * scale**2)


def _total(call: Call, count: int, samples: int) -> float:
    how = reduction(call)
    if how == "batchmean":
        return count / (call.input.axes.shape[0] or 1)
    return float(count) if how == "sum" else 1.0


def _scalar(call: Call, upstream: State) -> State:
    """The gradient that reaches one element of the loss."""
    count = 1
    for size in broadcast_axes(*_pair(call)).shape:
        count *= size
    return replace(upstream, latent=None, nodes=None).scaled(_total(call, count, 1) / count)


def _spread(call: Call, upstream: State, slope: State) -> State:
    """The gradient of each element, from that of the reduced loss."""
    axes = broadcast_axes(*_pair(call))
    slope = replace(slope, axes=axes, latent=None, nodes=None)
    if reduction(call) == "none":
        return replace(product(replace(upstream, latent=None, nodes=None), slope), axes=axes)
    return replace(scaled_by(_scalar(call, upstream), slope), axes=axes)
