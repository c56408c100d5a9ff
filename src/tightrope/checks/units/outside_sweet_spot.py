"""`outside-sweet-spot`: activations with one flat side that sit on it.

Law       the sweet spot of f begins where |f'| first reaches a tenth of its largest value: at -1.72 for GELU, -0.88 for
          SiLU, -2.3 for ELU. With z ~ N(mu, sigma^2) the share Phi((edge - mu) / sigma) lies below; at mu = 0 and sigma
          = 1 that is at most a fifth for every activation in use. What lies there passes less than a tenth of its
          gradient.
Evidence  the function itself, evaluated with its slope; the share outside by the predicted law of each unit, and by the
          measured mean and standard deviation.
Verdict   `warning` when both shares are above 0.85, `fault` above 0.99, for weights as an initialiser draws them.
Remedy    solve the scales and reset the biases (`initialize`).
Limits    rectifiers, whose flat side is exactly zero, are `dead-units`, functions that are flat on both sides
          `saturated-units`; trained weights may want few units active and are not judged; nor are gates.
References  Hendrycks, Gimpel (2016), Gaussian error linear units; Glorot, Bengio (2010), Understanding the difficulty
          of training deep feedforward neural networks, AISTATS.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from tightrope.checks.echoes import GRADIENT, PROGRESS, SIGNAL
from tightrope.checks.layers import evaluate
from tightrope.checks.trace import is_hidden, producers
from tightrope.checks.units.dead_units import biased_net
from tightrope.checks.weights import is_drawn, weights_before
from tightrope.finding import Evidence, Finding, Severity
from tightrope.measure.probes import SLOPE
from tightrope.study import Study
from tightrope.subject import Subject
from tightrope.tape.tape import Entry

STAGE = "batch"
EXPLAINS = ("init-too-small", *SIGNAL, *GRADIENT, *PROGRESS)
REMEDIES = ("initialize",)

HALF_OPEN = frozenset(("gelu", "silu", "mish", "softplus", "elu", "selu", "celu", "hardswish"))
WARNING, FAULT = 0.85, 0.99  # one unit in seven passes its gradient, one in a hundred; dead rectifiers are judged alike
_GRID = 4001


def judge(study: Study) -> Iterator[Finding]:
    """A finding for each layer of activations that sit on their flat side."""
    tape = study.tape
    made = producers(tape)
    for entry in tape.entries:
        if entry.op not in HALF_OPEN or not entry.inputs or not is_hidden(tape, entry.outputs[0]):
            continue
        law, state = study.measurement.laws.get(entry.inputs[0]), study.forecast.states.get(entry.inputs[0])
        edge = sweet_edge(entry)
        if law is None or state is None or not law.finite or not law.std or edge is None:
            continue
        variance = state.variance.clamp(min=1e-300)
        if not bool(torch.isfinite(variance).all()):
            continue
        measured = _below((edge - law.mean) / law.std)
        expected = float(torch.special.ndtr((edge - state.mean) / variance.sqrt()).mean())
        share = min(expected, measured)
        if share > WARNING and all(is_drawn(weight) for weight in weights_before(tape, made, entry.inputs[0])):
            yield _finding(study, entry, expected, measured, edge)


def _below(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))


def sweet_edge(entry: Entry) -> float | None:
    """From which argument on a function keeps a tenth of its largest slope; None where it is not flat on the left."""
    plain = (int, float, str)
    options = tuple(a for a in entry.args[1:] if isinstance(a, plain))
    named = tuple(sorted((k, v) for k, v in entry.kwargs.items() if isinstance(v, plain) and k != "inplace"))
    if len(options) + 1 < len(entry.args):
        return None
    return _edge(_Same(entry), (entry.op, options, named))


class _Same:
    """A call, equal to any other, so that the cache goes by the name and the options."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same)

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=64)
def _edge(call: _Same, key: Any) -> float | None:
    with torch.enable_grad():
        z = torch.linspace(-20, 20, _GRID, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(evaluate(call.entry, z).sum(), z)
    steep = (slope.abs() >= SLOPE * slope.abs().max()).nonzero().flatten()
    first = int(steep[0])
    return float(z[first].detach()) if 0 < first < _GRID // 2 else None


def _finding(study: Study, entry: Entry, expected: float, measured: float, edge: float) -> Finding:
    law = study.measurement.laws[entry.inputs[0]]
    share = min(expected, measured)
    evidence = (
        Evidence("share outside the sweet spot", measured, WARNING),
        Evidence("the same, predicted", expected, WARNING),
        Evidence("mean of the pre-activation", law.mean, 0.0),
        Evidence("std of the pre-activation", law.std, 1.0),
    )
    return Finding(
        "outside-sweet-spot", Severity.FAULT if share > FAULT else Severity.WARNING, entry.module,
        str(study.tape.location(entry)),
        f"{share:.0%} of the arguments of {entry.op} lie below {edge:.3g}, where its slope is less than a tenth: mean "
        f"{law.mean:.3g}, std {law.std:.3g}; level: mean 0, std 1",
        evidence, entry.index, modules=(entry.module,),
    )  # fmt: skip


def sick() -> Subject:
    """Biases of -5 before a GELU."""
    return biased_net(-5.0, nn.GELU)


def healthy() -> Subject:
    """The same net with biases of zero."""
    return biased_net(0.0, nn.GELU)


__all__ = ["sweet_edge"]
