"""`label-order`: batches that each hold other labels, because the data come in the order of their labels.

Law       of n samples drawn at random the mean label varies as sigma^2 / n. With the intra-class correlation rho it
          varies as sigma^2 (1 + (n - 1) rho) / n, so a batch is worth n / (1 + (n - 1) rho) samples: one, when it is of
          a single class. The gradient then points to the class at hand, each batch undoes what the last one taught, and
          batch statistics are those of a class.
Evidence  one-way analysis of variance of the labels (shares of classes, or numbers) over the batches of the first
          steps: F = n times the variance of the batch means over the variance within, which is 1 by chance, and rho =
          (F - 1) / (F - 1 + n).
Verdict   rho of 0.5 or more over at least 8 different batches of at least 4 samples, 5 standard deviations beyond
          chance and beyond 199 random regroupings: `warning`; `fault` at 0.9 for classes. For numbers it is reported
          only where the program is seen to go through stored data in order, and as `advice` where the inputs are
          sequences, which some programs must read in order. `fault` too where a linear head of several classes is given
          one and the same class in every batch, and the program has no other labels.
Remedy    the line that makes the labels (`look-at-labels`); for their order shuffle the data: `shuffle=True` of the
          `DataLoader`, or a permutation before the loop (`shuffle`).
Limits    samplers that balance classes make F smaller than 1 and are fine. Full-batch training has one batch. Batches
          of one sample, and targets that never vary at one place (real and fake of a GAN), say nothing. Losses that are
          not among torch's own functions are not followed.
References  Bottou (2012), Stochastic gradient descent tricks; Kish (1965), Survey sampling (design effect); Bengio,
          Louradour, Collobert, Weston (2009), Curriculum learning, ICML.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tightrope.checks.echoes import AFTERMATH
from tightrope.checks.loss.heads import loss_terms, maker
from tightrope.checks.trace import is_weighted, origin, producers
from tightrope.finding import Evidence, Finding, Severity
from tightrope.measure.batches import Batches, Split, Stream, beyond_chance, split
from tightrope.study import Study
from tightrope.subject import Subject
from tightrope.tape.tape import RECURRENT

STAGE = "run"
EXPLAINS = ("tiny-batch-norm", "train-eval-mismatch", *AFTERMATH)
REMEDIES = ("shuffle", "look-at-labels")

LARGE = 0.5  # from here on more of the labels' variance lies between batches than within
PURE = 0.9  # a batch of 32 is worth 1.1 samples
BATCHES, SAMPLES = 8, 4  # F has then 7 degrees of freedom above and 24 below: 5 deviations are beyond a chance of 1e-3
DEVIATIONS = 5.0
ONE_CLASS = "classes among the labels"
"""The first evidence of a finding that is about no order."""


def judge(study: Study, batches: Batches) -> Iterator[Finding]:
    """A finding for the loss whose labels are most strongly ordered."""
    only = _one_class(study, batches)
    if only is not None:
        yield only
        return
    found = [(judged, stream) for stream in batches.targets if (judged := ordered(stream)) is not None]
    found = [(s, t) for s, t in found if t.holds_classes or t.sliced or batches.sequential]
    if not found:
        return
    how, stream = max(found, key=lambda item: item[0].rho)
    severity = Severity.WARNING
    if stream.holds_classes and how.rho >= PURE:
        severity = Severity.FAULT
    elif not stream.holds_classes and reads_sequences(study):
        severity = Severity.ADVICE
    held, known = _classes(stream)
    what = f"; a batch of {stream.size:.0f} holds {held:.3g} of {known} classes" if stream.holds_classes else ""
    yield Finding(
        "label-order", severity, "", str(batches.built or stream.place.location),
        f"{how.rho:.3g} of the labels' variance lies between batches; by chance: 0{what}",
        (
            Evidence("intra-class correlation of the labels", how.rho, 0.0, how.error),
            Evidence("variance of the batches' mean label over chance", how.ratio, 1.0),
            Evidence("samples that a batch is worth", how.size / (1 + (how.size - 1) * how.rho), how.size),
            Evidence("batches", float(how.groups)),
        ),
    )  # fmt: skip


def _one_class(study: Study, batches: Batches) -> Finding | None:
    """Labels that are one number all along, below a head that tells several classes apart.

    Contrastive losses put the right one first, but their scores are products of features; of a discriminator's two
    kinds of labels each has a place of its own.
    """
    if len(batches.targets) != 1 or not (stream := batches.targets[0]).holds_classes:
        return None
    samples = [sample for sample in stream.samples if len(sample.rows) >= SAMPLES]
    classes = set().union(*(sample.rows.flatten().tolist() for sample in samples)) if samples else set()
    if len(samples) < BATCHES or len(classes) != 1 or stream.made:
        return None
    made = producers(study.tape)
    for term in loss_terms(study.tape):
        head = maker(study.tape, made, term.scores)
        if term.kind not in ("cross_entropy", "nll") or term.target is None or head is None:
            continue
        known = study.tape.values[term.scores].shape[-1]
        if head.op != "linear" or not is_weighted(study.tape, head) or origin(made, term.target) in made or known < 2:
            continue
        count = sum(len(sample.rows) for sample in samples)
        return Finding(
            "label-order", Severity.FAULT, "", str(batches.built or stream.place.location),
            f"every label of {len(samples)} batches is class {classes.pop():.0f}, of {known} that the head tells apart",
            (Evidence(ONE_CLASS, 1.0, float(known)), Evidence("labels looked at", float(count))),
        )  # fmt: skip
    return None


def ordered(stream: Stream) -> Split | None:
    """How the labels of a stream are split, where they are ordered beyond chance; else None."""
    groups = [group for group in stream.units() if len(group) >= SAMPLES]
    if len(groups) < BATCHES or len({group.shape[1] for group in groups}) > 1:
        return None
    found = split(groups)
    if found is None or found.rho < LARGE or found.deviation < DEVIATIONS or not beyond_chance(groups):
        return None
    return found


def _classes(stream: Stream) -> tuple[float, int]:
    """Mean number of classes in a batch, and how many there are in all."""
    held = [set(sample.rows[sample.rows >= 0].flatten().tolist()) for sample in stream.samples]
    return sum(map(len, held)) / len(held), len(set().union(*held))


def reads_sequences(study: Study) -> bool:
    """Whether the model reads its data as sequences."""
    tape = study.tape
    return any(entry.op in RECURRENT or entry.op.endswith("_cell") for entry in tape.entries) or any(
        entry.op == "scaled_dot_product_attention" for entry in tape.entries
    )


def sick() -> Subject:
    """Samples of ten classes, stored class by class and read in that order."""
    return _net(shuffled=False)


def healthy() -> Subject:
    """The same samples, shuffled."""
    return _net(shuffled=True)


def _net(*, shuffled: bool) -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    label = torch.arange(640) // 64
    x = torch.randn(640, 32) + 0.5 * torch.randn(10, 32)[label]
    data = DataLoader(TensorDataset(x, label), batch_size=32, shuffle=shuffled)
    return Subject(model, data, nn.functional.cross_entropy)
