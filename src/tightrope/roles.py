"""What each dimension of a tensor means: sample, site or channel.

A dimension is a product of axes: `(batch * time)` flattened for a loss is two axes in one dimension.
Axes travel through views, transposes and concatenations, so that a law always knows which part of a
tensor differs between samples, between sites and between channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Role(Enum):
    """What the positions along an axis are."""

    SAMPLE = "sample"
    SITE = "site"
    CHANNEL = "channel"


@dataclass(frozen=True)
class Axis:
    """One factor of a dimension: its role and its length."""

    role: Role
    size: int


@dataclass(frozen=True)
class Axes:
    """The roles of all dimensions of one tensor, outermost first; each dimension is a tuple of axes."""

    dims: tuple[tuple[Axis, ...], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(math.prod(axis.size for axis in dim) for dim in self.dims)

    def role(self, dim: int) -> Role | None:
        """The role of a dimension, by its longest axis; None for a dimension of length 1 with no axes."""
        axes = self.dims[dim]
        return max(axes, key=lambda axis: axis.size).role if axes else None

    def has(self, dim: int, role: Role) -> bool:
        """Whether a dimension holds an axis of this role that is longer than 1."""
        return any(axis.role is role and axis.size > 1 for axis in self.dims[dim])

    def count(self, role: Role) -> int:
        """Number of positions with this role."""
        return math.prod(axis.size for dim in self.dims for axis in dim if axis.role is role)

    def describe(self) -> str:
        """For example `sample 8 x channel 64 x site 49`."""
        return " x ".join("·".join(f"{a.role.value} {a.size}" for a in dim) or "1" for dim in self.dims)

    # -- moves ---------------------------------------------------------------------------------

    def permute(self, order: Sequence[int]) -> Axes:
        """Axes after `tensor.permute(order)`."""
        return Axes(tuple(self.dims[i] for i in order))

    def drop(self, dims: Sequence[int]) -> Axes:
        """Axes after the dimensions `dims` were reduced away."""
        gone = {d % len(self.dims) for d in dims}
        return Axes(tuple(axes for i, axes in enumerate(self.dims) if i not in gone))

    def resize(self, dim: int, size: int, role: Role | None = None) -> Axes:
        """Axes after dimension `dim` got another length (and, if given, another role)."""
        dim %= len(self.dims)
        kept = role or self.role(dim) or Role.CHANNEL
        resized = (Axis(kept, size),) if size != 1 else ()
        return Axes((*self.dims[:dim], resized, *self.dims[dim + 1 :]))

    def reshape(self, shape: Sequence[int]) -> Axes:
        """Axes after `tensor.reshape(shape)`: axes are regrouped, and split where a boundary asks for it."""
        flat = [axis for dim in self.dims for axis in dim if axis.size != 1]
        dims: list[tuple[Axis, ...]] = []
        for size in shape:
            taken: list[Axis] = []
            room = size
            while room > 1 and flat:
                axis = flat.pop(0)
                if room % axis.size == 0:
                    taken.append(axis)
                    room //= axis.size
                elif axis.size % room == 0:
                    taken.append(Axis(axis.role, room))
                    flat.insert(0, Axis(axis.role, axis.size // room))
                    room = 1
                else:  # the boundary falls inside two axes: what is left keeps the longer one's role
                    rest = math.prod([axis.size, *(a.size for a in flat)]) * math.prod(a.size for a in taken) // size
                    taken = [Axis(axis.role, size)]
                    flat = [Axis(axis.role, rest)] if rest > 1 else []
                    room = 1
            dims.append(tuple(taken))
        return Axes(tuple(dims))


def broadcast(*operands: Axes) -> Axes:
    """Axes of an elementwise result: each dimension takes the roles of the first operand that fills it."""
    width = max(len(axes.dims) for axes in operands)
    padded = [((),) * (width - len(axes.dims)) + axes.dims for axes in operands]
    dims = []
    for column in zip(*padded, strict=True):
        filled = [dim for dim in column if math.prod(axis.size for axis in dim) > 1]
        with_sample = [dim for dim in filled if any(axis.role is Role.SAMPLE for axis in dim)]
        dims.append((with_sample or filled or [column[0]])[0])
    return Axes(tuple(dims))


def default_axes(shape: Sequence[int], samples: int | None) -> Axes:
    """Axes of a tensor that no operation explains.

    A first dimension of the batch's length is the sample; of the others the last is the channel and the
    rest are sites, except that four and five dimensions are read as images (channel first).
    """
    dims: list[tuple[Axis, ...]] = []
    start = 0
    if samples is not None and shape and shape[0] == samples:
        dims.append((Axis(Role.SAMPLE, samples),))
        start = 1
    rest = list(shape[start:])
    channel_first = start == 1 and len(rest) >= 3
    for i, size in enumerate(rest):
        channel = (i == 0) if channel_first else (i == len(rest) - 1)
        dims.append((Axis(Role.CHANNEL if channel else Role.SITE, size),) if size != 1 else ())
    return Axes(tuple(dims))
