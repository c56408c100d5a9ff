"""Whether predicted probabilities are frequencies: calibration errors beside the band of a calibrated model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from tightrope.errors import InputError
from tightrope.finding import Evidence, Finding, Remedy, Safety, Severity
from tightrope.instruments.classes import Reading, labelled
from tightrope.instruments.null import SURE, Measure, draws

ASKED = "measure the calibration"
LEAST = 0.01
"""Probability below which a deviation is of no effect: the per cent to which probabilities are told."""
CHUNK = 4_000_000
"""Labels that are drawn at a time."""


@dataclass(frozen=True)
class Bin:
    """Samples whose confidence is in (low, high]; the first holds 0, too.

    Attributes:
        low, high: ends.
        count: samples.
        confidence, accuracy: their means; NaN of none.
        error: standard deviation of the accuracy if the confidences are right.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float
    error: float


@dataclass(frozen=True, eq=False)
class Calibration:
    """Calibration of predicted probabilities on labelled samples that the model has not been fitted to.

    Attributes:
        ece: expected calibration error of the most likely class in equal bins, mean |confidence - accuracy|.
        adaptive: the same in bins that hold equally many samples.
        classwise: the same of every class's probability, mean over classes.
        accuracy, confidence: share of samples whose most likely class is right, and the mean of its probability.
        gap, gap_error: confidence less accuracy, and its standard deviation if the probabilities are right.
        nll, brier: mean negative log likelihood in nats, mean squared distance to the one-hot label.
        bins: the reliability diagram.
        samples, classes, resamples: numbers of samples, classes, and draws for the band.
        read: how the predictions were read, "logits" or "probabilities".
    """

    ece: Measure
    adaptive: Measure
    classwise: Measure
    accuracy: float
    confidence: float
    gap: float
    gap_error: float
    nll: float
    brier: float
    bins: tuple[Bin, ...]
    samples: int
    classes: int
    resamples: int
    read: Reading

    @property
    def miscalibrated(self) -> bool:
        """Whether a calibrated model shows this ECE in one case of a hundred or less."""
        return self.ece.p <= SURE

    @property
    def verdict(self) -> str | None:
        """What is surely wrong, in a sentence; None where chance may explain it, or it is less than a per cent."""
        if not self.miscalibrated or max(abs(self.gap), self.ece.excess) < LEAST:
            return None
        z = self.gap / self.gap_error if self.gap_error > 0 else math.copysign(math.inf, self.gap)
        # most of the error has one sign
        if abs(z) > 2.58 and abs(self.gap) >= max(LEAST, self.ece.excess / 2):
            name = "overconfident" if z > 0 else "underconfident"
            return (
                f"{name}: a mean confidence of {self.confidence:.3g} at an accuracy of {self.accuracy:.3g}, "
                f"{abs(z):.2g} standard errors apart"
            )
        return f"miscalibrated: the ECE is {self.ece.value:.3g} where chance leaves {self.ece.high:.3g}"

    @property
    def findings(self) -> tuple[Finding, ...]:
        """`overconfident`, with its remedy, or none."""
        if self.verdict is None or not self.verdict.startswith("overconfident"):
            return ()
        evidence = (
            Evidence("mean confidence less accuracy", self.gap, 0.0, self.gap_error),
            Evidence("expected calibration error", self.ece.value, self.ece.null),
        )
        remedy = Remedy(
            "temperature", "Divide the logits by a temperature fitted on held-out data",
            "model = tr.temperature(model, (inputs, labels)).model", "none: the accuracy stays", Safety.ADVICE,
        )  # fmt: skip
        return (Finding("overconfident", Severity.WARNING, "", "", self.verdict, evidence, remedies=(remedy,)),)

    def __str__(self) -> str:
        lines = [
            f"Calibration of {self.samples} predictions of {self.classes} classes, read as {self.read}",
            f"  {'accuracy':<12} {self.accuracy:.4f}   confidence {self.confidence:.4f}, "
            f"{self.gap:+.4f} ± {self.gap_error:.4f}",
            f"  {'ECE':<12} {self.ece}",
            f"  {'adaptive':<12} {self.adaptive}",
            f"  {'classwise':<12} {self.classwise}",
            f"  {'likelihood':<12} {self.nll:.4f} nats, Brier score {self.brier:.4f}",
            f"  {'confidence':<18} {'samples':>8} {'mean':>8} {'accuracy':>9}",
        ]
        for b in (b for b in self.bins if b.count):
            place = f"{b.low:.3f} to {b.high:.3f}"
            lines.append(f"  {place:<18} {b.count:>8} {b.confidence:>8.3f} {b.accuracy:>9.3f} ± {b.error:.3f}")
        return "\n".join([*lines, *([f"  {self.verdict}"] if self.verdict else [])])


def calibration(
    predicted: Any, labels: Any, *, bins: int = 15, head: Reading | None = None, seed: int = 0
) -> Calibration:
    """Calibration errors of predicted classes, each beside what a calibrated model shows by chance.

    The expected calibration error is a mean of absolute values, so finitely many samples make it positive for a
    perfect model. Its law for one is known: labels are drawn from the predicted probabilities, again and again, and the
    p-value that comes of them is exact for independent samples.

    Args:
        predicted: probabilities or logits, (..., classes) or (N, classes, ...); one number a label is for two classes.
        labels: class indices; -100 is left out.
        bins: how many; those of `ece` are equally wide, (low, high].
        head: None tells probabilities by their sum.
        seed: of the draws.

    Raises:
        InputError: shapes do not fit, labels are no classes, or something is not finite.

    References:
        Guo, Pleiss, Sun, Weinberger (2017), On calibration of modern neural networks, ICML; Bröcker, Smith (2007),
        Increasing the reliability of reliability diagrams, Weather and Forecasting 22, for labels drawn from the
        forecast; Nixon et al. (2019), Measuring calibration in deep learning, CVPR workshops.
    """
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise InputError(ASKED, f"bins is {bins!r}", "Pass a positive whole number")
    if head not in (None, "logits", "probabilities"):
        raise InputError(ASKED, f"head is {head!r}", 'Pass "logits", "probabilities" or None')
    log_p, y, read = labelled(predicted, labels, head, ASKED)
    p = log_p.exp()
    tables = _Tables(p, bins)
    found = tables.errors(y[None])
    null = torch.cat([tables.errors(drawn) for drawn in _labels(p, draws(len(y)), seed)])
    ece, adaptive, classwise = (Measure.of(float(found[0, i]), null[:, i]) for i in range(3))
    right, confidence = (tables.best == y).double(), tables.confidence
    noise = math.sqrt(float((confidence * (1 - confidence)).clamp(min=0).sum())) / len(y)
    target = one_hot(y, p.shape[1])
    return Calibration(
        ece, adaptive, classwise, float(right.mean()), float(confidence.mean()),
        float((confidence - right).mean()), noise, -float(log_p.gather(1, y[:, None]).mean()),
        float((p - target).square().sum(1).mean()), tuple(_reliability(tables, right, bins)), len(y), p.shape[1],
        len(null), read,
    )  # fmt: skip


class _Tables:
    """Where each prediction falls, once for all draws of labels."""

    def __init__(self, p: Tensor, bins: int) -> None:
        self.size, self.classes, self.bins = len(p), p.shape[1], bins
        top = p.max(1)
        self.confidence, self.best = top.values.clamp(max=1.0), top.indices
        inner = torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1]
        self.place = torch.bucketize(self.confidence, inner)
        cuts = torch.quantile(self.confidence, inner) if self.size <= 2**23 else inner  # what quantile can take
        self.within = one_hot(self.place, bins).double()
        self.equal = one_hot(torch.bucketize(self.confidence, cuts.unique()), bins).double()
        each = torch.bucketize(p, inner)
        self.slot = each + bins * torch.arange(self.classes)
        self.expected = torch.zeros(self.classes * bins, dtype=torch.float64)
        self.expected.index_add_(0, self.slot.flatten(), p.flatten())

    def errors(self, labels: Tensor) -> Tensor:
        """The three calibration errors of each row of labels, (draws, samples) -> (draws, 3)."""
        off = (labels == self.best).double() - self.confidence
        rows, cells = len(labels), self.classes * self.bins
        slots = self.slot.gather(1, labels.T).T
        counts = torch.bincount((slots + cells * torch.arange(rows)[:, None]).flatten(), minlength=rows * cells)
        apart = (counts.view(rows, cells) - self.expected).abs().sum(1) / (self.size * self.classes)
        binned = [(off @ inside).abs().sum(1) / self.size for inside in (self.within, self.equal)]
        return torch.stack([*binned, apart], 1)


def _labels(p: Tensor, count: int, seed: int) -> Iterator[Tensor]:
    """Labels drawn from the probabilities, (draws, samples), some at a time."""
    chance = torch.Generator().manual_seed(seed)
    below = p.cumsum(1)
    below = below / below[:, -1:]
    size = max(CHUNK // len(p), 1)
    for start in range(0, count, size):
        u = torch.rand(len(p), min(size, count - start), generator=chance, dtype=torch.float64)
        yield torch.searchsorted(below, u, right=True).clamp(max=p.shape[1] - 1).T


def _reliability(tables: _Tables, right: Tensor, bins: int) -> Iterator[Bin]:
    for i in range(bins):
        inside = tables.place == i
        count = int(inside.sum())
        confidence = tables.confidence[inside]
        error = math.sqrt(float((confidence * (1 - confidence)).clamp(min=0).sum())) / max(count, 1)
        yield Bin(
            i / bins, (i + 1) / bins, count, float(confidence.mean()), float(right[inside].mean()),
            error if count else math.nan,
        )  # fmt: skip


__all__ = ["Bin", "Calibration", "calibration"]
