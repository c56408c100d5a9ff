"""Everything that is known of one recorded step: what checks read and remedies act on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tightrope.compare import Comparison, compare
from tightrope.measure.measurement import Measurement
from tightrope.predict import Forecast
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
class Study:
    """One recorded step: its tape, what was predicted, what was measured, and the live objects.

    Attributes:
        tape: the step's calls.
        forecast: predicted laws.
        measurement: measured laws.
        comparison: one beside the other.
        models, optimizers: the live objects.
        step: number of the training step (1 is the first).
    """

    tape: Tape
    forecast: Forecast
    measurement: Measurement
    comparison: Comparison
    models: Models = Models()
    optimizers: Optimizers = Optimizers()
    step: int = 1

    @classmethod
    def of(cls, forecast: Forecast, measurement: Measurement, **objects: Any) -> Study:
        """A study of one tape that was both predicted and measured."""
        return cls(measurement.tape, forecast, measurement, compare(forecast, measurement), **objects)

    def give(self, kind: type) -> Any:
        """The part of the study that has this type: how a check's annotations are served."""
        parts = {type(self): self, **{type(part): part for part in self.__dict__.values()}}
        return parts[kind]
