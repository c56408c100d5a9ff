"""Everything that is known of one recorded step: what checks read and remedies act on."""

from __future__ import annotations

import typing
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import nn

from tightrope.compare import Comparison, compare
from tightrope.evaluation import Evaluation
from tightrope.measure.batches import Batches
from tightrope.measure.measurement import Measurement
from tightrope.measure.updates import Updates
from tightrope.predict import Forecast
from tightrope.replay import Replay
from tightrope.tape.tape import Tape


@dataclass(frozen=True)
class Models:
    """The live modules that the step called at top level, by name ("" for the only one)."""

    roots: dict[str, nn.Module] = field(default_factory=dict)

    def find(self, path: str) -> nn.Module | None:
        """The module at a path as it stands on the tape, DDP and compile wrappers taken off."""
        from tightrope.tape.modules import unwrap

        for name, root in self.roots.items():
            inner = unwrap(root)
            if path == name:
                return inner
            prefix = f"{name}." if name else ""
            if path.startswith(prefix):
                try:
                    return inner.get_submodule(path[len(prefix) :])
                except AttributeError:
                    continue
        return None


@dataclass(frozen=True)
class Optimizers:
    """The optimizers that are known; empty for a hand-written update."""

    items: tuple[torch.optim.Optimizer, ...] = ()


@dataclass(frozen=True)
class History:
    """What is known of a run when a step of it is judged.

    Attributes:
        losses: the losses of each step that ended or is under way, by its number; a step may have several backward
            passes. Losses on other devices than the CPU are missing here and there.
        earlier: the studies of the passes that were recorded before, oldest first.
        steps: number of steps that have ended.
        ended: whether the run has ended.
    """

    losses: dict[int, tuple[float, ...]] = field(default_factory=dict, repr=False)
    earlier: tuple[Study, ...] = field(default=(), repr=False)
    steps: int = 0
    ended: bool = False


@dataclass(frozen=True)
class Study:
    """One recorded step: its tape, what was predicted, what was measured, and the live objects.

    A check asks for its parts by annotation, and is not asked where one of them is None.

    Attributes:
        tape: the step's calls.
        forecast: predicted laws.
        measurement: measured laws.
        comparison: one beside the other.
        models, optimizers: the live objects.
        step: number of the training step (1 is the first).
        history: the run that the step belongs to, from the step's update on; None before it and without a run.
        batches: the data of the first steps of the run, or of the loader; None where they are not known.
        updates: what the optimizers did in the step; None before the update and without one.
        evaluation: the latest evaluation pass of the run that was recorded; None before it and without a run.
        replay: makes the calls of the models again; None where they cannot be made.
    """

    tape: Tape
    forecast: Forecast
    measurement: Measurement
    comparison: Comparison
    models: Models = Models()
    optimizers: Optimizers = Optimizers()
    step: int = 1
    history: History | None = None
    batches: Batches | None = None
    updates: Updates | None = None
    evaluation: Evaluation | None = None
    replay: Replay | None = None

    @classmethod
    def of(cls, forecast: Forecast, measurement: Measurement, **objects: Any) -> Study:
        """A study of one tape that was both predicted and measured."""
        return cls(measurement.tape, forecast, measurement, compare(forecast, measurement), **objects)

    def give(self, kind: type) -> Any:
        """The part of the study that has this type, None when it is not known: serves a check's annotations.

        Raises:
            KeyError: a study has no part of this type.
        """
        parts = {type(self): self, **{type(part): part for part in self.__dict__.values()}}
        return parts[kind] if kind in parts or kind not in _optional() else None


@cache
def _optional() -> frozenset[type]:
    """Types of the parts that a study may lack."""
    hints = [typing.get_args(hint) for hint in typing.get_type_hints(Study).values()]
    return frozenset(kind for kinds in hints if type(None) in kinds for kind in kinds)
