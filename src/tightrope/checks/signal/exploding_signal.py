"""`exploding-signal`: activations grow from layer to layer without bound.

Law       a layer multiplies E[x^2] by n Var(w) E[f^2]; above 1, a stack of L layers multiplies it by that to the L.
Evidence  rms at each tensor that the whole signal passes, against the rms of the data the first weight reads;
          measured, beside the predicted rms.
Verdict   `fault` where it has grown a thousandfold.
Remedy    solve every weight scale from the laws (`initialize`); a normaliser keeps it for any scale.
Limits    data that are large to begin with are another check's matter (`unscaled-input`). Residual nets without
          normalisers grow with depth by design; they are judged by the same thousandfold.
References  He et al. (2015), Delving deep into rectifiers, ICCV; Hanin, Rolnick (2018), How to start training, NeurIPS.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from tightrope.checks.echoes import ATTENTION, PROGRESS, UNITS
from tightrope.checks.layers import cuts
from tightrope.finding import Evidence, Finding, Severity
from tightrope.study import Study
from tightrope.subject import Subject

STAGE = "batch"
EXPLAINS = (
    "exploding-gradient",
    "loss-at-init",
    "half-precision-overflow",
    "non-finite",
    *UNITS,
    *ATTENTION,
    *PROGRESS,
)
REMEDIES = ("initialize",)

GROWTH = 1e3  # healthy nets of trials grow at most 1.8 a layer and 35 in all; sick ones 5 a layer


def judge(study: Study) -> Iterator[Finding]:
    """One finding, at the first tensor that has grown too far."""
    laws = study.measurement.laws
    passed = [cut for cut in cuts(study) if cut.value in laws and laws[cut.value].finite]
    if not passed:
        return
    sources = [laws[n].rms for n in passed[0].entry.inputs if study.tape.values[n].producer is None and n in laws
               and study.tape.values[n].name is None]  # fmt: skip
    start = max([1.0, *sources])
    for cut in passed:
        law = laws[cut.value]
        if law.rms > GROWTH * start:
            predicted = study.forecast.laws.get(cut.value)
            evidence = [Evidence("rms", law.rms, start, law.error * law.rms)]
            if predicted is not None:
                evidence.append(Evidence("rms, predicted", predicted.rms, None, predicted.error * predicted.rms))
            gone = [c.entry.module for c in passed if c.entry.index >= cut.entry.index]
            yield Finding(
                "exploding-signal", Severity.FAULT, cut.entry.module, str(study.tape.location(cut.entry)),
                f"rms {start:.3g} → {law.rms:.3g} and growing; level: within {GROWTH:.0f} times the data",
                tuple(evidence), cut.entry.index, modules=tuple(dict.fromkeys(gone)),
            )  # fmt: skip
            return


def sick() -> Subject:
    """Eight ReLU layers whose weights are five times too large."""
    return _net(5.0)


def healthy() -> Subject:
    """The same net at the ReLU law."""
    return _net(1.0)


def _net(factor: float) -> Subject:
    torch.manual_seed(0)
    stack: list[nn.Module] = []
    for _ in range(8):
        layer = nn.Linear(64, 64)
        nn.init.normal_(layer.weight, std=factor * (2 / 64) ** 0.5)
        stack += [layer, nn.ReLU()]
    return Subject(
        nn.Sequential(*stack, nn.Linear(64, 4)),
        (torch.randn(64, 64), torch.arange(64) % 4),
        nn.functional.cross_entropy,
    )
