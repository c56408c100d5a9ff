"""Which weight layers, taken together, put the signal's scale out of range."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from tightrope.checks.gradient import exploding_gradient, vanishing_gradient
from tightrope.checks.layers import Layer, layers
from tightrope.checks.signal import exploding_signal, vanishing_signal
from tightrope.finding import Evidence, Finding, Severity
from tightrope.study import Study
from tightrope.subject import Subject

MATERIAL = 0.1  # of the worst layer's deviation, on a log scale: below that a layer is no reason beside it
NOTABLE = math.log(
    1.25
)  # a layer counts when it is off by a quarter; torch's own gains differ by less among themselves


@dataclass(frozen=True)
class Offenders:
    """The layers that multiply the signal by more, or less, than the law asks.

    Attributes:
        found: the layers, in order.
        total: sum over them of ln(scale over what the law asks).
    """

    found: list[Layer]
    total: float


def offenders(study: Study, sign: int) -> Offenders:
    """Hidden layers whose output no normaliser rescales and whose gain is off in this direction."""
    found = [
        layer
        for layer in layers(study.tape, study.measurement.laws)
        if not layer.head and not layer.normalised and math.isfinite(layer.excess) and sign * layer.excess > NOTABLE
    ]
    worst = max((abs(layer.excess) for layer in found), default=0.0)
    found = [layer for layer in found if abs(layer.excess) > MATERIAL * worst]
    return Offenders(found, sum(layer.excess for layer in found))


def finding(study: Study, name: str, off: Offenders) -> Finding:
    """A finding over the span of the offending layers."""
    typical = off.found[len(off.found) // 2]
    gains = sorted(layer.gain for layer in off.found)
    middle = gains[len(gains) // 2]
    asked = typical.asked
    behind = f"the {typical.activation.op} law asks" if typical.activation is not None else "the law asks"
    names = list(dict.fromkeys(layer.entry.module for layer in off.found))
    where = names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"
    first = off.found[0].entry
    measured = f"Var(w) n = {middle:.3g}" if len(gains) == 1 or gains[-1] < 1.5 * gains[0] else (
        f"Var(w) n = {gains[0]:.3g} … {gains[-1]:.3g}")  # fmt: skip
    evidence = (
        Evidence("E[w^2] n", middle, asked),
        Evidence("factor on the signal over all these layers", math.exp(max(min(off.total, 700.0), -700.0)), 1.0),
    )
    return Finding(
        name, Severity.FAULT, where, str(study.tape.location(first)), f"{measured}, {behind} {asked:.2f}; together × "
        f"{evidence[1].measured:.2g} on the signal", evidence, first.index, modules=tuple(names),
    )  # fmt: skip


def vanished(study: Study) -> bool:
    """Whether signal or gradient is gone somewhere on the way."""
    return bool(list(vanishing_signal.judge(study)) or list(vanishing_gradient.judge(study)))


def exploded(study: Study) -> bool:
    """Whether signal or gradient has grown out of range somewhere on the way."""
    return bool(list(exploding_signal.judge(study)) or list(exploding_gradient.judge(study)))


def plain_net(gain: float, depth: int) -> Subject:
    """ReLU layers of width 128 with weights of n Var(w) = gain, and a head: what the checks of scales show off with."""
    torch.manual_seed(0)
    stack: list[nn.Module] = []
    for _ in range(depth):
        layer = nn.Linear(128, 128)
        nn.init.normal_(layer.weight, std=(gain / 128) ** 0.5)
        nn.init.zeros_(layer.bias)
        stack += [layer, nn.ReLU()]
    model = nn.Sequential(*stack, nn.Linear(128, 4))
    return Subject(model, (torch.randn(64, 128), torch.arange(64) % 4), nn.functional.cross_entropy)
