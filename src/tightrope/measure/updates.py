"""What optimizers do to parameters: rates, gradients as they are read, updates, clipping, loss scaling."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tightrope.tape.source import UNKNOWN, Location

MOMENTS = ("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "AMSGrad")
"""Optimizers that divide by a running mean of squared gradients and take decay as part of the gradient by default."""


@dataclass(frozen=True)
class Group:
    """One group of one optimizer's parameters, with its settings before the update.

    Attributes:
        optimizer: its place among the known optimizers.
        kind: the optimizer's class.
        index: its place within the optimizer.
        settings: options of the group, its parameters left out.
        location: where the optimizer was built.
        steps: updates that the optimizer has made in the run so far.
        live: the optimizer.
    """

    optimizer: int
    kind: str
    index: int
    settings: dict[str, Any]
    location: Location = UNKNOWN
    steps: int = 0
    live: torch.optim.Optimizer | None = field(default=None, repr=False, compare=False)

    def number(self, name: str) -> float:
        """A setting as a number; 0 where there is none."""
        value = self.settings.get(name)
        return float(value) if isinstance(value, (int, float, Tensor)) and not isinstance(value, bool) else 0.0


@dataclass(frozen=True)
class Row:
    """One parameter in one step.

    Attributes:
        name: its path; None for one that no model that was called owns.
        shape: its shape.
        trained: whether it asks for a gradient.
        registered: whether a model that was called lists it among its parameters.
        groups: the optimizer groups that hold it.
        weight: its root mean square before the update.
        change: root mean square of the update; None when its optimizer did not step.
        gradient: root mean square of the gradient that the optimizer read, or that stood there at the end of the step;
            None when there was none.
        value: its id on the tape; None when no call read it.
        module: path of the module that holds or calls it.
        moved: whether its numbers have changed since its first recorded step; None when they were not seen again.
        live: the parameter.
    """

    name: str | None
    shape: tuple[int, ...]
    trained: bool
    registered: bool
    groups: tuple[Group, ...]
    weight: float
    change: float | None = None
    gradient: float | None = None
    value: int | None = None
    module: str = ""
    moved: bool | None = None
    live: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def numel(self) -> int:
        """Number of its elements."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Leftover:
    """Gradients that an update read and that the update before had read already.

    Attributes:
        step: number of the step.
        group: first group of the optimizer.
        parameters: how many of its parameters had such a gradient.
        of: how many had a gradient.
        share: median ratio of the old gradient's norm to that of the gradient that was read.
        location: where the optimizer steps.
    """

    step: int
    group: Group
    parameters: int
    of: int
    share: float
    location: Location


@dataclass(frozen=True)
class Clips:
    """All calls that clip the gradient's norm, over the run so far.

    Attributes:
        calls: number of calls whose norm is known.
        limit: the largest norm that passes, at the last call.
        ratios: norm over limit, call by call.
        location: where it is called.
    """

    calls: int
    limit: float
    ratios: tuple[float, ...] = field(repr=False)
    location: Location = UNKNOWN


@dataclass(frozen=True)
class Scaling:
    """The loss scale of mixed precision, over the run so far.

    Attributes:
        steps: steps that a scaler made or left out.
        skipped: steps that it left out because of an overflow.
        scale: the last scale that was read; None when none was.
        clipped_scaled: calls that clipped gradients before they were divided by the scale.
        location: where the scaler steps.
    """

    steps: int
    skipped: int
    scale: float | None
    clipped_scaled: int = 0
    location: Location = UNKNOWN


@dataclass(frozen=True)
class Updates:
    """What the optimizers did in one recorded step, and what is known of the run.

    Attributes:
        step: number of the step.
        rows: every parameter of the models and of the optimizers.
        leftovers: updates that read gradients which had been used before, in the steps that were looked at.
        rates: largest learning rate of each step at which it changed, by its number; for each optimizer.
        clips: clipping by norm; None without.
        scaling: loss scaling; None without.
        retried: the loss before and after the update on the same batch, where it was tried out; else None.
    """

    step: int
    rows: tuple[Row, ...]
    leftovers: tuple[Leftover, ...] = ()
    rates: tuple[dict[int, float], ...] = ()
    clips: Clips | None = None
    scaling: Scaling | None = None
    retried: tuple[float, float] | None = None

    @property
    def groups(self) -> tuple[Group, ...]:
        """All groups of all optimizers, in order."""
        found = {(g.optimizer, g.index): g for row in self.rows for g in row.groups}
        return tuple(found[key] for key in sorted(found))

    @property
    def foreign(self) -> tuple[Row, ...]:
        """Parameters that an optimizer holds and that belong to no model that was called."""
        return tuple(row for row in self.rows if row.groups and not row.registered and row.value is None)
