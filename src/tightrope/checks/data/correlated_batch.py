"""`correlated-batch`: samples of a batch that resemble one another more than the data do.

Law       let rho be the correlation of two samples of one batch. The mean of m samples then varies as
          sigma^2 (1 + (m - 1) rho) / m and never falls below rho sigma^2; the batch is worth m / (1 + (m - 1) rho)
          samples. The variance inside a batch is sigma^2 (1 - rho) on average, so that batch normalisation divides by
          too little, and by another number in each batch.
Evidence  one-way analysis of variance of the input's features, each scaled to the same variance, over the batches of
          the first steps: rho = (F - 1) / (F - 1 + n) with F = n times the variance of the batch means over the
          variance within. What the labels explain linearly is taken off where labels are ordered too.
Verdict   rho of 0.5 or more over at least 8 different batches of at least 4 samples, 5 standard deviations beyond
          chance and beyond 199 random regroupings: `warning`; `fault` at 0.9. `advice` where the inputs are sequences
          that are read in the order of storage, which some programs must do.
Remedy    shuffle the data, or mix several sources in each batch (`shuffle`).
Limits    inputs that a model of the program makes (fakes of a GAN) drift as it learns and are passed over, and so are
          batches of changing length (episodes), integer inputs, and inputs whose first dimension may be time.
References  Kish (1965), Survey sampling (design effect); Fisher (1925), Statistical methods for research workers,
          chapter 7 (intra-class correlation); Ioffe and Szegedy (2015), Batch normalization, ICML.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tightrope.checks.data.label_order import BATCHES, DEVIATIONS, LARGE, PURE, SAMPLES, ordered, reads_sequences
from tightrope.checks.echoes import AFTERMATH
from tightrope.finding import Evidence, Finding, Severity
from tightrope.measure.batches import Batches, Split, Stream, beyond_chance, split, unexplained
from tightrope.study import Study
from tightrope.subject import Subject

STAGE = "run"
EXPLAINS = ("label-order", "tiny-batch-norm", "train-eval-mismatch", "input-shift", *AFTERMATH)
REMEDIES = ("shuffle",)


def judge(study: Study, batches: Batches) -> Iterator[Finding]:
    """A finding for the input whose batches are most alike inside."""
    found = [(how, stream) for stream in batches.inputs if (how := correlated(batches, stream)) is not None]
    if not found:
        return
    how, stream = max(found, key=lambda item: item[0].rho)
    severity = Severity.FAULT if how.rho >= PURE else Severity.WARNING
    if reads_sequences(study) and (batches.sequential or stream.sliced):
        severity = Severity.ADVICE
    worth = stream.size / (1 + (stream.size - 1) * how.rho)
    yield Finding(
        "correlated-batch", severity, "", str(batches.built or stream.place.location),
        f"{how.rho:.3g} of the inputs' variance lies between batches; by chance: 0; a batch of {stream.size:.0f} is "
        f"worth {worth:.3g} samples",
        (
            Evidence("intra-class correlation of the inputs", how.rho, 0.0, how.error),
            Evidence("samples that a batch is worth", worth, stream.size),
            Evidence("variance inside a batch over that of the data", 1 - how.rho, 1.0, how.error),
            Evidence("batches", float(how.groups)),
        ),
    )  # fmt: skip


def correlated(batches: Batches, stream: Stream) -> Split | None:
    """How the inputs of a stream are split, where their batches are alike inside beyond chance; else None."""
    groups = [group for group in stream.units() if len(group) >= SAMPLES]
    sizes = [sample.size for sample in stream.samples]
    if stream.made or len(groups) < BATCHES or len(set(sizes[:-1])) > 1 or not _of_samples(batches, stream):
        return None
    found = _large(groups)
    for target in batches.targets if found is not None else ():
        labels = _beside(stream, target)
        if labels is not None and ordered(target) is not None and _large(*unexplained(groups, labels)) is None:
            return None
    return found


def _large(groups: Sequence[Tensor], lost: int = 0) -> Split | None:
    found = split(groups, scaled=True, lost=lost)
    if found is None or found.rho < LARGE or found.deviation < DEVIATIONS or not beyond_chance(groups):
        return None
    return found


def _of_samples(batches: Batches, stream: Stream) -> bool:
    """Whether the first dimension is the batch: in (time, batch, feature) it is not, and only a target can tell."""
    if len(stream.place.shape) != 2:
        return True
    return any(
        target.samples[0].size == stream.samples[0].size and target.samples[0].rows.shape[1] == 1
        for target in batches.targets
    )


def _beside(stream: Stream, target: Stream) -> list[Tensor] | None:
    """The labels of the same samples; None where they are those of other batches."""
    of_step = {sample.step: unit for sample, unit in zip(target.samples, target.units(), strict=True)}
    labels: list[Tensor] = []
    for sample in stream.samples:
        found = of_step.get(sample.step)
        if found is None or len(found) != len(sample.rows):
            return None
        if len(found) >= SAMPLES:
            labels.append(found)
    return labels


def sick() -> Subject:
    """Frames of clips in the order of the film: a batch holds one clip."""
    return _net(shuffled=False)


def healthy() -> Subject:
    """The same frames, shuffled."""
    return _net(shuffled=True)


def _net(*, shuffled: bool) -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    scene, motion = torch.randn(20, 1, 32), 0.3 * torch.randn(20, 32, 32)
    frames = (scene + motion).flatten(0, 1)
    label = (motion.flatten(0, 1)[:, 0] > 0).long()
    data = DataLoader(TensorDataset(frames, label), batch_size=32, shuffle=shuffled)
    return Subject(model, data, nn.functional.cross_entropy)
