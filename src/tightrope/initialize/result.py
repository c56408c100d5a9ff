"""What an initialisation did, or asks for: plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tightrope.errors import InputError
from tightrope.initialize.draw import orthogonal


@dataclass(frozen=True)
class Change:
    """What was done to one parameter, or is to be done to it.

    Attributes:
        name: its path.
        before, after: its rms; before is 0 where no law of it was known.
        mean, std: of the law that it follows now.
        orthogonal: whether its rows or columns are drawn orthogonal to each other.
    """

    name: str
    before: float
    after: float
    mean: float = 0.0
    std: float = 0.0
    orthogonal: bool = False


@dataclass(frozen=True)
class Initialization:
    """What `initialize` changed, in the order of the step; what it left alone, and why.

    Attributes:
        changes: one for each parameter that was set.
        untouched: the other parameters of the step.
        reasons: why each of them stays, by name.
        seed: of the draws.
    """

    changes: tuple[Change, ...]
    untouched: tuple[str, ...]
    reasons: tuple[tuple[str, str], ...] = ()
    seed: int = 0

    def apply(self, model: nn.Module) -> None:
        """Draw the parameters of a model from these laws, in place; what was solved on the meta device needs it.

        Raises:
            InputError: the model lacks one of the parameters, or it has no numbers.
        """
        parameters = dict(model.named_parameters())
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            for change in self.changes:
                parameter = parameters.get(change.name)
                if parameter is None or parameter.is_meta:
                    found = f"it has no {change.name}" if parameter is None else f"{change.name} is on the meta device"
                    raise InputError("apply the laws to the model", found, "Give the same model on a real device")
                parameter.copy_(_drawn(parameter, change, generator))

    def __str__(self) -> str:
        """One line for each parameter: rms before, rms after, its law."""
        lines = [
            f"{c.name:<40} {c.before:9.3g} -> {c.after:9.3g}  {'orthogonal' if c.orthogonal else 'normal'}"
            f"({c.mean:.3g}, {c.std:.3g})"
            for c in self.changes
        ]
        return "\n".join([*lines, *(f"{name:<40} stays: {reason}" for name, reason in self.reasons)])


def _drawn(parameter: Tensor, change: Change, generator: torch.Generator) -> Tensor:
    made = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    if change.orthogonal:
        made = orthogonal(made.reshape(len(made), -1)).reshape(parameter.shape) * math.sqrt(
            max(len(made), made[0].numel())
        )
    return (change.mean + change.std * made).to(parameter.device, parameter.dtype)


__all__ = ["Change", "Initialization"]
