"""The largest step that an optimizer takes down a quadratic bowl without climbing out of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tightrope.errors import InputError
from tightrope.instruments.hessian import ASKED

MOMENTUM = 0.9
"""The momentum for which a step is given where no optimizer is."""


@dataclass(frozen=True)
class StableStep:
    """The largest stable learning rate of one optimizer, with its weights, state and settings as they are.

    Attributes:
        optimizer: its class.
        sharpness: largest eigenvalue of the Hessian as the optimizer sees it: scaled by its preconditioner and by the
            rates of its groups relative to the first one, weight decay of the loss included.
        sharpness_error: by how much that may be too small.
        largest: below this rate of the first group no direction of the bowl is unstable; infinite without a positive
            eigenvalue. On the safe side of `sharpness_error`.
        rate: that the first group has now.
    """

    optimizer: str
    sharpness: float
    sharpness_error: float
    largest: float
    rate: float

    @property
    def ratio(self) -> float:
        """The present rate in units of the largest stable one: above 1 the sharpest direction grows with each step."""
        return self.rate / self.largest

    def __str__(self) -> str:
        place = f"the present {self.rate:.3g} is {self.ratio:.3g} of it" if math.isfinite(self.largest) else "no limit"
        return f"{self.optimizer}: largest stable rate {self.largest:.3g}, {place}"


@dataclass(frozen=True)
class Rule:
    """One optimizer as a linear recurrence: x moves by -rate * momentum filter of scale * (H + decay) x.

    Attributes:
        name: class of the optimizer.
        scale: of each coordinate, relative to the rate of the first group; shape (n,).
        decay: added to the diagonal of the Hessian, shape (n,).
        groups: numerator, denominator and decoupled decay of each group's threshold.
        rate: of the first group.
    """

    name: str
    scale: Tensor
    decay: Tensor
    groups: tuple[tuple[float, float, float], ...]
    rate: float

    @property
    def plain(self) -> bool:
        """Whether it sees the Hessian itself, but for a multiple of the identity."""
        return bool((self.scale == 1).all()) and bool((self.decay == self.decay[0]).all())

    def largest(self, sharpness: float) -> float:
        """Largest stable rate: where -1 becomes an eigenvalue of the recurrence (a / (b sharpness + a/2 decoupled))."""
        found = [math.inf]
        for above, below, decoupled in self.groups:
            pull = below * sharpness + above / 2 * decoupled
            found.append(above / pull if pull > 0 else math.inf)
        return min(found)


def gradient_descent(sharpness: float, momentum: float = 0.0) -> float:
    """(2 + 2 momentum) / sharpness; infinite without a positive eigenvalue."""
    return (2 + 2 * momentum) / sharpness if sharpness > 0 else math.inf


def rule_of(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], like: Tensor) -> Rule | None:
    """The recurrence of an optimizer near a minimum, its preconditioner held as it is.

    Known are SGD (momentum, dampening, Nesterov), Adam, AdamW (AMSGrad too) and RMSprop. None for others, and before an
    adaptive one has made a step.

    Args:
        optimizer: of any of the parameters; the others stand still for it.
        parameters: those that the Hessian is of.
        like: a vector of the Hessian's length, type and device.

    Raises:
        InputError: it climbs, or its first group's rate is not positive.

    References:
        Polyak (1964) for momentum; Cohen, Kaur, Li, Kolter, Talwalkar (2021), Gradient descent on neural networks
        typically occurs at the edge of stability, ICLR, for Nesterov; Cohen et al. (2022), Adaptive gradient methods at
        the edge of stability, arXiv:2207.14484, for Adam with a preconditioner that is held.
    """
    place, start = {}, 0
    for parameter in parameters:
        place[parameter] = slice(start, start + parameter.numel())
        start += parameter.numel()
    reference = float(optimizer.param_groups[0]["lr"])
    if not reference > 0:
        found = f"the learning rate of the first group is {reference:g}"
        raise InputError(ASKED, found, "Pass an optimizer with a positive rate, or none")
    scale, decay = torch.zeros_like(like), torch.zeros_like(like)
    thresholds = []
    for group in optimizer.param_groups:
        if group.get("maximize"):
            raise InputError(ASKED, "the optimizer maximizes", "Pass the negative loss and an optimizer that minimizes")
        threshold = _threshold(optimizer, group)
        if threshold is None:
            return None
        thresholds.append(threshold)
        for parameter in group["params"]:
            if parameter in place:
                denominator = _denominator(optimizer, group, parameter)
                if denominator is None:
                    return None
                made = float(group["lr"]) / reference / denominator.to(like.device, like.dtype)
                scale[place[parameter]] = made.expand(parameter.shape).reshape(-1)
                decay[place[parameter]] = 0.0 if _decoupled(optimizer, group) else float(group["weight_decay"])
    return Rule(type(optimizer).__name__, scale, decay, tuple(thresholds), reference)


def _decoupled(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> bool:
    return bool(group.get("decoupled_weight_decay", isinstance(optimizer, torch.optim.AdamW)))


def _threshold(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> tuple[float, float, float] | None:
    """a, b and decoupled decay w such that the largest rate is a / (b sharpness + a w / 2)."""
    if isinstance(optimizer, torch.optim.SGD):
        momentum = float(group["momentum"])
        if group["nesterov"]:
            return 2 + 2 * momentum, 1 + 2 * momentum, 0.0
        return 2 + 2 * momentum, 1 - float(group["dampening"]) if momentum else 1.0, 0.0
    if isinstance(optimizer, torch.optim.RMSprop):
        return 2 + 2 * float(group["momentum"]), 1.0, 0.0
    if isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
        first = float(group["betas"][0])
        return 2 + 2 * first, 1 - first, float(group["weight_decay"]) if _decoupled(optimizer, group) else 0.0
    return None


def _denominator(optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: Tensor) -> Tensor | None:
    """What the update of each coordinate is divided by; None before the first step."""
    state = optimizer.state.get(parameter, {})
    if isinstance(optimizer, torch.optim.SGD):
        return torch.ones((), device=parameter.device)
    if isinstance(optimizer, torch.optim.RMSprop):
        if "square_avg" not in state:
            return None
        square: Tensor = state["square_avg"]
        if group["centered"]:
            square = square - state["grad_avg"].square()
        return square.clamp(min=0).sqrt() + float(group["eps"])
    moment: Tensor | None = state.get("max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq")
    if moment is None:
        return None
    corrected: Tensor = moment / (1 - float(group["betas"][1]) ** float(state["step"]))
    return corrected.sqrt() + float(group["eps"])


__all__ = ["MOMENTUM", "Rule", "StableStep", "gradient_descent", "rule_of"]
