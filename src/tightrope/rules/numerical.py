"""The rule for operations without one: run the real operation on Gaussian channels of the predicted law.

Draws come from a generator of its own, seeded by the operation's place on the tape: a forecast is the same every
time and the global random state stays untouched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from tightrope.roles import Axes, Axis, Role
from tightrope.rules.registry import Call, Gradients
from tightrope.rules.state import DTYPE, State, state_shape
from tightrope.tape.tape import Ref

SAMPLES = 256
"""Samples that are aimed at; several batches are drawn where the step's own is smaller."""
ELEMENTS = 1 << 20
"""Largest number of elements of one batch of draws, over all operands and results."""
REPEATS = 16
"""Most batches that are drawn."""

_ROLES = {
    "constant": (Role.CHANNEL,),
    "sample": (Role.SAMPLE, Role.CHANNEL),
    "site": (Role.SITE, Role.CHANNEL),
    "residual": (Role.SAMPLE, Role.SITE, Role.CHANNEL),
}


def forward(call: Call) -> list[State]:
    """States of the outputs, estimated.

    Raises:
        NotImplementedError: an operand is unknown, or the operation is too large or refuses its draws.
    """
    plan = _plan(call)
    found: list[list[Tensor]] = []
    with quiet(call), torch.no_grad():
        for repeat in range(plan.repeats):
            found.append(run(call, _draw_all(call, plan, repeat)))
    call.saved["plan"] = plan
    floats = [i for i, n in enumerate(call.entry.outputs) if call.tape.values[n].is_float]
    width = max((call.states[n].width for n in plan.floats), default=0.0)
    return [estimated([batch[i] for batch in found], call.axes[i], plan.samples, width) for i in floats]


def backward(call: Call, upstream: list[State | None]) -> Gradients:
    """Gradient states of the inputs, estimated on the same draws.

    Args:
        call: the operation.
        upstream: gradient of each output.
    """
    plan: _Plan = call.saved["plan"] if "plan" in call.saved else _plan(call)
    found: dict[int, list[Tensor]] = {n: [] for n in plan.floats}
    with quiet(call), torch.enable_grad():
        for repeat in range(plan.repeats):
            draws = {n: x.requires_grad_(True) for n, x in _draw_all(call, plan, repeat).items()}
            results = run(call, draws)
            pairs = [
                (y, _draw(state, call.axes[i], plan, (repeat, "up", i)))
                for i, (y, state) in enumerate(zip(results, upstream, strict=True))
                if state is not None and y.requires_grad
            ]
            if not pairs:
                return {}
            ids = list(draws)
            grads = torch.autograd.grad(
                [y for y, _ in pairs], [draws[n] for n in ids], [g for _, g in pairs], allow_unused=True
            )
            for n, g in zip(ids, grads, strict=True):
                if g is not None:
                    found[n].append(g)
    return {n: _gradient(call, n, batches, plan) for n, batches in found.items() if batches}


# -- draws ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """How an operation is simulated: its random operands, the batch drawn and how often."""

    floats: tuple[int, ...]
    samples: int | None
    batch: int | None
    repeats: int
    seed: int


@contextmanager
def quiet(call: Call) -> Iterator[None]:
    """The operation's own randomness is the same each time and leaves the global state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(call.entry.index + 1)
        try:
            yield
        except NotImplementedError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise NotImplementedError(f"{call.entry.op} cannot be simulated: {reason}") from error


def _plan(call: Call) -> _Plan:
    numbers = list(dict.fromkeys(call.entry.inputs))
    floats = tuple(n for n in numbers if n in call.states)
    for n in numbers:
        value = call.tape.values[n]
        if n not in call.states and (value.content is None or value.content.is_meta):
            raise NotImplementedError(f"{call.entry.op} reads a tensor whose content is not known")
    shapes = [call.tape.values[n].shape for n in (*floats, *call.entry.outputs)]
    size = sum(math.prod(shape) for shape in shapes)
    held = {
        a.size for n in floats for dim in call.states[n].axes.dims for a in dim if a.role is Role.SAMPLE and a.size > 1
    }
    samples = held.pop() if len(held) == 1 else None
    batch = samples
    if size > ELEMENTS and samples is not None:
        batch = max(2, int(samples * ELEMENTS / size))
    if size * (batch or 1) / (samples or 1) > 16 * ELEMENTS:
        raise NotImplementedError(f"{call.entry.op} has no rule and is too large to simulate")
    per_batch = max(size * (batch or 1) / (samples or 1), 1)
    repeats = max(1, min(REPEATS, math.ceil(SAMPLES / (batch or 1)), int(4 * ELEMENTS / per_batch)))
    return _Plan(floats, samples, batch, repeats, call.entry.index)


def _draw_all(call: Call, plan: _Plan, repeat: int) -> dict[int, Tensor]:
    return {n: _draw(call.states[n], call.states[n].axes, plan, (repeat, "in", n)) for n in plan.floats}


def _draw(state: State, axes: Axes, plan: _Plan, key: tuple[int, str, int]) -> Tensor:
    """A tensor with this law; what does not depend on samples is the same in all batches."""
    repeat, kind, number = key
    layout = [_sized(axis, plan) for dim in axes.dims for axis in dim]
    shape = [math.prod(_sized(axis, plan).size for axis in dim) for dim in axes.dims]
    total = _laid(state.mean, state, axes).expand([axis.size for axis in layout])
    for offset, (name, roles) in enumerate(_ROLES.items()):
        field = getattr(state, name)
        if not bool((field != 0).any()):
            continue
        again = repeat if Role.SAMPLE in roles else 0
        generator = torch.Generator().manual_seed(hash((plan.seed, kind, number, offset, again)) % (1 << 62))
        sizes = [axis.size if axis.role in roles else 1 for axis in layout]
        noise = torch.randn(sizes, generator=generator, dtype=DTYPE)
        total = total + noise * _laid(field, state, axes).clamp(min=0).sqrt()
    return total.reshape(shape).float().clone()


def _sized(axis: Axis, plan: _Plan) -> Axis:
    return Axis(axis.role, plan.batch or axis.size) if axis.role is Role.SAMPLE and axis.size == plan.samples else axis


def _laid(field: Tensor, state: State, axes: Axes) -> Tensor:
    """A field with one dimension an axis, samples of length 1."""
    sizes = [1 if axis.role is Role.SAMPLE else axis.size for dim in axes.dims for axis in dim]
    return field.expand(state.shape).reshape(sizes)


def run(call: Call, draws: dict[int, Tensor]) -> list[Tensor]:
    """The operation itself on the draws, out of place."""

    def fill(x: Any) -> Any:
        if isinstance(x, Ref):
            content = draws.get(x.id)
            return call.tape.values[x.id].content if content is None else content
        return torch.device("cpu") if isinstance(x, torch.device) else x

    args, kwargs = tree_map(fill, (call.entry.args, dict(call.entry.kwargs)))
    kwargs.pop("out", None)
    if "inplace" in kwargs:
        kwargs["inplace"] = False
    if call.entry.inplace and args and isinstance(args[0], Tensor):
        args = (args[0].clone(), *args[1:])
    result = call.entry.function(*args, **kwargs)
    produced = args[0] if call.entry.op == "setitem" else result
    return [t for t in tree_flatten(produced)[0] if isinstance(t, Tensor)]


# -- estimates -----------------------------------------------------------------------------------


def estimated(batches: list[Tensor], axes: Axes, samples: int | None, width: float = 0.0) -> State:
    """The state of a tensor from batches of it: a mean for each channel, components averaged.

    Args:
        batches: draws of the tensor; their sample axis may be shorter or longer than that of `axes`.
        axes: axes of the real tensor.
        samples: length of the real sample axis.
        width: band to carry on.

    Raises:
        NotImplementedError: a draw has another shape than the real tensor.
    """
    layout = [axis for dim in axes.dims for axis in dim]
    count = math.prod(axis.size for axis in layout)
    stacked = []
    for x in batches:
        short = x.shape[0] if x.ndim else 1
        sizes = [axis.size for axis in layout]
        if x.numel() != count:
            places = [i for i, axis in enumerate(layout) if axis.role is Role.SAMPLE and axis.size == samples]
            if len(places) != 1 or x.numel() * layout[places[0]].size % count:
                raise NotImplementedError(
                    f"a draw has shape {tuple(x.shape)} with {short} samples instead of {axes.shape}"
                )
            sizes[places[0]] = x.numel() * layout[places[0]].size // count
        stacked.append(x.detach().to(DTYPE).reshape(sizes))
    x = torch.stack(stacked)
    over = [0] + [i + 1 for i, axis in enumerate(layout) if axis.role is Role.SAMPLE]
    sites = [i + 1 for i, axis in enumerate(layout) if axis.role is Role.SITE and axis.size > 1]
    return _components(x, over, sites, axes, width)


def _components(x: Tensor, over: list[int], sites: list[int], axes: Axes, width: float) -> State:
    n, s = math.prod(x.shape[d] for d in over), math.prod(x.shape[d] for d in sites)
    mean = x.mean([*over, *sites], keepdim=True)
    spread = x - mean
    inner = spread.square().mean([*over, *sites], keepdim=True)
    zero = torch.zeros_like(inner)
    site = sample = zero
    if s > 1:
        across = spread.mean(sites, keepdim=True).square().mean(over, keepdim=True)
        sample = ((s * across - inner) / (s - 1)).clamp(min=0) if n > 1 else zero
        at = spread.mean(over, keepdim=True).square().mean(sites, keepdim=True)
        site = ((n * at - inner) / max(n - 1, 1)).clamp(min=0) if n > 1 else inner
    elif n > 1:
        sample = inner
    residual = (inner - sample - site).clamp(min=0)
    total = sample + site + residual
    scale = torch.where(total > 0, inner / total.clamp(min=1e-300), zero)
    shape = state_shape(axes)

    def settle(field: Tensor) -> Tensor:
        sizes = [1 if a.role is Role.SAMPLE else a.size for dim in axes.dims for a in dim]
        pure = all(len({a.role for a in dim if a.role is not Role.SAMPLE}) <= 1 for dim in axes.dims)
        if not pure:
            return field[0].expand(sizes).reshape(shape)
        kept = [math.prod(1 if a.role is not Role.CHANNEL else a.size for a in dim) for dim in axes.dims]
        return field.reshape(kept)

    return State.of(
        axes, settle(mean), sample=settle(sample * scale), site=settle(site * scale), residual=settle(residual * scale),
        width=width,
    )  # fmt: skip


def _gradient(call: Call, number: int, batches: list[Tensor], plan: _Plan) -> State:
    """The gradient of an operand; one that has no samples sums over the batch, of which a part was drawn."""
    state = call.states[number]
    if any(axis.role is Role.SAMPLE and axis.size > 1 for dim in state.axes.dims for axis in dim):
        return estimated(batches, state.axes, plan.samples, state.width)
    grow = (plan.samples or 1) / (plan.batch or 1)
    x = torch.stack(batches).to(DTYPE)
    mean = x.mean(0) * grow if len(batches) > 1 else torch.zeros_like(x[0])
    variance = x.var(0, unbiased=False) * grow if len(batches) > 1 else x[0].square() * grow
    return State.of(state.axes, mean.reshape(state.shape), residual=variance.reshape(state.shape), width=state.width)
