"""`init-too-small`: weights so small that layer after layer shrinks the signal.

Law       E[z^2] = n E[w^2] E[f(z)^2] for weights of fan-in n behind an activation f: the scale is kept at
          n E[w^2] = 1 / E[f^2], which is 2 for ReLU and 2.54 for tanh at unit scale. L layers multiply what is missing.
Evidence  n E[w^2] of every hidden layer without a normaliser behind it; the product of the factors over the stack.
Verdict   `fault` when signal or gradient really vanishes on the way and the product of the missing factors is a
          reason: below 1/30, the square root of what is judged as vanished.
Remedy    solve every weight scale from the laws (`initialize`), or draw weights by the law of the activation.
Limits    one small layer in a shallow net is no fault, nor is a small layer before a normaliser or a small last layer.
          torch's own default, n E[w^2] = 1/3, is too small from about ten plain layers on.
          Only the first step is judged: what weights have become later is the updates' doing.
References  He et al. (2015), Delving deep into rectifiers, ICCV; Glorot, Bengio (2010), AISTATS.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from tightrope.checks.echoes import AFTERMATH
from tightrope.checks.init.scale import finding, offenders, plain_net, vanished
from tightrope.finding import Finding
from tightrope.study import Study
from tightrope.subject import Subject

STAGE = "batch"
EXPLAINS = AFTERMATH
REMEDIES = ("initialize",)

REASON = math.log(1 / 30)  # the square root of the thousandth below which a gradient counts as vanished


def judge(study: Study) -> Iterator[Finding]:
    """One finding over the layers that are too small together."""
    if study.step > 1:
        return
    off = offenders(study, -1)
    if off.found and off.total < REASON and vanished(study):
        yield finding(study, "init-too-small", off)


def sick() -> Subject:
    """Twenty ReLU layers with torch's default weights, n Var(w) = 1/3."""
    return plain_net(1 / 3, depth=20)


def healthy() -> Subject:
    """The same net at the ReLU law, n Var(w) = 2."""
    return plain_net(2.0, depth=20)
