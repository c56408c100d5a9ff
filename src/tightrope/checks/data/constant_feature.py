"""`constant-feature`: features that never vary while the labels do.

Law       a feature of variance zero has no covariance with any label: it tells nothing, its weight only doubles the
          bias, and with a value c it adds c^2 to the largest curvature along the bias. Dividing it by its standard
          deviation gives 0 / 0.
Evidence  the features of the samples that were kept of the first batches: number of those that are exactly one value,
          not zero, on all of them.
Verdict   `advice` for any; `warning` where it is more than half of the features of a table, which then holds little
          else than its means. At least 64 samples in several batches.
Remedy    leave the columns out, or look where their variation was lost (`drop-constant`).
Limits    zeros are passed over: one-hot columns, rims of pictures and padding are zero by nature, and harmless. Inputs
          of more than two dimensions are not judged, nor tables of more features than are kept.
References  LeCun, Bottou, Orr, Mueller (1998), Efficient BackProp, section 4.3; Hastie, Tibshirani, Friedman (2009),
          The elements of statistical learning, section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tightrope.finding import Evidence, Finding, Severity
from tightrope.measure.batches import Batches, Stream
from tightrope.subject import Subject
from tightrope.tape.sampler import COLUMNS

STAGE = "run"
EXPLAINS = ("rank-collapse",)
REMEDIES = ("drop-constant",)

SAMPLES, BATCHES = 64, 2  # a feature that differs on one sample in a hundred shows in 64 with even odds
MOST = 0.5


def judge(batches: Batches) -> Iterator[Finding]:
    """A finding for each table with constant columns."""
    told = any(len(torch.unique(rows, dim=0)) > 1 for rows in (_rows(target) for target in batches.targets))
    for stream in batches.inputs:
        rows = _rows(stream)
        table = len(stream.place.shape) == 1 and stream.place.shape[0] <= COLUMNS
        if not told or not table or stream.made or len(rows) < SAMPLES or len(stream.samples) < BATCHES:
            continue
        still = ((rows == rows[0]).all(0) & (rows[0] != 0)).nonzero().flatten().tolist()
        width = rows.shape[1]
        if not still:
            continue
        which = ", ".join(map(str, still[:5])) + (", …" if len(still) > 5 else "")
        severity = Severity.WARNING if len(still) > MOST * width else Severity.ADVICE
        yield Finding(
            "constant-feature", severity, "", str(batches.built or stream.place.location),
            f"{len(still)} of {width} features have one value on all {len(rows)} samples looked at (column {which}; "
            f"{float(rows[0, still[0]]):.3g})",
            (
                Evidence("features that never vary", float(len(still)), 0.0),
                Evidence("samples looked at", float(len(rows))),
            ),
        )  # fmt: skip


def _rows(stream: Stream) -> torch.Tensor:
    return torch.cat([sample.rows for sample in stream.samples])


def sick() -> Subject:
    """A table whose last column is the same in every row."""
    return _net(0.0)


def healthy() -> Subject:
    """A table whose last column varies as the others do."""
    return _net(1.0)


def _net(spread: float) -> Subject:
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    x[:, 7] = 1 + spread * torch.randn(256)
    data = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=32, shuffle=True)
    return Subject(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2)), data, nn.functional.cross_entropy)
