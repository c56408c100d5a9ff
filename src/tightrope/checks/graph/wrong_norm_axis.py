"""`wrong-norm-axis`: a normaliser that averages over another dimension than its purpose names.

Law       batch normalisation reads dimension 1 as channels and takes each channel's mean and variance over all others;
          it deletes the constant and the scale of what stands in that dimension. With (n, t, c) for (n, c, t) it
          deletes those of time steps and leaves those of channels. A normaliser of single samples (layer, group,
          instance normalisation) that averages over the batch gives one sample's result from the others', and 0 / 0
          for a sample alone, without running averages to take their place.
Evidence  the dimension that a weight makes its channels in, followed to the normaliser (for data, the dimension that a
          weight reads and whose positions differ ten times as much as those of dimension 1); whether any weight reads
          the dimension that is taken for channels; the dimensions that mean and variance run over; tensors that the
          module keeps besides its parameters, as running averages are kept.
Verdict   `fault` when the batch is read as channels or lies inside a layer normalisation; `warning` when channels end
          in a dimension behind the first and no weight ever reads the first, and for a normaliser that is written out
          over the batch and keeps no averages.
Remedy    the layout or the dimension to change (`norm-axis`).
Limits    a dimension that cannot be followed, or that another layer does read as channels, passes. So does what no
          weight reads afterwards: losses standardise over the batch on purpose.
References  Ioffe, Szegedy (2015), Batch normalization, ICML; Ba, Kiros, Hinton (2016), Layer normalization; Wu, He
          (2018), Group normalization, ECCV.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.checks.echoes import AFTERMATH
from tightrope.checks.graph.dims import KEEPS, MOVES, axes_of, is_sample, moved, uses
from tightrope.checks.trace import NORMS, VIEWS, feeds_weight, is_weighted, learned, origin, producers
from tightrope.finding import Evidence, Finding, Severity
from tightrope.roles import Axes
from tightrope.rules.functions import CURVED
from tightrope.study import Study
from tightrope.subject import Subject
from tightrope.tape.tape import Entry, Kind, Tape

STAGE = "graph"
EXPLAINS = ("sample-mixing", "tiny-batch-norm", "train-eval-mismatch", *AFTERMATH)
REMEDIES = ("norm-axis",)

CHANNELED = frozenset(("batch_norm", "instance_norm", "group_norm"))
"""Normalisers that read dimension 1 as channels."""
MAKERS = frozenset(("linear", "embedding", "lstm", "gru", "rnn_tanh", "rnn_relu", "layer_norm"))
"""Calls whose result has its channels last."""
DIFFERENT = 0.1  # of the variance: a normaliser that leaves less in place leaves nothing that matters
RATIO = 10.0  # of what positions of one dimension differ by to those of the other: an order of magnitude
SPREADS = frozenset(("var", "std", "norm", "linalg_vector_norm", "vector_norm", "var_mean", "std_mean"))
KEPT = frozenset(CURVED) | NORMS | {"add", "sub", "linear"}
"""Calls that leave the dimensions of what they read in their places."""
_ROOTS = VIEWS | {"sqrt", "rsqrt", "add", "clamp", "clamp_min", "pow", "mul", "reciprocal"}


def judge(study: Study) -> Iterator[Finding]:
    """A finding for each normaliser over the wrong dimension."""
    tape = study.tape
    if not any(entry.op in CHANNELED | SPREADS | {"layer_norm", "mean"} for entry in tape.entries):
        return
    axes, made = axes_of(tape), producers(tape)
    depends = learned(tape) - tape.parametric
    for entry in tape.entries:
        shape = tape.values[entry.inputs[0]].shape if entry.inputs else ()
        if entry.op in CHANNELED and len(shape) > 2:
            if is_sample(axes.get(entry.inputs[0]), 1, tape.samples):
                yield _finding(study, entry, 1, Severity.FAULT, "reads dimension 1, the batch, as channels")
            elif entry.op == "batch_norm" and _slipped(tape, made, entry):
                channels = len(shape) - 1
                fact = f"reads dimension 1 as channels; they stand in dimension {channels}, of length {shape[channels]}"
                yield _finding(study, entry, 1, Severity.WARNING, fact)
        elif entry.op == "layer_norm" and entry.inputs[0] in depends:
            inner = entry.argument(1, "normalized_shape", ())
            whole = isinstance(inner, (tuple, list)) and len(inner) == len(shape) > 1
            if whole and is_sample(axes.get(entry.inputs[0]), 0, tape.samples):
                yield _finding(study, entry, 0, Severity.FAULT, "takes its mean over dimension 0, the batch")
        elif entry.op == "div" and entry.inputs[0] in depends and _over_batch(study, made, axes, entry):
            fact = "divides by a spread over dimension 0, the batch, and keeps no running average of it"
            yield _finding(study, entry, 0, Severity.WARNING, fact)


def _slipped(tape: Tape, made: dict[int, Entry], entry: Entry) -> bool:
    """Whether a weight's channels stand behind dimension 1, which itself no weight reads."""
    number = entry.inputs[0]
    last = len(tape.values[number].shape) - 1
    if not _channels(tape, made, number, last) and not _differs(tape, made, number, last):
        return False
    after = list(uses(tape, entry.outputs[0], 1, KEPT))
    before = [use for use in uses(tape, origin(made, number), 1, KEPT) if use.entry.index != entry.index]
    known = bool(after) and all(use.summed is not None for use in after)
    return known and not any(use.summed and is_weighted(tape, use.entry) for use in (*after, *before))


def _differs(tape: Tape, made: dict[int, Entry], number: int, last: int) -> bool:
    """Whether data differ by position of the last dimension, which a weight reads, and hardly by that of dimension 1.

    The measure is the variance of the positions' means and standard deviations, over that of all numbers.
    """
    x = tape.values[origin(made, number)].content
    if x is None or x.is_meta or tuple(x.shape) != tape.values[number].shape or not x.is_floating_point():
        return False
    if not any(use.summed and is_weighted(tape, use.entry) for use in uses(tape, number, last, KEPT)):
        return False
    x = x.double()
    total = float(x.var())
    if not 0 < total < math.inf:
        return False
    wide, narrow = (_between(x, dim) / total for dim in (last, 1))
    return wide > DIFFERENT and wide > RATIO * narrow


def _between(x: Tensor, dim: int) -> float:
    levels = x.movedim(dim, 0).flatten(1)
    return float(levels.mean(1).var() + levels.std(1).var())


def _channels(tape: Tape, made: dict[int, Entry], number: int, dim: int) -> bool:
    """Whether a dimension is the last one of a call that makes channels there, past views and activations."""
    entry = made.get(number)
    while entry is not None and entry.op not in MAKERS:
        source = next((i for i in entry.inputs if tape.values[i].kind is Kind.RESULT), None)
        if source is None:
            return False
        before = tape.values[source].shape
        if entry.op in MOVES:
            back = [d for d in range(len(before)) if before[d] > 1 and moved(tape, entry, d) == dim]
            if len(back) != 1:
                return False
            dim = back[0]
        elif before != tape.values[number].shape or entry.op not in KEEPS | KEPT:
            return False
        number, entry = source, made.get(source)
    return entry is not None and number == entry.outputs[0] and dim == len(tape.values[number].shape) - 1


def _over_batch(study: Study, made: dict[int, Entry], axes: dict[int, Axes], entry: Entry) -> bool:
    """Whether a quotient's divisor is a spread over the batch of what it divides, with no average kept of it."""
    tape = study.tape
    if len(entry.inputs) != 2 or not feeds_weight(tape, entry.outputs[0]):
        return False
    spread = made.get(origin(made, entry.inputs[1], _ROOTS))
    if spread is None or spread.op not in SPREADS | {"mean"}:
        return False
    source = spread.inputs[0]
    position = 2 if spread.op in ("norm", "linalg_vector_norm", "vector_norm") else 1
    dims = spread.argument(position, "dim", spread.kwargs.get("axis"))
    dims = [dims] if isinstance(dims, int) else list(dims or ())
    shape = tape.values[source].shape
    if not dims or len(shape) < 2 or spread.inputs[0] not in _behind(made, entry.inputs[0]) | {source}:
        return False
    if spread.op == "mean" and not _squared(made, source):
        return False
    over = [d % len(shape) for d in dims if isinstance(d, int)]
    batch = 0 in over and is_sample(axes.get(source), 0, tape.samples)
    return batch and not _averaged(study, entry, shape[-1])


def _squared(made: dict[int, Entry], number: int) -> bool:
    entry = made.get(number)
    return entry is not None and (entry.op == "square" or (entry.op == "pow" and entry.argument(1, "exponent") == 2))


def _behind(made: dict[int, Entry], number: int) -> set[int]:
    """The values that a centred and scaled value was made of."""
    found: set[int] = set()
    waiting = [number]
    while waiting:
        here = waiting.pop()
        entry = made.get(here)
        if entry is not None and here not in found and entry.op in VIEWS | {"sub", "mul", "add"}:
            found.add(here)
            waiting.extend(entry.inputs)
        found.add(here)
    return found


def _averaged(study: Study, entry: Entry, width: int) -> bool:
    """Whether the module of a call keeps a tensor besides its parameters, as running averages are kept."""
    module = study.models.find(entry.module)
    if module is None:
        return True
    kept = [*module._buffers.values(), *vars(module).values()]
    return any(isinstance(item, Tensor) and item.numel() in (width, 1) for item in kept)


def _finding(study: Study, entry: Entry, dim: int, severity: Severity, fact: str) -> Finding:
    tape = study.tape
    number = entry.inputs[0]
    shape = tape.values[number].shape
    evidence = [Evidence("length of the dimension", shape[dim] if dim < len(shape) else 1)]
    law = study.measurement.laws.get(number)
    if law is not None and law.variance > 0:
        evidence.append(Evidence("share of the variance that channels differ by", law.constant / law.variance, 0.0))
    return Finding(
        "wrong-norm-axis", severity, entry.module, str(tape.location(entry)),
        f"{entry.op if entry.op != 'div' else 'a normaliser'} of shape {shape} {fact}", tuple(evidence), entry.index,
        modules=(entry.module,),
    )  # fmt: skip


class _Sequence(nn.Module):
    """Channels of a linear map over time, normalised, averaged over time."""

    def __init__(self, *, turned: bool) -> None:
        super().__init__()
        self.embed, self.head, self.turned = nn.Linear(6, 16), nn.Linear(16, 3), turned
        self.norm = nn.BatchNorm1d(16 if turned else 10)

    def forward(self, x: Tensor) -> Tensor:
        z = self.embed(x)
        z = self.norm(z.mT).mT if self.turned else self.norm(z)
        scores: Tensor = self.head(torch.relu(z).mean(1))
        return scores


def sick() -> Subject:
    """BatchNorm1d on (sample, time, channel)."""
    return _net(turned=False)


def healthy() -> Subject:
    """The same on (sample, channel, time)."""
    return _net(turned=True)


def _net(*, turned: bool) -> Subject:
    torch.manual_seed(0)
    return Subject(_Sequence(turned=turned), (torch.randn(32, 10, 6), torch.arange(32) % 3), F.cross_entropy)
