"""`leaky-activation`, `swap-activation`, `bounded-slope`: an activation whose slope neither vanishes nor explodes."""

from __future__ import annotations

from torch import nn

from tightrope.edit import rewrite_call, sibling
from tightrope.finding import Finding, Remedy, Safety
from tightrope.remedies.live import replacing
from tightrope.remedies.registry import remedy
from tightrope.study import Study

SLOPE = 0.1
"""Of the negative side: a dead unit gets a tenth of the gradient of a living one, enough to come back."""

RECTIFIERS = ("ReLU", "ReLU6", "Hardtanh", "Threshold")
BOUNDED = ("Sigmoid", "Tanh", "Softsign", "Hardsigmoid", "Hardtanh")


@remedy("leaky-activation")
def leaky_activation(study: Study, finding: Finding) -> Remedy | None:
    """Put a rectifier with a slope on its negative side in the place of the one whose units are silent."""
    return Remedy(
        "leaky-activation", f"Give the rectifier of {finding.module or 'the model'} a slope of {SLOPE} below zero",
        f"torch.nn.LeakyReLU({SLOPE})", "outputs are no longer sparse; trained weights must be tuned again",
        Safety.REVIEW, replacing(study, finding.module, _leaky),
        rewrite_call(finding.location, RECTIFIERS, lambda name, *_: f"{sibling(name, 'LeakyReLU')}({SLOPE})"),
    )  # fmt: skip


@remedy("swap-activation")
def swap_activation(study: Study, finding: Finding) -> Remedy | None:
    """Put an activation that does not saturate in the place of the bounded one."""
    return Remedy(
        "swap-activation", f"Use an activation without flat ends in {finding.module or 'the model'}", "torch.nn.GELU()",
        "outputs are no longer bounded; trained weights must be tuned again", Safety.REVIEW,
        replacing(study, finding.module, _open),
        rewrite_call(finding.location, BOUNDED, lambda name, *_: f"{sibling(name, 'GELU')}()"),
    )  # fmt: skip


@remedy("bounded-slope")
def bounded_slope(study: Study, finding: Finding) -> Remedy | None:
    """Put an activation of bounded slope in the place of every one whose slope has a heavy tail."""
    actions = [replacing(study, path, _open) for path in finding.modules]
    known = [action for action in actions if action is not None]

    def act() -> None:
        for action in known:
            action()

    return Remedy(
        "bounded-slope", "Use an activation whose slope is bounded", "torch.nn.GELU()",
        "another function; trained weights must be tuned again", Safety.REVIEW,
        act if known and len(known) == len(actions) else None,
    )  # fmt: skip


def _leaky(_: nn.Module) -> nn.Module:
    return nn.LeakyReLU(SLOPE)


def _open(_: nn.Module) -> nn.Module:
    return nn.GELU()


__all__ = ["bounded_slope", "leaky_activation", "swap_activation"]
