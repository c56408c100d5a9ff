"""Elementwise operations: one rule for all, the operation itself by quadrature.

A chain of elementwise operations on one variable (`x * sigmoid(x)`, a GELU spelled out) is one function of
it: its values at the quadrature nodes travel along the chain, and so do the derivatives on the way back.
Operations on several independent variables are sums and products of laws.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from tightrope.roles import Axes, Role
from tightrope.rules.adjoint import Adjoint
from tightrope.rules.amplitude import recalled
from tightrope.rules.band import coherent
from tightrope.rules.broadcast import reduced
from tightrope.rules.expectation import Latent, latent, product
from tightrope.rules.functions import BENDS, BENT, CHAINING, CURVED, DISTANCES, LINEAR, POOLING, ROOTS, STEEP, kinks
from tightrope.rules.registry import Call, Gradients, rule
from tightrope.rules.skewed import convolved
from tightrope.rules.state import State
from tightrope.tape.tape import Kind, Ref


@rule(*CURVED, *LINEAR)
def elementwise(call: Call) -> State:
    """Any elementwise operation.

    One variable (and known tensors): the operation at the variable's quadrature nodes. Several variables: sums and
    products of independent laws.

    Raises:
        NotImplementedError: another operation on several variables, or an operand whose content is unknown.
    """
    numbers = _tensors(call)
    random = [n for n in numbers if not _known(call.states[n])]
    if not random:
        return State.of(call.axes[0], _evaluate(call, {n: call.states[n].mean for n in numbers}))
    if call.entry.op in LINEAR and not _chained(call, random):
        return _linear(call, random)
    variable = _variable(call, random)
    values = {n: _nodes(call.states[n], variable, n) for n in numbers}
    # Outside its domain a function has no value; the Gaussian's tail there stands for nothing.
    output = torch.nan_to_num(_evaluate(call, values), nan=0.0, posinf=math.inf, neginf=-math.inf)
    state = replace(variable.state(output), axes=call.axes[0])
    call.saved["variable"], call.saved["random"] = variable, random
    return replace(state, latent=variable, nodes=output) if _goes_on(call) else state


@elementwise.gradient
def _(call: Call, upstream: State) -> Gradients:
    numbers = _tensors(call)
    variable = call.saved.get("variable")
    if variable is None:
        return _linear_gradients(call, upstream, numbers)
    if upstream.gain is not None:
        upstream = replace(upstream, gain=recalled(upstream.gain, call.output.memory))
    # What gradient independence leaves out is of the order of 1 / channels a layer, and has the same sign in all.
    channels = max(call.axes[0].count(Role.CHANNEL), 1)
    upstream = replace(upstream, width=coherent(upstream.width, 1 / channels))
    held = upstream.latent
    inside = isinstance(held, Adjoint) and held.variable is variable
    adjoint = held if inside and isinstance(held, Adjoint) else Adjoint(variable, upstream)
    found: Gradients = {}
    slopes = _slopes(call, variable, numbers)
    for number, slope in slopes.items():
        nodes = slope * upstream.nodes if inside and upstream.nodes is not None else slope
        made = adjoint.state(nodes)
        if number in call.saved["random"]:
            found[number] = replace(made, axes=call.states[number].axes)
        else:
            found[number] = reduced(replace(made, latent=None, nodes=None), call.states[number], call.axes[0])
    return found


# -- one variable --------------------------------------------------------------------------------


def _tensors(call: Call) -> list[int]:
    """Ids of the floating-point tensor arguments, once each."""
    return [n for n in dict.fromkeys(call.entry.inputs) if n in call.states]


def _known(state: State) -> bool:
    return state.latent is None and state.exact


def _chained(call: Call, random: list[int]) -> bool:
    """Whether a linear operation stands inside a chain: its operands, or its result, meet again."""
    if len(call.entry.inputs) > len(set(call.entry.inputs)):
        return True
    variables = [call.states[n].latent or call.latents.get(n) for n in random]
    if len(random) > 1:  # a gate times a value is no chain, unless both come from one variable
        return isinstance(variables[0], Latent) and all(v is variables[0] for v in variables)
    if isinstance(call.states[random[0]].latent, Latent):
        return _goes_on(call)
    return _goes_on(call) and _forks(call, random[0])


def _forks(call: Call, number: int) -> bool:
    return sum(entry.op in CHAINING for entry in call.readers(number)) > 1


def _goes_on(call: Call) -> bool:
    return any(entry.op in CHAINING for number in call.entry.outputs for entry in call.readers(number))


def _variable(call: Call, random: list[int]) -> Latent:
    """The one variable of which all random operands are functions.

    Raises:
        NotImplementedError: there are several.
    """
    held = {id(call.states[n].latent): call.states[n].latent for n in random}
    variables = [v for v in held.values() if isinstance(v, Latent)]
    free = [n for n in random if not isinstance(call.states[n].latent, Latent)]
    if len(variables) == 1 and all(call.latents.get(n) is variables[0] for n in free):
        return variables[0]
    if variables or len(free) != 1:
        raise NotImplementedError(f"{call.entry.op} of several random tensors")
    number = free[0]
    if number not in call.latents:
        edges = {edge for entry in call.readers(number) for edge in kinks(entry)} | set(kinks(call.entry))
        bent = any(entry.op in BENT for entry in (call.entry, *call.readers(number)))
        if bent and float(call.states[number].variance.max()) > STEEP**2:
            edges.update(BENDS)
        rooted = call.entry.op in ROOTS or _rooted(call, number)
        made = latent(call.states[number], sorted(edges), charted=_alike(call, number), positive=rooted)
        if not _forks(call, number):
            return made
        call.latents[number] = made
    found = call.latents[number]
    assert isinstance(found, Latent)
    return found


def _rooted(call: Call, number: int) -> bool:
    """Whether a root or a logarithm is taken of a value, or of the value and a number."""
    readers = call.readers(number)
    shifted = [later for entry in readers if entry.op == "add" for n in entry.outputs for later in call.readers(n)]
    return any(entry.op in ROOTS for entry in (*readers, *shifted))


def _alike(call: Call, number: int) -> bool:
    """Whether a chain of elementwise operations on a value is one function for all its elements."""
    pending, inside = [number], {number}
    while pending:
        for entry in call.readers(pending.pop()):
            if entry.op in POOLING or entry.op in DISTANCES:
                return False
            if entry.op not in CHAINING:
                continue
            if any(_differs(call, n) for n in entry.inputs if n not in inside):
                return False
            fresh = [n for n in entry.outputs if n not in inside]
            inside.update(fresh)
            pending += fresh
    return True


def _differs(call: Call, number: int) -> bool:
    """Whether a tensor is known, with other values for other elements."""
    value = call.tape.values[number]
    state = call.states.get(number)
    if value.kind is Kind.RESULT:
        return state is not None and _known(state) and not _constant(state.mean)
    return math.prod(value.shape) > 1


def _constant(field: Tensor) -> bool:
    low, high = field.aminmax()
    return bool(low == high)


def _nodes(state: State, variable: Latent, number: int) -> Tensor:
    """An operand's values at the variable's nodes."""
    if state.latent is variable and state.nodes is not None:
        return state.nodes
    if not _known(state):
        return variable.z
    if variable.chart is None:
        return state.mean.unsqueeze(-1)
    if not _constant(state.mean):
        raise NotImplementedError("a chain of functions meets a known tensor that differs between elements")
    return state.mean.reshape(-1)[0]


def _slopes(call: Call, variable: Latent, numbers: list[int]) -> dict[int, Tensor]:
    """Derivative of the operation with respect to each floating-point operand, at the nodes."""
    values = {n: _nodes(call.states[n], variable, n) for n in numbers}
    shape = torch.broadcast_shapes(*(v.shape for v in values.values()))
    values = {n: v.expand(shape).clone() for n, v in values.items()}
    with torch.enable_grad():
        for value in values.values():
            value.requires_grad_(True)
        output = _evaluate(call, values)
        if not output.requires_grad:
            return {n: torch.zeros_like(v) for n, v in values.items()}
        grads = torch.autograd.grad(output.sum(), [values[n] for n in numbers], allow_unused=True)
    none = torch.zeros(shape, dtype=output.dtype)
    return {
        n: none if g is None else torch.nan_to_num(g, nan=0.0, posinf=math.inf, neginf=-math.inf)
        for n, g in zip(numbers, grads, strict=True)
    }


def _evaluate(call: Call, values: dict[int, Tensor]) -> Tensor:
    """Run the operation itself, out of place, on given values of its floating-point operands."""
    rank = max(v.ndim for v in values.values())
    deep = any(v.ndim > len(call.states[n].mean.shape) for n, v in values.items())

    def fill(x: Any) -> Any:
        if not isinstance(x, Ref):
            return x
        if x.id in values:
            return values[x.id]
        content = call.tape.values[x.id].content
        if content is None or content.is_meta or (call.tape.samples or 0) in content.shape[:1]:
            raise NotImplementedError(f"{call.entry.op} reads a tensor whose content is not known")
        return content.unsqueeze(-1) if deep and content.ndim else content

    args, kwargs = tree_map(fill, (call.entry.args, dict(call.entry.kwargs)))
    kwargs.pop("out", None)
    kwargs.pop("rounding_mode", None)
    if "inplace" in kwargs:
        kwargs["inplace"] = False
    if call.entry.op == "prelu":
        slope = args[1] if len(args) > 1 else kwargs["weight"]
        slope = slope.reshape(-1, *[1] * (rank - 2)) if slope.numel() > 1 else slope
        return torch.where(args[0] >= 0, args[0], args[0] * slope)
    if call.entry.op == "rrelu":
        slope = (call.argument(1, "lower", 1 / 8) + call.argument(2, "upper", 1 / 3)) / 2
        return torch.nn.functional.leaky_relu(args[0], slope)
    if call.entry.inplace and args:
        shape = torch.broadcast_shapes(*(x.shape for x in args if isinstance(x, Tensor)))
        args = (args[0].expand(shape).clone(), *args[1:])
    result = call.entry.function(*args, **kwargs)
    assert isinstance(result, Tensor)
    return result


# -- several variables ---------------------------------------------------------------------------


def _operands(call: Call) -> tuple[Any, Any]:
    """Both operands of a sum or product: a state, or a number."""
    sides = []
    for position, name in ((0, "input"), (1, "other")):
        raw = call.argument(position, name, 0.0)
        sides.append(call.state(position, name) if isinstance(raw, Ref) else float(raw))
        if sides[-1] is None:
            content = call.content(position, name)
            if content is None:
                raise NotImplementedError(f"{call.entry.op} reads a tensor whose content is not known")
            sides[-1] = State.of_content(_plain(content, call.tape.samples), content)
    if call.entry.op in ("rsub", "rdiv"):
        sides.reverse()
    return sides[0], sides[1]


def _plain(content: Tensor, samples: int | None) -> Axes:
    from tightrope.roles import default_axes

    return default_axes(tuple(content.shape), samples)


def _linear(call: Call, random: list[int]) -> State:
    """Sums and products of independent laws and of numbers."""
    op, axes = call.entry.op, call.axes[0]
    if op in ("neg", "positive"):
        return replace(call.input.scaled(-1.0 if op == "neg" else 1.0), axes=axes)
    left, right = _operands(call)
    if op in ("add", "sub", "rsub"):
        sign = (-1.0 if op != "add" else 1.0) * float(call.argument(2, "alpha", 1.0))
        if sign != 1.0:
            right = right.scaled(sign) if isinstance(right, State) else right * sign
        total = _sum(left, right, axes)
        if isinstance(left, State) and isinstance(right, State) and _goes_on(call):
            total, call.saved["convolved"] = convolved(total, (call.id(0, "input"), left), (call.id(1, "other"), right))
        return total
    if op in ("div", "rdiv"):
        right = _reciprocal(right)
    if isinstance(left, State) and isinstance(right, State):
        if len(random) == 1 and left is right:
            raise NotImplementedError(f"{op} of a tensor with itself")
        return replace(product(left, right), axes=axes)
    state, number = (left, right) if isinstance(left, State) else (right, left)
    return replace(state.scaled(number), axes=axes)


def _sum(left: State | float, right: State | float, axes: Axes) -> State:
    if isinstance(left, State) and isinstance(right, State):
        return replace(left.plus(right), axes=axes)
    state, number = (left, right) if isinstance(left, State) else (right, left)
    assert isinstance(state, State) and not isinstance(number, State)
    return replace(state, axes=axes, mean=state.mean + number, latent=None, nodes=None)


def _reciprocal(right: State | float, power: int = 1) -> State | float:
    """The law of 1 / x^power; a denominator that is mostly positive is taken for positive."""
    if not isinstance(right, State):
        return 1.0 / right**power
    if right.exact:
        return replace(right, mean=1.0 / right.mean**power)
    variable = latent(right, (0.0,), positive=bool((right.mean.square() > right.variance).all()))
    return variable.state(1.0 / variable.z**power)


def _linear_gradients(call: Call, upstream: State, numbers: list[int]) -> Gradients:
    op, axes = call.entry.op, call.axes[0]
    held, nodes = upstream.latent, upstream.nodes
    upstream = replace(upstream, latent=None, nodes=None)
    if op in CURVED:  # every operand is known
        slopes = _slopes_exact(call, numbers)
        return {n: reduced(product(upstream, slope), call.states[n], axes) for n, slope in slopes.items()}
    if op in ("neg", "positive"):
        return {numbers[0]: upstream.scaled(-1.0 if op == "neg" else 1.0)}
    left, right = _operands(call)
    alpha = float(call.argument(2, "alpha", 1.0)) if op in ("add", "sub", "rsub") else 1.0
    if op == "add":
        factors: list[Any] = [1.0, alpha]
    elif op in ("sub", "rsub"):
        factors = [1.0, -alpha]
    elif op == "mul":
        factors = [right, left]
    else:
        inverse = _reciprocal(right)
        squared = _reciprocal(right, 2)
        factors = [inverse, _times(_times(left, squared), -1.0)]
    ids = [call.id(0, "input"), call.id(1, "other")]
    if op in ("rsub", "rdiv"):
        ids.reverse()
    found: Gradients = {}
    profile = call.saved.get("convolved")
    for number, factor in zip(ids, factors, strict=True):
        if number is None or number not in call.states:
            continue
        made = upstream.scaled(factor) if not isinstance(factor, State) else product(upstream, factor)
        state = reduced(replace(made, axes=axes), call.states[number], axes)
        found[number] = state if number not in found else found[number].plus(state)
        if profile is not None and profile.number == number and isinstance(held, Adjoint):
            found[number] = replace(profile.gradient(held, nodes), axes=call.states[number].axes)
    return found


def _times(left: Any, right: Any) -> Any:
    if isinstance(left, State):
        return product(left, right) if isinstance(right, State) else left.scaled(right)
    return right.scaled(left) if isinstance(right, State) else left * right


def _slopes_exact(call: Call, numbers: list[int]) -> dict[int, State]:
    values = {n: call.states[n].mean.clone() for n in numbers}
    with torch.enable_grad():
        for value in values.values():
            value.requires_grad_(True)
        output = _evaluate(call, values)
        grads = torch.autograd.grad(output.sum(), list(values.values()), allow_unused=True)
    return {
        n: State.of(call.states[n].axes, torch.zeros(()) if g is None else g)
        for n, g in zip(numbers, grads, strict=True)
    }
