"""`dead-units`: rectifier units that are zero for every sample.

Law       a unit max(0, z) with z ~ N(mu, sigma^2) over the data is active with probability p = Phi(mu / sigma); it is
          silent on a whole batch of m samples by chance with probability (1 - p)^m. Signs that initialisation drew
          alone leave half of a layer's units with mu < 0, so a layer of n units has at most n / 2 dead ones within
          sqrt(n) / 2, however narrow the data; its gradient passes through the rest.
Evidence  share of units that are exactly zero on every sample and site of the batch, less the share that the predicted
          law of each unit's pre-activation lets chance explain.
Verdict   `warning` above 0.6 and `fault` above 0.85, when a fair coin for each unit gives as many with a probability
          below 0.01 over all layers together; `fault` when the whole layer is silent: no gradient passes it. One step
          milder for trained weights, which may be sparse.
Remedy    solve the scales and reset the biases (`initialize`); or a rectifier with a slope on its negative side, which
          lets a silent unit come back. When data or learning rate killed the units, cure that first.
Limits    one batch: a unit that only rare data wakes counts as silent. Units that are gates are not judged.
References  Lu, Shin, Su, Karniadakis (2020), Dying ReLU and initialization, Commun. Comput. Phys. 28; Maas, Hannun, Ng
          (2013), Rectifier nonlinearities improve neural network acoustic models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tightrope.checks.echoes import PROGRESS
from tightrope.checks.trace import is_hidden, producers
from tightrope.checks.weights import is_drawn, weights_before
from tightrope.finding import Evidence, Finding, Severity
from tightrope.roles import Role
from tightrope.rules.state import State
from tightrope.study import Study
from tightrope.subject import Subject
from tightrope.tape.tape import Entry

STAGE = "batch"
EXPLAINS = ("vanishing-signal", "vanishing-gradient", "unused-parameter", *PROGRESS)
REMEDIES = ("initialize", "leaky-activation")

RECTIFIERS = frozenset(("relu", "relu6", "threshold"))
WARNING, FAULT = 0.6, 0.85  # healthy nets, 20 layers of He-initialised ReLU included, stayed below 0.47 in trials
ALPHA = 0.01  # chance of one false alarm over all layers of a step
ALIVE = 1e-3  # a unit that fires less than once in a thousand samples is not alive


def judge(study: Study) -> Iterator[Finding]:
    """A finding for each layer most of whose rectifiers are silent."""
    tape, units = study.tape, study.measurement.units
    made = producers(tape)
    silenced = False
    entries = [e for e in tape.entries if e.op in RECTIFIERS and e.outputs[0] in units and (tape.samples or 0) > 1]
    for entry in entries:
        found = units[entry.outputs[0]]
        if found.nonfinite or found.silent <= WARNING or not is_hidden(tape, entry.outputs[0]):
            continue
        share = found.silent - chance(study.forecast.states.get(entry.inputs[0]), tape.samples or 1)
        whole = found.silent == 1.0
        if share <= WARNING or coin(round(share * found.channels), found.channels) * len(entries) > ALPHA:
            continue
        law = study.measurement.laws.get(entry.inputs[0])
        if silenced and law is not None and law.signal == 0:
            continue  # what comes in is constant already: the layer before says so
        silenced = True
        severity = Severity.FAULT if whole or share > FAULT else Severity.WARNING
        drawn = all(is_drawn(weight) for weight in weights_before(tape, made, entry.inputs[0]))
        if not drawn and not whole:
            severity = Severity.WARNING if share > FAULT else Severity.ADVICE
        yield _finding(study, entry, share, severity)


def chance(state: State | None, samples: int) -> float:
    """Share of units that are alive by their predicted law and yet silent on a batch of this size."""
    if state is None or not bool(torch.isfinite(state.variance).all()):
        return 0.0
    mean, std = torch.broadcast_tensors(state.mean, state.variance.clamp(min=1e-300).sqrt())
    sites = [d for d in state.dims(Role.SITE) if d not in state.dims(Role.CHANNEL)]
    active = torch.special.ndtr(mean / std)
    active = active.amax(sites, keepdim=True) if sites else active
    return float(torch.where(active >= ALIVE, (1 - active) ** samples, torch.zeros_like(active)).mean())


def coin(heads: int, tosses: int) -> float:
    """Probability that a fair coin shows at least so many heads."""
    n = torch.tensor(float(tosses), dtype=torch.float64)
    k: Tensor = torch.arange(heads, tosses + 1, dtype=torch.float64)
    log = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1) - n * math.log(2)
    return float(log.exp().sum())


def _finding(study: Study, entry: Entry, share: float, severity: Severity) -> Finding:
    units = study.measurement.units[entry.outputs[0]]
    before = study.measurement.laws.get(entry.inputs[0])
    evidence = [Evidence("share of silent units", share, 0.5 if share < 1 else 0.0)]
    if before is not None:
        evidence.append(Evidence("mean of the pre-activation", before.mean, 0.0))
        evidence.append(Evidence("std of the pre-activation", before.std))
    return Finding(
        "dead-units", severity, entry.module, str(study.tape.location(entry)),
        f"{share:.0%} of {units.channels} units are zero for all {study.tape.samples} samples; "
        "initialisation alone leaves at most half",
        tuple(evidence), entry.index, modules=(entry.module,),
    )  # fmt: skip


def sick() -> Subject:
    """Biases of -4 behind inputs of unit scale: no pre-activation is ever positive."""
    return biased_net(-4.0)


def healthy() -> Subject:
    """The same net with zero biases."""
    return biased_net(0.0)


def biased_net(bias: float, activation: type[nn.Module] = nn.ReLU) -> Subject:
    """Two layers at the ReLU law, the second with this bias: what checks of single units show off with."""
    torch.manual_seed(0)
    first, second = nn.Linear(32, 64), nn.Linear(64, 64)
    for layer in (first, second):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    nn.init.constant_(second.bias, bias)
    model = nn.Sequential(first, activation(), second, activation(), nn.Linear(64, 1))
    x = torch.randn(64, 32)
    return Subject(model, (x, x[:, :1].clone()), nn.functional.mse_loss)
