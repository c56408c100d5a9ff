"""`zero-init`: the units of a hidden layer start out identical and stay so.

Law       units with equal weights and biases compute the same number and, where the next layer weighs them alike,
          receive the same gradient: no step ever tells them apart, and the layer counts as one unit.
Evidence  largest distance of a unit's weights and bias from the layer's mean, over their rms; exactly zero.
Verdict   `fault` for a hidden layer whose units are all identical.
Remedy    draw the weights at random, by the law of the activation (`initialize`).
Limits    last layers, ends of residual branches, gates and normalisers are set to zero on purpose and are not judged;
          nor is a layer whose biases differ.
          Only the first step is judged: what weights have become later is the updates' doing.
References  Goodfellow, Bengio, Courville (2016), Deep Learning, section 8.4.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from tightrope.checks.echoes import AFTERMATH
from tightrope.checks.layers import Layer, layers
from tightrope.finding import Evidence, Finding, Severity
from tightrope.study import Study
from tightrope.subject import Subject
from tightrope.tape.tape import Kind

STAGE = "graph"
EXPLAINS = ("init-too-small", *AFTERMATH)
REMEDIES = ("initialize",)


def judge(study: Study) -> Iterator[Finding]:
    """One finding over all hidden layers of identical units."""
    if study.step > 1:
        return
    off = [
        layer
        for layer in layers(study.tape, study.measurement.laws)
        if not layer.head and not layer.branch and _identical(study, layer)
    ]
    if not off:
        return
    names = list(dict.fromkeys(layer.entry.module for layer in off))
    first = off[0].entry
    content = off[0].weight.content
    value = float(content.reshape(-1)[0]) if content is not None else 0.0
    units = sum(layer.weight.shape[0] for layer in off)
    yield Finding(
        "zero-init", Severity.FAULT, names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}",
        str(study.tape.location(first)),
        f"all {units} units start with the same weights ({value:.3g}): they stay identical",
        (Evidence("distance between units / rms of the weights", 0.0, 1.0),), first.index, modules=tuple(names),
    )  # fmt: skip


def _identical(study: Study, layer: Layer) -> bool:
    content = layer.weight.content
    if content is None or content.is_meta or content.shape[0] < 2:
        return False
    units = content if layer.entry.op in ("linear",) or layer.entry.op.startswith("conv") else content.transpose(-1, -2)
    if layer.entry.op.startswith("conv_transpose"):
        units = content.transpose(0, 1)
    if not bool((units == units[:1]).all()):
        return False
    biases = [study.tape.values[n] for n in layer.entry.inputs if study.tape.values[n].kind is Kind.PARAMETER]
    vectors = [v.content for v in biases if v.content is not None and len(v.shape) == 1]
    return all(bool((v == v[0]).all()) for v in vectors)


def sick() -> Subject:
    """All weights zero."""
    return _net(zero=True)


def healthy() -> Subject:
    """Only the last layer zero, which is a good start."""
    return _net(zero=False)


def _net(*, zero: bool) -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))
    for layer in (model[0], model[2], model[4]) if zero else (model[4],):
        assert isinstance(layer, nn.Linear)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return Subject(model, (torch.randn(64, 16), torch.arange(64) % 4), nn.functional.cross_entropy)
