"""`saturated-units`: bounded activations that sit on their flat ends.

Law       the sweet spot of f is where |f'| is at least a tenth of its largest value: |z| < 1.82 for tanh, |z| < 3.64
          for the sigmoid. With z ~ N(mu, sigma^2) the share outside is Phi((low - mu) / sigma) + 1 - Phi((high - mu) /
          sigma); the gradient through the layer shrinks by E[f'(z)^2], and for tanh half lies outside at sigma = 2.7.
Evidence  measured share of outputs outside the sweet spot, beside the share that the predicted law of z gives.
Verdict   `warning` above 0.5, `fault` above 0.8, when the excess is more than three standard errors; `advice` for
          weights that are no longer as an initialiser draws them: a trained net may well be sure.
Remedy    solve the weight scale so that z has unit scale (`initialize`); scale the inputs when they cause it; or an
          activation that does not saturate.
Limits    gates (whose output multiplies another signal), attention and output heads are not judged: to be sure is their
          task. The gates inside `torch.nn.LSTM` are not visible. Binary codes are meant to saturate.
References  Glorot, Bengio (2010), Understanding the difficulty of training deep feedforward neural networks, AISTATS;
          LeCun, Bottou, Orr, Mueller (1998), Efficient BackProp.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from tightrope.checks.echoes import PROGRESS
from tightrope.checks.trace import is_hidden, producers
from tightrope.checks.weights import is_drawn, weights_before
from tightrope.finding import Evidence, Finding, Severity
from tightrope.measure.probes import SweetSpot, sweet_spot
from tightrope.rules.state import State
from tightrope.study import Study
from tightrope.subject import Subject
from tightrope.tape.tape import Entry

STAGE = "batch"
EXPLAINS = ("vanishing-signal", "vanishing-gradient", "outside-sweet-spot", *PROGRESS)
REMEDIES = ("initialize", "swap-activation")

WARNING, FAULT = 0.5, 0.8  # trials: healthy tanh nets at most 0.23, saturated ones at least 0.81
ERRORS = 3.0  # standard errors beyond the threshold


def judge(study: Study) -> Iterator[Finding]:
    """A finding for each hidden bounded activation that is mostly flat."""
    tape = study.tape
    made = producers(tape)
    for entry in tape.entries:
        units = study.measurement.units.get(entry.outputs[0])
        spot = sweet_spot(entry) if units is not None and units.saturated is not None else None
        if units is None or units.saturated is None or spot is None or units.nonfinite:
            continue
        share = units.saturated
        error = math.sqrt(share * (1 - share) / max(units.channels, tape.samples or 1))
        if share - ERRORS * error > WARNING and is_hidden(tape, entry.outputs[0]):
            severity = Severity.FAULT if share - ERRORS * error > FAULT else Severity.WARNING
            if not all(is_drawn(weight) for weight in weights_before(tape, made, entry.inputs[0])):
                severity = Severity.ADVICE
            predicted = outside(study.forecast.states.get(entry.inputs[0]), spot)
            yield _finding(study, entry, severity, share, error, predicted)


def outside(state: State | None, spot: SweetSpot) -> float | None:
    """Predicted share of a Gaussian pre-activation outside the sweet spot; None when its law is unknown."""
    if state is None or not bool(torch.isfinite(state.variance).all()):
        return None
    std = state.variance.clamp(min=1e-300).sqrt()
    inside = torch.special.ndtr((spot.high - state.mean) / std) - torch.special.ndtr((spot.low - state.mean) / std)
    return float(1 - inside.mean())


def _finding(
    study: Study, entry: Entry, severity: Severity, share: float, error: float, predicted: float | None
) -> Finding:
    before = study.measurement.laws.get(entry.inputs[0])
    evidence = [Evidence("share outside the sweet spot", share, WARNING, error)]
    if predicted is not None:
        evidence.append(Evidence("the same, predicted", predicted))
    if before is not None:
        evidence.append(Evidence("std of the pre-activation", before.std, 1.0))
    scale = f", pre-activation std {before.std:.3g}" if before is not None else ""
    return Finding(
        "saturated-units", severity, entry.module,
        str(study.tape.location(entry)), f"{share:.0%} of {entry.op} outputs lie on its flat ends{scale}; level: below "
        f"{WARNING:.0%}", tuple(evidence), entry.index, modules=(entry.module,),
    )  # fmt: skip


def sick() -> Subject:
    """Weights drawn with a standard deviation of 1 where 1 / sqrt(fan-in) keeps the scale."""
    return _net(1.0)


def healthy() -> Subject:
    """The same net with the standard deviation that keeps the scale."""
    return _net(64**-0.5)


def _net(std: float) -> Subject:
    torch.manual_seed(0)
    first, second = nn.Linear(64, 64), nn.Linear(64, 64)
    for layer in (first, second):
        nn.init.normal_(layer.weight, std=std)
    model = nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(64, 1))
    x = torch.randn(64, 64)
    return Subject(model, (x, x[:, :1].clone()), nn.functional.mse_loss)
