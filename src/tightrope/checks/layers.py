"""The weight layers of a step and the tensors that the whole signal passes: what the checks on scale look at."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from tightrope.checks.trace import CHANCE, JOINS, NORMS, VIEWS, is_weighted, producers, reads, weight_of
from tightrope.law import Law
from tightrope.rules.functions import CHAINING, LINEAR
from tightrope.study import Study
from tightrope.tape.tape import Entry, Kind, Tape, Value

_PRIME = (1 << 61) - 1
_PASS = VIEWS | CHANCE | JOINS
RECURRENT = frozenset(
    ("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
)


@dataclass(frozen=True)
class Layer:
    """One use of a weight.

    Attributes:
        entry: the call.
        weight: the weight's value.
        fan_in: numbers that each output sums over.
        gain: fan_in * E[w^2], what it multiplies E[x^2] by.
        activation: the elementwise function that made its input; None for data, sums and normalised tensors.
        asked: the gain that keeps E[z^2] at 1 behind that activation, 1 / E[f(z)^2]; 1 without one.
        normalised: whether a normaliser reads its output, so that its scale has no effect.
        branch: whether its output is added to another signal, or multiplies one, or feeds attention.
        head: whether no other weight reads what comes of its output.
    """

    entry: Entry
    weight: Value
    fan_in: int
    gain: float
    activation: Entry | None
    asked: float
    normalised: bool
    branch: bool
    head: bool

    @property
    def excess(self) -> float:
        """ln of the factor by which the layer multiplies the signal's scale, over what the law asks."""
        return 0.5 * math.log(self.gain / self.asked) if self.gain > 0 else -math.inf


def layers(tape: Tape, laws: Mapping[int, Law]) -> list[Layer]:
    """All uses of weights, in the order of the tape; recurrent cells, whose scale repeats, are left out.

    Args:
        tape: the recorded step.
        laws: of the weights, by value id; a weight without one is left out.
    """
    made = producers(tape)
    found = []
    for entry in tape.entries:
        number = weight_of(tape, made, entry)
        if number is None or entry.op in RECURRENT or entry.op in ("embedding",):
            continue
        weight = tape.values[number]
        fan = _fan_in(entry, weight)
        moment = laws.get(number)
        if not fan or moment is None or not moment.finite:
            continue
        activation = _activation(tape, made, entry)
        asked = 1.0 / _energy(activation) if activation is not None else 1.0
        after = list(reads(tape, entry.outputs[0], _PASS))
        found.append(
            Layer(
                entry,
                weight,
                fan,
                fan * moment.second_moment,
                activation,
                asked,
                _normalised(tape, entry),
                _branches(tape, made, entry, after),
                not _leads_on(tape, made, entry),
            )
        )
    return found


def _fan_in(entry: Entry, weight: Value) -> int:
    """Numbers that each output element sums over."""
    if entry.op.startswith("conv_transpose"):
        stride = math.prod(_tuple(entry.argument(3, "stride", 1), len(weight.shape) - 2))
        return max(weight.shape[0] * math.prod(weight.shape[2:]) // max(stride, 1), 1)
    if entry.op.startswith("conv") or entry.op in ("linear", "bilinear"):
        return math.prod(weight.shape[1:])
    return weight.shape[-2]


def _tuple(value: object, rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value)  # type: ignore[arg-type]


def _activation(tape: Tape, made: dict[int, Entry], entry: Entry) -> Entry | None:
    """The curved elementwise function behind a layer's data, past views, dropout and pooling."""
    data = [n for n in entry.inputs if tape.values[n].kind is Kind.RESULT]
    number = data[0] if data else entry.inputs[0]
    while number in made and made[number].op in _PASS | {"max_pool1d", "max_pool2d"} and made[number].inputs:
        number = made[number].inputs[0]
    source = made.get(number)
    curved = source is not None and source.op in CHAINING and source.op not in LINEAR and len(source.inputs) == 1
    return source if curved else None


def evaluate(entry: Entry, z: torch.Tensor) -> torch.Tensor:
    """An elementwise call's function at other values of its argument, out of place.

    Raises:
        RuntimeError: it does not act on each element by itself.
    """
    kwargs = {key: value for key, value in entry.kwargs.items() if key not in ("inplace", "out", "input")}
    args = () if entry.op == "rrelu" else entry.args[1:]
    result = entry.function(z.clone(), *args, **({} if entry.op == "rrelu" else kwargs))
    if not isinstance(result, torch.Tensor) or result.shape != z.shape:
        raise RuntimeError(f"{entry.op} does not act on each element by itself")
    return result


def _energy(entry: Entry) -> float:
    """E[f(z)^2] for a standard normal z, of the operation itself; 1 where that cannot be said."""
    z = torch.linspace(-8.5, 8.5, 20001, dtype=torch.float64)
    weight = torch.exp(-z.square() / 2)
    try:
        energy = float((evaluate(entry, z).square() * weight).sum() / weight.sum())
    except (RuntimeError, TypeError):
        return 1.0
    return energy if math.isfinite(energy) and energy > 0 else 1.0


def _normalised(tape: Tape, entry: Entry) -> bool:
    """Whether a normaliser, fused or written out, is all that reads a layer's output."""
    after = list(reads(tape, entry.outputs[0], _PASS | {"neg"}))
    return bool(after) and all(reader.op in NORMS or reader.op in ("pow", "square", "var", "norm") for reader in after)


def _branches(tape: Tape, made: dict[int, Entry], entry: Entry, after: list[Entry]) -> bool:
    for reader in after:
        results = [n for n in reader.inputs if tape.values[n].kind in (Kind.RESULT, Kind.INPUT)]
        if reader.op in ("add", "sub", "mul", "matmul", "bmm", "baddbmm", "scaled_dot_product_attention", "einsum"):
            if len(results) > 1 or reader.op == "einsum":
                return True
            if reader.op in ("mul", "add") and _branches(
                tape, made, entry, list(reads(tape, reader.outputs[0], _PASS))
            ):
                return True
    return False


def _leads_on(tape: Tape, made: dict[int, Entry], entry: Entry) -> bool:
    """Whether another weight reads what comes of a call."""
    seen: set[int] = set()
    waiting = list(entry.outputs)
    while waiting:
        for reader in tape.readers.get(waiting.pop(), []):
            if reader.index in seen:
                continue
            seen.add(reader.index)
            if is_weighted(tape, reader):
                return True
            waiting.extend(reader.outputs)
    return False


@dataclass(frozen=True)
class Cut:
    """A result that every way from the data to the net's last weights passes: if the signal dies here, it is dead.

    Attributes:
        entry: the call that made it.
        value: its number on the tape.
    """

    entry: Entry
    value: int


def cuts(study: Study) -> list[Cut]:
    """The tensors that the whole signal passes, from the first weight's output to the last weight's input.

    What only a normaliser reads is left out: its scale has no effect, and its gradient is in units of that scale.
    A tensor is a cut when the number of ways through it equals the number of all ways (counted modulo a prime).
    """
    tape, made = study.tape, producers(study.tape)
    uses = [e for e in tape.entries if is_weighted(tape, e) or e.op == "embedding"]
    if not uses:
        return []
    last = [e for e in uses if not _leads_on(tape, made, e)]
    ends = {number for e in last for number in _data(tape, e)}
    reach = _reaching(tape, ends)
    weighed: set[int] = set()
    for entry in tape.entries:
        if entry in uses or weighed.intersection(entry.inputs):
            weighed.update(entry.outputs)
    starts = {number for e in uses for number in _data(tape, e) if number not in weighed} & reach
    # A stream that begins with the data themselves passes its first branch by: the ways start where the data enter.
    roots = {n for n in tape.ancestors(*starts) & reach if tape.values[n].producer is None and not _fixed(tape, n)}
    forward = dict.fromkeys(roots or starts, 1)
    for entry in tape.entries:
        ways = sum(forward.get(n, 0) for n in entry.inputs if n in reach) % _PRIME
        if ways:
            forward.update({n: ways for n in entry.outputs if n in reach})
    backward = {n: 1 for n in ends if n in forward}
    for entry in reversed(tape.entries):
        ways = sum(backward.get(n, 0) for n in entry.outputs) % _PRIME
        if ways:
            for n in entry.inputs:
                if n in forward and n in reach:
                    backward[n] = (backward.get(n, 0) + ways) % _PRIME
    total = sum(forward[n] for n in ends if n in forward) % _PRIME
    found = []
    for entry in tape.entries:
        if total == 0 or _normalised(tape, entry):
            continue
        for n in entry.outputs:
            if n in forward and tape.values[n].is_float and forward[n] * backward.get(n, 0) % _PRIME == total:
                found.append(Cut(entry, n))
    return found


def _data(tape: Tape, entry: Entry) -> list[int]:
    """Operands that are no parameters."""
    return [n for n in dict.fromkeys(entry.inputs) if not _fixed(tape, n)]


def _reaching(tape: Tape, ends: set[int]) -> set[int]:
    wanted = set(ends)
    for entry in reversed(tape.entries):
        if wanted.intersection(entry.outputs):
            wanted.update(n for n in entry.inputs if not _fixed(tape, n))
    return wanted


def _fixed(tape: Tape, number: int) -> bool:
    """Whether a value is the same for all samples: parameters, what is made of them alone, buffers."""
    return number in tape.parametric or tape.values[number].kind is Kind.BUFFER


__all__ = ["Cut", "Layer", "cuts", "evaluate", "layers"]
