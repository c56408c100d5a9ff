"""`redundant-bias`: a bias that the normaliser behind it takes away again.

Law       batch and instance normalisation subtract each channel's mean, so (z + b) - mean(z + b) = z - mean(z): the
          bias of the layer before changes no output, its gradient is 0 and stays 0 up to rounding. Their own beta does
          what it was meant for.
Evidence  a layer's bias on the tape whose result nothing but a normaliser of single channels reads; the rms of its
          gradient beside that of the weight's.
Verdict   `advice`, one finding for all layers.
Remedy    leave the bias out (`drop-bias`).
Limits    layer, group and RMS normalisation take only a part of a bias away, and frozen statistics none: neither is
          counted.
References  Ioffe, Szegedy (2015), Batch normalization, ICML, section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from tightrope.checks.trace import VIEWS, reads
from tightrope.finding import Evidence, Finding, Severity
from tightrope.study import Study
from tightrope.subject import Subject
from tightrope.tape.tape import Entry, Kind, Ref, Tape

STAGE = "graph"
EXPLAINS = ()
REMEDIES = ("drop-bias",)

LAYERS = frozenset(("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"))
STATISTICS = {"batch_norm": (5, "training"), "instance_norm": (5, "use_input_stats")}
"""Normalisers of single channels, and the argument that says that they use the batch's own mean."""


def judge(study: Study) -> Iterator[Finding]:
    """At most one finding: all layers whose bias has no effect."""
    tape = study.tape
    biased = ((entry, bias_of(tape, entry)) for entry in tape.entries)
    found = [(entry, bias) for entry, bias in biased if bias is not None and _removed(tape, entry)]
    if not found:
        return
    first, bias = found[0]
    gradients = study.measurement.gradients
    evidence = [Evidence("layers with such a bias", len(found), 0.0)]
    weight = first.argument(1, "weight")
    if bias in gradients and isinstance(weight, Ref) and weight.id in gradients:
        evidence.append(Evidence("rms of the bias's gradient", gradients[bias].rms, 0.0))
        evidence.append(Evidence("rms of the weight's gradient", gradients[weight.id].rms))
    modules = tuple(dict.fromkeys(entry.module for entry, _ in found))
    span = modules[0] if len(modules) == 1 else f"{modules[0]} … {modules[-1]}"
    plural = "a bias" if len(found) == 1 else f"{len(found)} biases"
    yield Finding(
        "redundant-bias", Severity.ADVICE, span, str(tape.location(first)),
        f"{plural} just before a normaliser that subtracts the channel's mean: no effect, gradient 0",
        tuple(evidence), first.index, modules=modules,
    )  # fmt: skip


def bias_of(tape: Tape, entry: Entry) -> int | None:
    """The bias parameter of a layer."""
    bias = entry.argument(2, "bias") if entry.op in LAYERS else None
    return bias.id if isinstance(bias, Ref) and tape.values[bias.id].kind is Kind.PARAMETER else None


def _removed(tape: Tape, entry: Entry) -> bool:
    """Whether normalisers that subtract the mean of each of a layer's channels are all that reads its result."""
    shape = tape.values[entry.outputs[0]].shape
    channel = 1 if entry.op.startswith("conv") else len(shape) - 1
    after = list(reads(tape, entry.outputs[0], VIEWS & {"contiguous", "clone", "float", "to"}))
    if channel != 1 or not after:
        return False
    own = all(reader.op in STATISTICS and reader.argument(*STATISTICS[reader.op]) is True for reader in after)
    return own and all(tape.values[reader.inputs[0]].shape == shape for reader in after)


def sick() -> Subject:
    """A biased layer before batch normalisation."""
    return _net(bias=True)


def healthy() -> Subject:
    """The same layer without bias."""
    return _net(bias=False)


def _net(*, bias: bool) -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32, bias=bias), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))
    return Subject(model, (torch.randn(64, 8), torch.arange(64) % 3), F.cross_entropy)


__all__ = ["bias_of"]
