"""`shuffled-labels`: labels that have nothing to do with the data they stand beside.

Law       where x and y are independent, sum_n phi(x_n) y_n^T has the same law for every permutation of the labels,
          whatever the features phi; the gradient of a linear head is of this form. No training can then do better on
          new samples than the best constant, whose loss is the entropy of the classes or the variance of the targets;
          what the loss falls below it is memory of single samples.
Evidence  |sum_n phi(x_n) y_n^T|^2 over the different samples of the first steps, phi linear features and random waves
          (a Gaussian kernel), against labels permuted inside their batches; the same for labels of which half was made
          to follow the data, as the power of the test; the loss at the end beside that of the best constant.
Verdict   `warning` at the end of a run of 100 steps or more, where the statistic is below 2 standard deviations of
          chance, half of a dependence would have shown with 8, and the loss ends above half of the best constant's (0.9
          of it where samples do not come again, so that nothing can be memorised).
Remedy    give data and labels one and the same order (`align-labels`).
Limits    a dependence that no smooth function of the inputs shows (parity of many bits) looks the same until it is
          learnt; a signal that explains a percent of the labels needs more samples than are kept. Token inputs, targets
          that a model makes, losses that are one part of several, and labels that are the same in every batch (pairs of
          a contrastive loss) say nothing. Labels that are shuffled in part are not found.
References  Zhang, Bengio, Hardt, Recht, Vinyals (2017), Understanding deep learning requires rethinking generalization,
          ICLR; Gretton, Bousquet, Smola, Schoelkopf (2005), Measuring statistical dependence with Hilbert-Schmidt
          norms, ALT; Rahimi and Recht (2007), Random features for large-scale kernel machines, NeurIPS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from tightrope.checks.echoes import UNITS
from tightrope.finding import Evidence, Finding, Severity
from tightrope.measure.batches import Batches, Stream
from tightrope.measure.dependence import Dependence, dependence
from tightrope.study import History
from tightrope.subject import Program

STAGE = "run"
EXPLAINS = ("learning-rate-too-low", "learning-rate-too-high", "overfitting", "moving-target", *UNITS)
REMEDIES = ("align-labels",)

CHANCE, POWER = 2.0, 8.0  # standard deviations: 98 % of independent labels stay below 2, and 8 leaves no doubt
STEPS, SAMPLES = 100, 200  # fewer tell nothing of progress, or of dependence
LEARNT, MEMORISED = 0.9, 0.5  # of the best constant's loss, without and with samples that come again
ONCE = 0.95  # share of different samples from which on none is taken to come again
LAST = 0.1  # share of the steps that tell how a run ends
AGREE = 1e-3  # relative spread of the run's loss over the one that was sampled: it is that loss, times a constant


def judge(history: History, batches: Batches) -> Iterator[Finding]:
    """A finding for each loss whose labels do not depend on any input."""
    if not history.ended or history.steps < STEPS:
        return
    for target in batches.targets:
        end = _end(history, target)
        if target.made or end is None or end <= min(MEMORISED, LEARNT) or _repeated(target):
            continue
        tests = _independent(batches.inputs, target)
        again = any(seen.samples < ONCE * count for seen, count in tests)
        if tests and end > (MEMORISED if again else LEARNT):
            yield _finding(target, tests[0][0], end)


def _finding(target: Stream, seen: Dependence, end: float) -> Finding:
    return Finding(
        "shuffled-labels", Severity.WARNING, "", str(target.place.location),
        f"the labels of {seen.samples} samples depend on their inputs no more than permuted ones (z = {seen.z:.2g}; "
        f"half a dependence would give {seen.power:.2g}); the loss ends at {end:.3g} of the best constant's",
        (
            Evidence("dependence of labels on inputs, standard deviations of chance", seen.z, seen.power, 1.0),
            Evidence("last loss over the best constant's", end, 0.0),
            Evidence("samples", float(seen.samples)),
        ),
    )  # fmt: skip


def _independent(inputs: Sequence[Stream], target: Stream) -> list[tuple[Dependence, int]]:
    """The tests of all inputs and how many samples each has; none where a test sees a dependence, or could not."""
    tests = []
    for stream in inputs:
        seen = _test(stream, target)
        if seen is None:
            continue
        if seen.z >= CHANCE or seen.power < POWER or seen.samples < SAMPLES:
            return []
        tests.append((seen, _count(stream)))
    return tests


def _test(stream: Stream, target: Stream) -> Dependence | None:
    """The test on the samples of one input that stand beside labels."""
    labels = {sample.step: rows for sample, rows in zip(target.samples, target.units(), strict=True)}
    both = [(s.rows, labels[s.step]) for s in stream.samples if len(labels.get(s.step, ())) == len(s.rows)]
    return dependence([x for x, _ in both], [y for _, y in both]) if both else None


def _count(stream: Stream) -> int:
    return sum(len(sample.rows) for sample in stream.samples)


def _repeated(target: Stream) -> bool:
    """Whether all batches have the same labels in the same order."""
    first = target.samples[0].rows
    return len(target.samples) > 1 and all(torch.equal(sample.rows, first) for sample in target.samples)


def _end(history: History, target: Stream) -> float | None:
    """The run's last losses over that of the best constant; None where the run's loss is not this one."""
    sampled = {sample.step: float(sample.loss) for sample in target.samples if sample.loss is not None}
    scales = [
        history.losses[step][0] / loss
        for step, loss in sampled.items()
        if loss and len(history.losses.get(step, ())) == 1
    ]
    best = _constant(target)
    if len(scales) < 8 or best is None or max(scales) - min(scales) > AGREE * abs(max(scales)):
        return None
    steps = sorted(history.losses)
    last = [history.losses[step][0] for step in steps[-max(1, int(LAST * len(steps))) :]]
    return float(sum(last) / len(last) / scales[0] / best)


def _constant(target: Stream) -> float | None:
    """The loss of the best prediction that does not look at the data."""
    rows = torch.cat([sample.rows.double() for sample in target.samples])
    if target.holds_classes:
        counts = torch.unique(rows[rows >= 0], return_counts=True)[1].double()
        return _entropy(counts / counts.sum()) or None
    if target.place.op == "mse_loss":
        return float((rows - rows.mean(0)).square().mean()) or None
    if target.place.op.startswith("binary_cross_entropy"):
        mean = rows.mean(0).clamp(1e-12, 1 - 1e-12)
        return float(-(mean * mean.log() + (1 - mean) * (1 - mean).log()).mean()) or None
    return None


def _entropy(shares: Tensor) -> float:
    return float(-sum(p * math.log(p) for p in shares.tolist() if p > 0))


def sick() -> Program:
    """Data and labels that were shuffled apart."""
    return _program(lambda x, y: y[torch.randperm(len(y))])


def healthy() -> Program:
    """The same data with their labels."""
    return _program(lambda x, y: y)


def _program(order: Callable[[Tensor, Tensor], Tensor]) -> Program:
    def train() -> None:
        torch.manual_seed(0)
        y = torch.arange(2048) % 4
        x = torch.randn(2048, 16) + torch.randn(4, 16)[y]
        labels = order(x, y)
        model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(STEPS):
            rows = torch.randint(0, 2048, (64,))
            loss = nn.functional.cross_entropy(model(x[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return Program(train)
