"""The tape: every call that one training step made, in order, as plain data.

A tensor is a `Value`, single-assignment: an in-place call makes a new value, so the tape reads like a
program without side effects. A call is an `Entry`; in its `args` and `kwargs` a tensor stands as `Ref`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any

import torch

from tightrope.tape.source import Location


class Kind(Enum):
    """Where a value comes from."""

    INPUT = "input"  # floating-point data handed to the step
    KNOWN = "known"  # content that is fixed before any weight is drawn: indices, masks, positions
    PARAMETER = "parameter"
    BUFFER = "buffer"
    RESULT = "result"


@dataclass(frozen=True)
class Ref:
    """Stands for a tensor in the arguments of an entry."""

    id: int


@dataclass(frozen=True)
class Value:
    """One tensor at one point of the step.

    Attributes:
        id: its number on the tape.
        shape, dtype: as the step saw them.
        kind: where it comes from.
        name: path of a parameter or buffer, name of an input, otherwise None.
        content: the tensor itself (a reference, not a copy) for what comes from outside and for known values
            (indices, masks); None for every result that depends on data or weights.
        producer: index of the entry that made it, None for what came from outside.
        trained: whether it is a leaf that asks for a gradient.
    """

    id: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: Kind
    name: str | None = None
    content: torch.Tensor | None = field(default=None, repr=False, compare=False)
    producer: int | None = None
    trained: bool = False

    @property
    def is_float(self) -> bool:
        """Whether it holds real floating-point numbers, which have a law."""
        return self.dtype.is_floating_point


@dataclass(frozen=True)
class Entry:
    """One call of the step.

    Attributes:
        index: order on the tape.
        op: name of the function, the same for `torch.add`, `Tensor.add_`, `x + y`: `add`.
        function: the function as it was called.
        args, kwargs: its arguments, tensors replaced by `Ref`.
        inputs, outputs: ids of the tensors that went in and came out.
        module: path of the innermost module that was running ("" at top level).
        location: the user's source line.
        inplace: whether it overwrote its first argument.
        training: whether the innermost module was in training mode.
        grad: whether autograd was on.
    """

    index: int
    op: str
    function: Callable[..., Any] = field(repr=False, compare=False)
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    module: str
    location: Location
    inplace: bool = False
    training: bool = True
    grad: bool = True

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """The argument at `position` or called `name`, or `default`."""
        if name in self.kwargs:
            return self.kwargs[name]
        return self.args[position] if position < len(self.args) else default


def softmax_dim(given: Any, rank: int) -> int:
    """The dimension that a softmax runs over; without one torch takes the first of 1 and 3 dimensions, else the second.

    Args:
        given: the argument `dim` of the call.
        rank: number of the tensor's dimensions.
    """
    if given is None:
        return 0 if rank in (0, 1, 3) else 1
    return int(given) % max(rank, 1)


@dataclass(frozen=True)
class ModuleInfo:
    """What the tape knows of a module: its class, where it was built, its mode, whether its code is a library's."""

    type: str
    built: Location | None
    training: bool
    library: bool = True


RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
"""Recurrent layers; their ninth argument says whether the batch comes first."""
MOVING = frozenset({
    "transpose", "permute", "t", "T", "mT", "H", "movedim", "moveaxis", "swapaxes", "swapdims", "view", "reshape",
    "flatten", "unflatten", "stack", "matmul", "bmm",
})  # fmt: skip
"""Operations that may turn the first two dimensions of a tensor even where their lengths stay."""


@dataclass
class Tape:
    """What a step called; of one backward pass, or of all of them.

    Attributes:
        entries: the calls, in order.
        values: every tensor by id.
        modules: what is known of each module by its path.
        loss: id of the tensor that `backward` started from; None on the tape of a whole step.
        samples: length of the batch, None when the step has none.
        complete: False when the step ended in an exception.
    """

    entries: list[Entry] = field(default_factory=list)
    values: dict[int, Value] = field(default_factory=dict)
    modules: dict[str, ModuleInfo] = field(default_factory=dict)
    loss: int | None = None
    samples: int | None = None
    complete: bool = True

    def value_of(self, kind: Kind) -> Iterator[Value]:
        """All values of one kind, in order of appearance."""
        return (value for value in self.values.values() if value.kind is kind)

    @cached_property
    def of_batch(self) -> frozenset[int]:
        """Ids of the batch's data and indices, and of all that is made of them; for a complete tape."""
        found = {value.id for value in self.value_of(Kind.INPUT)}
        for value in self.value_of(Kind.KNOWN):
            axis = 1 if value.id in self.time_first else 0
            if value.producer is None and self.samples is not None and value.shape[axis : axis + 1] == (self.samples,):
                found.add(value.id)
        for entry in self.entries:
            if found.intersection(entry.inputs):
                found.update(entry.outputs)
        return frozenset(found)

    @cached_property
    def parametric(self) -> frozenset[int]:
        """Ids of the parameters and of what is made of them alone (normalised weights); for a complete tape."""
        found = {value.id for value in self.value_of(Kind.PARAMETER)}
        fixed = {value.id for value in self.values.values() if value.kind in (Kind.BUFFER, Kind.KNOWN)} - self.of_batch
        for entry in self.entries:
            if found.intersection(entry.inputs) and all(i in found or i in fixed for i in entry.inputs):
                found.update(entry.outputs)
        return frozenset(found)

    @cached_property
    def makers(self) -> dict[int, Entry]:
        """Which entry made each value; for a tape that is complete."""
        return {number: entry for entry in self.entries for number in entry.outputs}

    @cached_property
    def time_first(self) -> frozenset[int]:
        """Ids of tensors from outside whose first dimension is time and whose second is the batch, for a complete tape.

        A recurrent layer says so of what it reads; it is followed back through operations that keep both dimensions.
        """
        makers = {number: entry for entry in self.entries for number in entry.outputs}
        found: set[int] = set()
        for entry in self.entries:
            packs = entry.op == "_pack_padded_sequence" and not entry.argument(2, "batch_first")
            reads = entry.op in RECURRENT and len(entry.args) > 8 and entry.args[8] is False
            if not packs and not reads:
                continue
            number: int | None = entry.inputs[0]
            while number in makers:
                number = self._through(makers[number], self.values[number].shape[:2])
            if number is not None and self.values[number].kind in (Kind.INPUT, Kind.KNOWN):
                found.add(number)
        return frozenset(n for n in found if len(self.values[n].shape) > 1)

    def _through(self, maker: Entry, lead: tuple[int, ...]) -> int | None:
        """The input that an entry's result has its first two dimensions from."""
        if maker.op in MOVING:
            return None
        free = (n for n in maker.inputs if self.values[n].kind is not Kind.PARAMETER)
        return next((n for n in free if self.values[n].shape[:2] == lead), None)

    @cached_property
    def readers(self) -> dict[int, list[Entry]]:
        """Which entries read each value; for a tape that is complete."""
        found: dict[int, list[Entry]] = {}
        for entry in self.entries:
            for number in dict.fromkeys(entry.inputs):
                found.setdefault(number, []).append(entry)
        return found

    def ancestors(self, *targets: int) -> set[int]:
        """Ids of all values that the targets depend on, themselves included."""
        wanted = set(targets)
        for entry in reversed(self.entries):
            if wanted.intersection(entry.outputs):
                wanted.update(entry.inputs)
        return wanted

    def of(self, loss: int) -> Tape:
        """The part of this tape that a loss depends on, with the same ids and indices."""
        wanted = self.ancestors(loss)
        entries = [entry for entry in self.entries if wanted.intersection(entry.outputs)]
        ids = sorted(wanted.union(*(entry.outputs for entry in entries)) if entries else wanted)
        values = {number: self.values[number] for number in ids}
        data = (v for v in values.values() if v.producer is None and v.kind in (Kind.INPUT, Kind.KNOWN) and v.shape)
        first = next(data, None)
        samples = self.samples if first is None or self.samples in first.shape else first.shape[0]
        made = Tape(entries, values, self.modules, loss, samples, self.complete)
        for number in made.time_first:
            made.samples = values[number].shape[1]
        return made

    def location(self, entry: Entry) -> Location:
        """The line a user would change: where a library's module was built, else where the call stands."""
        info = self.modules.get(entry.module)
        return info.built if info and info.built and info.library else entry.location
