"""`unscaled-target`: the target of a regression far from unit scale.

Law       a squared error starts at E[(y - f)^2] = Var(y) + (E[y] - E[f])^2 + Var(f). Its gradient is proportional to
          the target's scale s: plain gradient descent takes steps s times those of a standardised target, and an
          optimizer that moves each weight by about its learning rate needs s / rate steps for the bias alone.
Evidence  rms, mean and standard deviation of the target beside the output's rms at the first step, for squared and
          absolute errors.
Verdict   rms of the target above 30 and above five times the output's `warning`, above 1000 `fault`.
Remedy    standardise the target on the training data (`standardize-target`), or start the last bias at its mean.
Limits    the first step alone is judged; a head that scales its result to the target's size starts near it and passes.
          Targets that the head cannot reach are `target-outside-head-range`.
References  LeCun, Bottou, Orr, Müller (1998), Efficient backprop; van Hasselt, Guez, Hessel, Mnih, Silver (2016),
          Learning values across many orders of magnitude, NeurIPS.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from tightrope.checks.echoes import AFTERMATH
from tightrope.checks.loss.heads import LossTerm, loss_terms
from tightrope.finding import Evidence, Finding, Severity
from tightrope.study import Study
from tightrope.subject import Subject

STAGE = "batch"
EXPLAINS = ("ill-conditioned", *AFTERMATH)
REMEDIES = ("standardize-target",)

WARNING = 30.0  # rms; healthy unstandardised targets of trials had up to 5.4
FAULT = 1e3  # an optimizer at its usual rate of 1e-3 needs a million steps for the bias alone
RATIO = 5.0  # over the output's rms: four fifths of the error are the scale


def judge(study: Study) -> Iterator[Finding]:
    """A finding for each squared or absolute error of the first step whose target is far out."""
    if study.step != 1:
        return
    laws = study.measurement.laws
    for term in loss_terms(study.tape):
        if term.kind not in ("mse", "l1", "gaussian") or term.target not in laws or term.scores not in laws:
            continue
        target, output = laws[term.target], laws[term.scores]
        if target.finite and output.finite and target.rms > max(WARNING, RATIO * output.rms):
            yield _finding(study, term)


def _finding(study: Study, term: LossTerm) -> Finding:
    laws = study.measurement.laws
    assert term.target is not None
    target, output = laws[term.target], laws[term.scores]
    severity = Severity.FAULT if target.rms > FAULT else Severity.WARNING
    evidence = (
        Evidence("rms of the target", target.rms, 1.0),
        Evidence("mean of the target", target.mean, 0.0),
        Evidence("std of the target", target.std, 1.0),
        Evidence("rms of the output", output.rms, 1.0),
    )
    return Finding(
        "unscaled-target", severity, term.entry.module, str(term.entry.location),
        f"the target's mean is {target.mean:.3g}, its std {target.std:.3g}; the output starts at rms {output.rms:.3g}; "
        "level: mean 0, std 1",
        evidence, term.entry.index, modules=(term.entry.module,),
    )  # fmt: skip


def sick() -> Subject:
    """Targets between 25 and 325."""
    return _net(150.0, 175.0)


def healthy() -> Subject:
    """The same targets, standardised."""
    return _net(1.0, 0.0)


def _net(scale: float, offset: float) -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1))
    x = torch.randn(64, 8)
    return Subject(model, (x, offset + scale * torch.tanh(x[:, :1] - x[:, 1:2])), nn.functional.mse_loss)
