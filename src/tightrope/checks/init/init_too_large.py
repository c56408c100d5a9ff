"""`init-too-large`: weights so large that the layers blow the signal up or drive units into their flat ends.

Law       E[z^2] = n E[w^2] E[f(z)^2] for weights of fan-in n behind an activation f: the scale is kept at
          n E[w^2] = 1 / E[f^2], which is 2 for ReLU and 2.54 for tanh at unit scale. Var(z) beyond ten drives tanh and
          sigmoid into saturation.
Evidence  n E[w^2] of every hidden layer without a normaliser behind it; the product of the factors over the stack.
Verdict   `fault` when signal or gradient really explodes, or a bounded activation saturates, and the product of the
          factors is a reason: above 5, the ratio of scales at which most of a tanh layer is flat.
Remedy    solve every weight scale from the laws (`initialize`), or draw weights by the law of the activation.
Limits    a large layer before a normaliser has no effect on the signal and is not judged; nor is the last layer, whose
          size shows in the loss (`loss-at-init`).
          Only the first step is judged: what weights have become later is the updates' doing.
References  He et al. (2015), Delving deep into rectifiers, ICCV; Glorot, Bengio (2010), AISTATS.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from tightrope.checks.echoes import AFTERMATH
from tightrope.checks.init.scale import exploded, finding, offenders, plain_net, vanished
from tightrope.checks.loss import loss_at_init
from tightrope.checks.units import saturated_units
from tightrope.finding import Finding
from tightrope.study import Study
from tightrope.subject import Subject

STAGE = "batch"
EXPLAINS = AFTERMATH
REMEDIES = ("initialize",)

REASON = math.log(5.0)  # at a pre-activation std of 5, 72 % of tanh units lie outside their sweet spot


def judge(study: Study) -> Iterator[Finding]:
    """One finding over the layers that are too large together."""
    if study.step > 1:
        return
    off = offenders(study, +1)
    if off.found and off.total > REASON and _harmful(study):
        yield finding(study, "init-too-large", off)


def _harmful(study: Study) -> bool:
    return exploded(study) or any(True for _ in saturated_units.judge(study)) or any(
        True for _ in loss_at_init.judge(study)) or vanished(study)  # fmt: skip


def sick() -> Subject:
    """Six ReLU layers with weights from N(0, 1), n Var(w) = 128."""
    return plain_net(128.0, depth=6)


def healthy() -> Subject:
    """The same net at the ReLU law, n Var(w) = 2."""
    return plain_net(2.0, depth=6)
