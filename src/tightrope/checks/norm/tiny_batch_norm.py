"""`tiny-batch-norm`: batch norm in training mode whose statistics rest on a few values.

Law       a channel's mean and standard deviation over m values (samples times sites) have standard errors
          sigma / sqrt(m) and sigma / sqrt(2 (m - 1)). A normalised value z then carries noise of variance
          1 / m + z^2 / (2 (m - 1)), on average 1 / m + 1 / (2 (m - 1)) beside a signal of variance 1, drawn anew in
          every batch. Of one value nothing is left, of two only the sign of their difference, which passes no gradient.
          The running statistics used at inference have no such noise: training and inference see different laws.
Evidence  m of every batch norm that trains on batch statistics, which the shapes give exactly, and the noise that
          follows from it as a share of the signal's standard deviation.
Verdict   `fault` where the noise is no smaller than the signal (m = 1, 2), `warning` from half of it on (m up to 6),
          `advice` from a third on (m up to 13). A batch that is seen in a later step alone may be the last of an epoch:
          `advice`.
Remedy    a mixture that trusts the batch as far as it is large (`blended-norm`), or a normaliser that needs no batch
          (`group-norm`), both with gains and biases carried over; larger batches (`larger-batch`). Where the finding
          is `advice`, neither layer is swapped unasked: batch norm may still be the better one.
Limits    sites of one sample resemble each other, so that m overstates what images of a small batch tell. Batch norm
          over a single sample with many sites is instance norm, and is not judged here. Batch norm on its running
          statistics is left alone.
References  Ioffe, Szegedy (2015), Batch normalization; Wu, He (2018), Group normalization, ECCV, for the error over the
          batch size; Singh, Krishnan (2020), Filter response normalization layer, CVPR.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from tightrope.checks.echoes import GRADIENT, PROGRESS, UNITS
from tightrope.finding import Evidence, Finding, Severity
from tightrope.study import Study
from tightrope.subject import Subject
from tightrope.tape.tape import Entry

STAGE = "batch"
EXPLAINS = ("train-eval-mismatch", "batch-too-small", *GRADIENT, *UNITS, *PROGRESS)
REMEDIES = ("blended-norm", "group-norm", "larger-batch")

FAULT, WARNING, ADVICE = 1.0, 1 / 2, 1 / 3  # std of the noise over that of the signal: as large, half, a third
ENOUGH = 14  # values from which on the noise is below a third of the signal


def judge(study: Study) -> Iterator[Finding]:
    """One finding for all batch norms of the step that see too few values."""
    found: dict[str, tuple[int, Entry]] = {}
    for entry in study.tape.entries:
        m = values(study, entry)
        if m is not None and noise(m) >= ADVICE and m < found.get(entry.module, (ENOUGH, entry))[0]:
            found[entry.module] = (m, entry)
    if found:
        yield _finding(study, found)


def values(study: Study, entry: Entry) -> int | None:
    """Values behind each statistic of a call that normalises by its batch; None for any other call."""
    if entry.op != "batch_norm" or not entry.grad or not entry.argument(5, "training", False):
        return None
    shape = study.tape.values[entry.inputs[0]].shape
    if len(shape) < 2 or not shape[1]:
        return None
    return math.prod(shape) // shape[1]


def noise(m: int) -> float:
    """Standard deviation of what the other values of the batch do to a normalised one, beside a signal of 1."""
    return math.sqrt(1 / m + 1 / (2 * (m - 1))) if m > 1 else math.inf


def _finding(study: Study, found: dict[str, tuple[int, Entry]]) -> Finding:
    ordered = sorted(found.values(), key=lambda item: (item[0], item[1].index))
    m, worst = ordered[0]
    share = noise(m)
    severity = Severity.FAULT if share >= FAULT else Severity.WARNING if share >= WARNING else Severity.ADVICE
    if study.step > 1:
        severity = Severity.ADVICE
    layers = f"{len(found)} batch norms normalise" if len(found) > 1 else "batch norm normalises"
    told = f"noise of {share:.3g} beside a signal of 1" if m > 1 else "nothing of the signal is left"
    evidence = [
        Evidence("values behind each batch statistic", m, ENOUGH),
        Evidence("noise of the normalised values over their signal", share, 0.0),
        Evidence("relative error of the batch's standard deviation", math.sqrt(0.5 / max(m - 1, 0.5)), 0.0),
    ]
    return Finding(
        "tiny-batch-norm", severity, worst.module, str(study.tape.location(worst)),
        f"{layers} each channel by {m} value{'s' * (m > 1)}: {told}; {ENOUGH} values bring it below 1/3",
        tuple(evidence), min(entry.index for _, entry in found.values()), modules=tuple(found),
    )  # fmt: skip


def sick() -> Subject:
    """Four samples in front of batch norms over single vectors."""
    return _net(4)


def healthy() -> Subject:
    """The same net with a batch of 64."""
    return _net(64)


def _net(batch: int) -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(32, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(),
        nn.Linear(64, 4),
    )  # fmt: skip
    return Subject(model, (torch.randn(batch, 32), torch.arange(batch) % 4), nn.functional.cross_entropy)
