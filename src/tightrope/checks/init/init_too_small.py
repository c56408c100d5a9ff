"""`init-too-small`: weights so small that layer after layer shrinks the signal.

Law       E[z^2] = n E[w^2] E[f(z)^2] for weights of fan-in n behind an activation f: the scale is kept at
          n E[w^2] = 1 / E[f^2], which is 2 for ReLU and 2.54 for tanh at unit scale. L layers multiply what is missing.
          The gradient of each weight holds the factors of all other layers, so that gradient descent at rate eta stays
          on a plateau for about 1 / (eta (N - 2) a^(N - 2)) steps when N layers each multiply by a < 1.
Evidence  n E[w^2] of every hidden layer without a normaliser behind it; the product of the factors over the stack, and
          with the last layer's, which counts as a hidden one where it is smaller; the scale of the data.
Verdict   `fault` when the product of the missing factors is a reason (below 1/30, the square root of what is judged as
          vanished) and signal or gradient really vanishes on the way; `warning` when every step is plain gradient
          descent and less than 1e-4 of the data's scale comes out at the end: ten layers of torch's default.
Remedy    solve every weight scale from the laws (`initialize`), or draw weights by the law of the activation.
Limits    one small layer in a shallow net is no fault, nor is a small layer before a normaliser or a small last layer.
          torch's own default, n E[w^2] = 1/3, is too small from about ten plain layers on.
          Only the first step is judged: what weights have become later is the updates' doing.
References  He et al. (2015), Delving deep into rectifiers, ICCV; Glorot, Bengio (2010), AISTATS; Saxe, McClelland,
          Ganguli (2014), Exact solutions to the nonlinear dynamics of learning in deep linear neural networks, ICLR.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch

from tightrope.checks.echoes import AFTERMATH
from tightrope.checks.init.scale import Offenders, finding, offenders, plain_net, vanished
from tightrope.checks.layers import cuts, layers
from tightrope.finding import Finding, Severity
from tightrope.study import Study
from tightrope.subject import Subject

STAGE = "batch"
EXPLAINS = AFTERMATH
REMEDIES = ("initialize",)

REASON = math.log(1 / 30)  # the square root of the thousandth below which a gradient counts as vanished


PLATEAU = math.log(1e-4)  # below: torch's default (a factor of 0.41 a layer) reaches it at ten layers, the page's limit


def judge(study: Study) -> Iterator[Finding]:
    """One finding over the layers that are too small together."""
    if study.step > 1:
        return
    off = offenders(study, -1)
    if not off.found or off.total >= REASON:
        return
    if vanished(study):
        yield finding(study, "init-too-small", off)
    elif _plateau(study, off):
        yield replace(finding(study, "init-too-small", off), severity=Severity.WARNING)


def _plateau(study: Study, off: Offenders) -> bool:
    """Whether plain gradient descent starts where the gradients of all layers are small at once."""
    optimizers = study.optimizers.items
    if not optimizers or not all(isinstance(optimizer, torch.optim.SGD) for optimizer in optimizers):
        return False  # others divide by the gradient's own scale
    passed = {cut.value for cut in cuts(study)}
    if not all(layer.entry.outputs[0] in passed for layer in off.found):
        return False  # beside a skip, or one of several ways
    heads = [x for x in layers(study.tape, study.measurement.laws) if x.head and not x.normalised]
    data = study.measurement.laws.get(off.found[0].entry.inputs[0])
    if len(heads) != 1 or data is None:
        return False
    last = min(max(heads[0].excess, off.total / len(off.found)), 0.0)
    return off.total + last + math.log(max(data.rms, 1.0)) < PLATEAU


def sick() -> Subject:
    """Twenty ReLU layers with torch's default weights, n Var(w) = 1/3."""
    return plain_net(1 / 3, depth=20)


def healthy() -> Subject:
    """The same net at the ReLU law, n Var(w) = 2."""
    return plain_net(2.0, depth=20)
