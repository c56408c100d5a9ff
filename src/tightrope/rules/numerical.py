"""The rule for operations without one: run the real operation on Gaussian channels of the predicted law.

Draws come from a generator of its own, seeded by the operation's place on the tape: a forecast is the same every
time and the global random state stays untouched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from tightrope.roles import Axes, Axis, Role
from tightrope.rules.registry import Call, Gradients
from tightrope.rules.state import DTYPE, State
from tightrope.tape.tape import Entry, Ref

SAMPLES = 256
"""Samples that are aimed at; several batches are drawn where the step's own is smaller."""
ELEMENTS = 1 << 20
"""Largest number of elements of one batch of draws, over all operands and results."""
REPEATS = 16
"""Most batches that are drawn."""
CLEAR = 0.5
"""Least share of an estimated map's spread that is no chance, for the map to be kept."""

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
                (y, _draw(state, call.axes[i], plan, (repeat, 1, i)))
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
    floats = tuple(dict.fromkeys(_random_operands(call, call.entry.inputs)))
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


def _random_operands(call: Call, numbers: Sequence[int]) -> Iterator[int]:
    """Floating-point tensors behind some operands.

    What has no law of its own (indices, masks, complex numbers) is computed anew from the draws of what it came from.

    Raises:
        NotImplementedError: an operand's content is not known and nothing made it.
    """
    for n in numbers:
        value = call.tape.values[n]
        if n in call.states:
            yield n
        elif value.content is None or value.content.is_meta:
            if value.producer is None or value.is_float:
                raise NotImplementedError(f"{call.entry.op} reads a tensor whose content is not known")
            yield from _random_operands(call, call.maker(n).inputs)


def _draw_all(call: Call, plan: _Plan, repeat: int) -> dict[int, Tensor]:
    return {n: _draw(call.states[n], call.states[n].axes, plan, (repeat, 0, n)) for n in plan.floats}


def _draw(state: State, axes: Axes, plan: _Plan, key: tuple[int, int, int]) -> Tensor:
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
        seed = Random(repr((plan.seed, kind, number, offset, again))).getrandbits(31)
        generator = torch.Generator().manual_seed(seed)
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
    made: dict[int, Tensor] = {}
    return _performed(call, call.entry, draws, made)


def _performed(call: Call, entry: Entry, draws: dict[int, Tensor], made: dict[int, Tensor]) -> list[Tensor]:
    """Results of an entry; operands without a law are made first, by the entries that made them."""

    def fill(x: Any) -> Any:
        if not isinstance(x, Ref):
            return torch.device("cpu") if isinstance(x, torch.device) else x
        if x.id in draws:
            return draws[x.id]
        content = call.tape.values[x.id].content
        if content is not None and not content.is_meta:
            return content.to("cpu")
        if x.id not in made:
            maker = call.maker(x.id)
            made.update(zip(maker.outputs, _performed(call, maker, draws, made), strict=True))
        return made[x.id]

    args, kwargs = tree_map(fill, (entry.args, dict(entry.kwargs)))
    kwargs.pop("out", None)
    if "inplace" in kwargs:
        kwargs["inplace"] = False
    if entry.inplace and args and isinstance(args[0], Tensor):
        args = (args[0].clone(), *args[1:])
    result = entry.function(*args, **kwargs)
    produced = args[0] if entry.op == "setitem" else result
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
    sample, site, residual = sample * scale, site * scale, residual * scale
    if s > 1 and n > 1:
        mean, site = _mean_map(x, over, mean, site)
        uneven = _unevenness(x, over, sites, n)
        sample, residual = sample * uneven, residual * uneven
    fields = (mean, zero, sample, site, residual)
    return State.from_fields(axes, (_settled(field[0], axes) for field in fields), width=width)


def _mean_map(x: Tensor, over: list[int], mean: Tensor, site: Tensor) -> tuple[Tensor, Tensor]:
    """The mean at each site where the draws tell it from chance, and the `site` variance that is left.

    A map's spread is the true one plus the error of a mean over n draws; what exceeds the latter is kept (James-Stein).
    """
    at = x.mean(over, keepdim=True)
    spread = float((at - mean).square().mean())
    keep = float(site.mean()) / spread if spread > 0 else 0.0
    if keep < CLEAR:
        return mean, site
    return mean + keep * (at - mean), site * (1 - keep)


def _unevenness(x: Tensor, over: list[int], sites: list[int], n: int) -> Tensor:
    """Variance at each site over its average, as far as it differs by more than chance: 2 / n of a Gaussian's."""
    rest = [d for d in range(x.ndim) if d not in (*over, *sites)]
    at = x.var(over, unbiased=False, keepdim=True)
    at = at.mean(rest, keepdim=True) if rest else at
    whole = at.mean(sites, keepdim=True)
    ratio = at / whole.clamp(min=1e-300)
    channels = x.numel() // (n * math.prod(x.shape[d] for d in sites))
    spread = float((ratio - 1).square().mean())
    keep = 1 - 2 / (n * channels) / spread if spread > 0 else 0.0
    return 1 + keep * (ratio - 1) if keep > CLEAR and bool((whole > 0).all()) else torch.ones_like(whole)


def _settled(field: Tensor, axes: Axes) -> Tensor:
    """A field with one dimension an axis, at the dimensions of a state: what is the same all along one stays 1."""
    sizes: list[int] = []
    place = 0
    for dim in axes.dims:
        held = field.shape[place : place + len(dim)]
        wanted = [1 if axis.role is Role.SAMPLE else axis.size for axis in dim]
        if list(held) != wanted and any(size > 1 for size in held):  # resolved over a part of the dimension
            shape = [*field.shape[:place], *wanted, *field.shape[place + len(dim) :]]
            field = field.expand(shape)
            held = field.shape[place : place + len(dim)]
        sizes.append(math.prod(held))
        place += len(dim)
    return field.reshape(sizes)


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
