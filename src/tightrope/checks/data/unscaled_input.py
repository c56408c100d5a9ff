"""`unscaled-input`: data that reach the first weight at a scale no initialisation is made for.

Law       a weight of variance 1 / n gives its output the input's own second moment, z ~ E[x^2], and the loss surface
          along it a curvature proportional to E[x^2]: every initialiser and every usual learning rate supposes E[x^2]
          near 1. What all samples share, E[x]^2, carries no information but bends the surface most: with |mean| / std =
          r the condition number is about r^2 times that of centred data. Features of unlike scales multiply it by the
          square of their ratio.
Evidence  rms of the data that the first weight reads; the shared mean over the spread; the scales of the single
          features and their effective number, (sum E[x_k^2])^2 / sum E[x_k^2]^2.
Verdict   rms above 5 `warning`, above 30 `fault`; below 0.005 where it is not zero `warning`; shared mean above 15
          times the spread `warning`; features 30 times apart (5th to 95th percentile) of which less than a fifth counts
          `warning`. Every input that is read by a weight is judged.
Remedy    `tightrope.nn.Standardize`, fitted on the training data, as the model's first layer (`standardize`).
Limits    a scale that batch normalisation removes right after the first weight is harmless and passed over. Integer
          inputs of an embedding are no scale. Sparse features (mostly zero) are not compared with one another.
References  LeCun, Bottou, Orr, Mueller (1998), Efficient BackProp, sections 4.3 and 5.1; LeCun, Kanter, Solla (1991),
          Eigenvalues of covariance matrices, Phys. Rev. Lett. 66.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from tightrope.checks.echoes import AFTERMATH
from tightrope.checks.trace import CHANCE, JOINS, NORMS, VIEWS, is_weighted, producers, reads
from tightrope.finding import Evidence, Finding, Severity
from tightrope.measure.probes import Features
from tightrope.study import Study
from tightrope.subject import Subject
from tightrope.tape.tape import Entry, Kind

STAGE = "batch"
EXPLAINS = ("correlated-batch", *AFTERMATH)
REMEDIES = ("standardize",)

WARNING, FAULT = 5.0, 30.0  # rms; trials: healthy inputs 0.24 to 1.0, raw 0-16 digits 7.8, raw tables 124 and more
FAINT = 0.005  # rms where it is not zero: images divided by 255 twice have 0.002
OFFSET = 15.0  # shared mean over spread: images in [0, 1] have 0.5 to 3, white pages up to 10
COUNTING, SPREAD = 0.2, 30.0  # trials: healthy tables never have both, raw ones have 0.06 to 0.13 and 2500 and more
SPARSE = 0.5  # share of zeros from which features are counts or words, whose scales differ by nature
SLICES = frozenset(("getitem", "select", "unbind", "chunk", "split"))
FEW = 8  # values behind each feature that a mean or a spread needs


@dataclass(frozen=True)
class Scale:
    """Scale of an input.

    Attributes:
        rms: root of the mean square of all elements.
        inked: the same over the elements that are not zero.
        offset: root of the features' mean squares over that of their variances.
        counting: effective share of features, by their second moments.
        spread: 95th over 5th percentile of the features' standard deviations.
    """

    rms: float
    inked: float
    offset: float
    counting: float
    spread: float


def scale(found: Features) -> Scale:
    """Scale of an input from its features; constant features count for the rms alone."""
    moment = found.mean.square() + found.std.square()
    rms = float(moment.mean().sqrt())
    moving = found.std > 1e-9 * moment.sqrt()
    std = found.std[moving]
    offset, counting, spread = 0.0, 1.0, 1.0
    if len(std):
        offset = float(found.mean[moving].square().sum().sqrt() / std.square().sum().sqrt())
        second = moment[moving]
        counting = float(second.sum().square() / second.square().sum() / len(second))
        low, high = torch.quantile(std, std.new_tensor([0.05, 0.95])).tolist()
        spread = high / low
    return Scale(rms, rms / max(1 - found.zero, 1e-9) ** 0.5, offset, counting, spread)


def judge(study: Study) -> Iterator[Finding]:
    """A finding for each input that a weight reads at a wrong scale."""
    for reader, source in readings(study):
        finding = _judge(study, reader, source)
        if finding is not None:
            yield finding


def readings(study: Study) -> Iterator[tuple[Entry, int]]:
    """Which weight reads which data first, in the order of the tape."""
    tape = study.tape
    made = producers(tape)
    done: set[int] = set()
    for entry in tape.entries:
        if not is_weighted(tape, entry):
            continue
        for number in entry.inputs:
            for source in data_sources(study, made, number):
                if source not in done:
                    done.add(source)
                    yield entry, source


def data_sources(study: Study, made: dict[int, Entry], number: int) -> list[int]:
    """Values of data alone that reach a reader past views, joins and dropout, nearest first."""
    entry = made.get(number)
    found = study.measurement.features
    if number in found:
        parent = entry.inputs[0] if entry is not None and entry.op in SLICES else None
        if parent in found and len(found[parent].mean) == len(found[number].mean):
            return data_sources(study, made, parent)  # one step of a sequence has the scale of the whole
        return [number]
    if entry is None or entry.op not in VIEWS | JOINS | CHANCE:
        return []
    return [source for i in entry.inputs for source in data_sources(study, made, i)]


def _judge(study: Study, reader: Entry, number: int) -> Finding | None:
    found = study.measurement.features[number]
    size = scale(found)
    after = list(reads(study.tape, reader.outputs[0]))
    free = bool(after) and all(entry.op in NORMS for entry in after)
    batch_norm = free and all(entry.op == "batch_norm" for entry in after)
    severity = Severity.WARNING
    if size.rms > WARNING and not free:
        fact, evidence = f"rms {size.rms:.3g}", Evidence("rms of the input", size.rms, 1.0)
        severity = Severity.FAULT if size.rms > FAULT else Severity.WARNING
    elif size.rms > 0 and size.inked < FAINT and not free:
        fact, evidence = f"rms {size.rms:.3g}", Evidence("rms of the input", size.rms, 1.0)
    elif size.offset > OFFSET and found.values >= FEW and not batch_norm:
        fact, evidence = (
            f"mean {size.offset:.3g} times the spread",
            Evidence("shared mean over spread", size.offset, 0.0),
        )
    elif size.counting < COUNTING and size.spread > SPREAD and found.zero < SPARSE and found.values >= FEW:
        fact = f"feature scales {size.spread:.3g} apart, {size.counting:.0%} of the features count"
        evidence = Evidence("ratio of feature scales", size.spread, 1.0)
    else:
        return None
    value = study.tape.values[number]
    name = value.name or ("the input" if value.kind in (Kind.INPUT, Kind.KNOWN) else "the data")
    width = len(found.mean)
    more = (
        Evidence("shared mean over spread", size.offset, 0.0),
        Evidence("ratio of feature scales (95th to 5th percentile)", size.spread, 1.0),
        Evidence("effective share of features", size.counting, 1.0),
    )
    return Finding(
        "unscaled-input", severity, reader.module, str(study.tape.location(reader)),
        f"{name} reaches its first weight with {fact} ({width} feature{'s' * (width > 1)}); level: mean 0, std 1",
        (evidence, *(item for item in more if item.quantity != evidence.quantity)), -1,
        modules=(reader.module,),
    )  # fmt: skip


def sick() -> Subject:
    """Grey values from 0 to 255."""
    return _net(255.0)


def healthy() -> Subject:
    """The same grey values divided by 255."""
    return _net(1.0)


def _net(top: float) -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    x = torch.rand(64, 64)
    return Subject(model, (top * x, torch.arange(64) % 10), nn.functional.cross_entropy)
