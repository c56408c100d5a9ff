"""`norm-after-activation`: batch normalisation behind the nonlinearity.

Law       before a rectifier, normalised z ~ N(beta, gamma^2) keeps the share Phi(beta / |gamma|) of its units active,
          half at the start, whatever the weights do. Behind it, the pre-activation's mean is free to drift, the share
          active with it, and the normalised law is one-sided: skewed, with an atom at the value that zero is mapped to.
Evidence  the call that made the normaliser's input; the share of zeros in it.
Verdict   `advice`, one finding for all normalisers: either order trains.
Remedy    the normaliser before the activation (`swap-norm`).
Limits    batch normalisation alone; pre-activation residual blocks, in which a sum stands between, pass.
References  Ioffe, Szegedy (2015), Batch normalization, ICML, section 3.2; He, Zhang, Ren, Sun (2016), Identity mappings
          in deep residual networks, ECCV.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from tightrope.checks.trace import CHANCE, VIEWS, origin, producers
from tightrope.finding import Evidence, Finding, Severity
from tightrope.study import Study
from tightrope.subject import Subject

STAGE = "graph"
EXPLAINS = ()
REMEDIES = ("swap-norm",)

RECTIFIERS = frozenset(("relu", "relu6", "leaky_relu", "elu", "gelu", "silu", "softplus", "sigmoid", "tanh"))
_PAST = VIEWS | CHANCE | {"max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d"}


def judge(study: Study) -> Iterator[Finding]:
    """At most one finding: all normalisers that stand behind an activation."""
    tape, units = study.tape, study.measurement.units
    made = producers(tape)
    found = []
    for entry in tape.entries:
        source = made.get(origin(made, entry.inputs[0], _PAST)) if entry.op == "batch_norm" else None
        if source is not None and source.op in RECTIFIERS:
            found.append((entry, source))
    if not found:
        return
    first, source = found[0]
    zero = units[source.outputs[0]].zero if source.outputs[0] in units else 0.0
    modules = tuple(dict.fromkeys(entry.module for entry, _ in found))
    span = modules[0] if len(modules) == 1 else f"{modules[0]} … {modules[-1]}"
    yield Finding(
        "norm-after-activation", Severity.ADVICE, span, str(tape.location(first)),
        f"batch_norm reads what {source.op} made; before it, it holds the share of active units at a half",
        (Evidence("normalisers behind an activation", len(found), 0.0), Evidence("share of zeros they read", zero)),
        first.index, modules=modules,
    )  # fmt: skip


def sick() -> Subject:
    """ReLU, then batch normalisation."""
    return _net(nn.ReLU(), nn.BatchNorm1d(32))


def healthy() -> Subject:
    """Batch normalisation, then ReLU."""
    return _net(nn.BatchNorm1d(32), nn.ReLU())


def _net(*pair: nn.Module) -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32, bias=False), *pair, nn.Linear(32, 3))
    return Subject(model, (torch.randn(64, 8), torch.arange(64) % 3), F.cross_entropy)
