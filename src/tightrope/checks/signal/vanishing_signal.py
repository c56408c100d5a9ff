"""`vanishing-signal`: what differs between samples is lost on the way through the net.

Law       a layer multiplies the variance between samples by chi = n Var(w) E[f'(z)^2] to first order; a stack of L
          layers multiplies it by chi^L, while biases and means stay. What arrives no longer tells samples apart.
Evidence  at each tensor that the whole signal passes: std over samples (and sites) against the rms, and against the
          std of the first layer's output; measured, beside the same from the predicted law.
Verdict   `fault` where that share falls below 0.3 %, or the std below 1e-4 of where it started.
Remedy    solve every weight scale from the laws (`initialize`); a normaliser or a skip keeps it for any scale.
Limits    tensors inside a residual branch are not judged: the skip carries the signal past them. Nor are tensors of
          which no dimension is known to hold the samples (time-first data that a view turns).
References  Poole et al. (2016), Exponential expressivity in deep neural networks through transient chaos, NeurIPS;
          Schoenholz et al. (2017), Deep information propagation, ICLR.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from tightrope.checks.echoes import PROGRESS, UNITS
from tightrope.checks.layers import Cut, cuts
from tightrope.finding import Evidence, Finding, Severity
from tightrope.law import Law
from tightrope.study import Study
from tightrope.subject import Subject

STAGE = "batch"
EXPLAINS = ("vanishing-gradient", *UNITS, *PROGRESS)
REMEDIES = ("initialize",)

SHARE = 3e-3  # std between samples over rms: healthy nets of trials stay above 1.7e-2, dead ones fall below 2e-5
DECAY = 1e-4  # std between samples over that of the first layer's output; the same trials


def judge(study: Study) -> Iterator[Finding]:
    """One finding, at the first tensor where the signal is gone."""
    passed = [cut for cut in cuts(study) if _judged(study, cut)]
    if len(passed) < 3:
        return
    start = study.measurement.laws[passed[0].value]
    if start.signal <= SHARE * start.rms:
        return  # the data do not differ: another check's matter
    for cut in passed[1:]:
        law = study.measurement.laws[cut.value]
        if law.signal < SHARE * law.rms or law.signal < DECAY * start.signal:
            yield _finding(study, passed, cut, start, law)
            return


def _judged(study: Study, cut: Cut) -> bool:
    law = study.measurement.laws.get(cut.value)
    if law is None or not law.finite or len(study.tape.values[cut.value].shape) < 2:
        return False
    return law.signal > 0 or law.site == 0  # else its samples stand in a dimension that was taken for sites


def _finding(study: Study, passed: list[Cut], cut: Cut, start: Law, law: Law) -> Finding:
    share = law.signal / law.rms if law.rms else 0.0
    evidence = [
        Evidence("std between samples / rms", share, SHARE),
        Evidence("std between samples", law.signal, start.signal, law.error * law.signal),
    ]
    predicted = study.forecast.laws.get(cut.value)
    if predicted is not None:
        evidence.append(
            Evidence("std between samples, predicted", predicted.signal, None, predicted.error * predicted.signal)
        )
    gone = [c.entry.module for c in passed if c.entry.index >= cut.entry.index]
    text = (
        f"std between samples {start.signal:.3g} → {law.signal:.3g}, {share:.2g} of the rms; level: above {SHARE:.1%}"
    )
    if law.signal < DECAY * start.signal and share >= SHARE:
        text = f"std between samples {start.signal:.3g} → {law.signal:.3g}; level: above {DECAY:g} of the start"
    return Finding(
        "vanishing-signal", Severity.FAULT, cut.entry.module, str(study.tape.location(cut.entry)), text,
        tuple(evidence),
        cut.entry.index, modules=tuple(dict.fromkeys(gone)),
    )  # fmt: skip


def sick() -> Subject:
    """Ten sigmoid layers as torch initialises them: each passes a thirtieth of the variance between samples."""
    return _net(10, nn.Sigmoid)


def healthy() -> Subject:
    """Ten tanh layers with weights of the tanh law."""
    return _net(10, nn.Tanh)


def _net(depth: int, activation: type[nn.Module]) -> Subject:
    torch.manual_seed(0)
    stack: list[nn.Module] = []
    for _ in range(depth):
        layer = nn.Linear(64, 64)
        if activation is nn.Tanh:
            nn.init.normal_(layer.weight, std=(2.15 / 64) ** 0.5)
        stack += [layer, activation()]
    return Subject(
        nn.Sequential(*stack, nn.Linear(64, 4)),
        (torch.randn(64, 64), torch.arange(64) % 4),
        nn.functional.cross_entropy,
    )
