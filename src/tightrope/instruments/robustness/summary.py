"""All of it in one result: how the output of a classifier answers to small changes of its input."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tightrope.errors import InputError
from tightrope.instruments.estimate import Estimate
from tightrope.instruments.robustness.attack import Attack, Norm, attack, share
from tightrope.instruments.robustness.jacobian import JacobianNorms, jacobian_norms
from tightrope.instruments.robustness.lipschitz import Lipschitz, lipschitz_bound


@dataclass(frozen=True, eq=False)
class Robustness:
    """A classifier under small changes of its input.

    Attributes:
        jacobian: the law of the Jacobian's norm over the data.
        lipschitz: certified upper bounds and a lower bound of the Lipschitz constant.
        attack: what projected gradient ascent turns.
        radius: certified: no change shorter than that (in the attack's norm) turns the sample; 0 where it is wrong or
            nothing is certified; shape (samples,).
        certified: share of samples whose radius reaches the attack's; the true robust share lies between it and
            `attack.robust`.
    """

    jacobian: JacobianNorms
    lipschitz: Lipschitz
    attack: Attack
    radius: Tensor = field(repr=False)
    certified: Estimate

    @property
    def robust_share(self) -> float:
        """Upper bound of the share of samples that no change of the attack's size turns."""
        return self.attack.robust.value

    @property
    def verdicts(self) -> tuple[str, ...]:
        """`fragile` and `unstable-jacobian`, where they are sure."""
        return tuple(v for v in (self.attack.verdict, self.jacobian.verdict) if v is not None)

    def __str__(self) -> str:
        lines = [str(self.jacobian), str(self.lipschitz), str(self.attack)]
        lines.append(f"  certified     {self.certified}, median radius {float(self.radius.median()):.3g}")
        return "\n".join(lines)


class _Robustness:
    """How a classifier answers to small changes of its input: Jacobian norms, Lipschitz bounds, attack, certificate.

    `tr.robustness(model, (x, y))` gives all of it. The parts are `tr.robustness.jacobian_norms(model, x)` and
    `tr.robustness.lipschitz_bound(model, x)` for any model, and `tr.robustness.attack(model, (x, y))`.
    """

    jacobian_norms = staticmethod(jacobian_norms)
    lipschitz_bound = staticmethod(lipschitz_bound)
    attack = staticmethod(attack)

    def __call__(
        self,
        model: nn.Module,
        batch: Any,
        *,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        eps: float | None = None,
        norm: Norm = "2",
        steps: int = 40,
        restarts: int = 2,
        bounds: tuple[float, float] | None = None,
        sdp: bool = False,
        seed: int = 0,
    ) -> Robustness:
        """Jacobian norms, Lipschitz bounds, attack and certified radius of a classifier on a batch.

        A margin of logits changes by no more than sqrt(2) L times the change of the input, so no change shorter than
        margin / (sqrt(2) L) turns an answer; with the bound L of the ball of radius eps, up to eps. A change of size r
        in the L-inf norm is at most sqrt(d) r long.

        Args:
            model: a classifier that returns logits; looked at as it is evaluated, and left as found.
            batch: `(inputs, labels)`.
            loss, eps, norm, steps, restarts, bounds: of the attack; see `attack`.
            sdp: also solve LipSDP.
            seed: of all that is drawn.

        Raises:
            InputError: no classifier, labels that are no classes, samples that see each other, or a bad option.
            RecordError: the model raised.

        References:
            Tsuzuku, Sato, Sugiyama (2018), Lipschitz-margin training, NeurIPS; Hein, Andriushchenko (2017), Formal
            guarantees on the robustness of a classifier against adversarial manipulation, NeurIPS, for local bounds.
        """
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            found = f"the batch is of type {type(batch).__name__}"
            raise InputError("measure robustness", found, "Pass (inputs, labels)")
        attacked = attack(
            model, batch, loss=loss, eps=eps, norm=norm, steps=steps, restarts=restarts, bounds=bounds, seed=seed
        )  # fmt: skip
        jacobian = jacobian_norms(model, batch[0], seed=seed)
        stretch = math.sqrt(jacobian.inputs) if norm == "inf" else 1.0
        limits = lipschitz_bound(model, batch[0], eps=attacked.eps * stretch, sdp=sdp, seed=seed)
        radius = certified_radius(attacked.margins, limits, outputs=jacobian.outputs) / stretch
        certain = share(int((radius >= attacked.eps).sum()), len(radius))
        return Robustness(jacobian, limits, attacked, radius, certain)


def certified_radius(margins: Tensor, found: Lipschitz, outputs: int) -> Tensor:
    """How far in the Euclidean norm no change turns an answer; from the global bound, and the local one in its ball."""
    if found.upper is None:
        return torch.zeros_like(margins)
    # a single logit is compared with a constant, two of them differ by sqrt(2) times the output's change
    factor = math.sqrt(2.0) if outputs > 1 else 1.0
    right = margins.double().clamp(min=0)
    radius = right / (factor * found.upper) if found.upper > 0 else torch.full_like(right, math.inf)
    if found.local is not None and found.eps is not None:
        inside = (right / (factor * found.local.clamp(min=torch.finfo(torch.float64).tiny))).clamp(max=found.eps)
        radius = torch.maximum(radius, inside)
    return torch.where(margins > 0, radius, 0.0)


robustness = _Robustness()

__all__ = ["Robustness", "certified_radius", "robustness"]
