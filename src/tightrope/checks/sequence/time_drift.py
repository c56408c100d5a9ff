"""`time-drift`: statistics that drift with time where one normaliser, or one weight, stands for all time steps.

Law       batch norm that is shared by the steps of a recurrence keeps one running mean and variance. When the standard
          deviation s_t of its input drifts, a step comes out with s_t / s at evaluation, s^2 the pooled variance, and
          not with 1 as in training. Pooled over (sample, time) the same holds in training already. A state that is
          multiplied by a factor at every step leaves every scale, whatever normalises it at the end.
Evidence  standard deviation of the normaliser's input at each call, or at each position in time; rms of the state at
          each step; ratio of the ninth to the first decile over time.
Verdict   a batch norm that is called along a loop: `warning` when the ratio passes 2, `fault` when it passes 4. One
          that pools over time behind a recurrence: `warning` above 4. A state: `warning` when its rms grows a
          hundredfold, ten times of it in the later half, which no sum of steps does.
Remedy    statistics for every time step, or over the features of each (`per-step-norm`).
Limits    the first steps of a recurrence that starts from zero are a transient, which deciles leave out. Calls that do
          not follow from one another (levels of a pyramid, real and generated images) are not judged.
References  Cooijmans et al. (2017), Recurrent batch normalization, ICLR; Laurent et al. (2016), Batch normalized
          recurrent neural networks, ICASSP.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from tightrope.checks.sequence.chain import SHORTEST, Recurrence, recurrences
from tightrope.finding import Evidence, Finding, Severity
from tightrope.study import Study
from tightrope.subject import Subject
from tightrope.tape.tape import RECURRENT, Entry

STAGE = "batch"
EXPLAINS = ("train-eval-mismatch", "exploding-signal", "loss-at-init", "moving-target", "saturated-units", "non-finite")
REMEDIES = ("per-step-norm",)

WARNING, FAULT = 2.0, 4.0  # ninth over first decile: evaluation is then off by a factor of sqrt(2), and of 2, both ways
POOLED = 4.0  # a random walk over any length has 3
GROWN, LATER = 100.0, 10.0  # a sum of T steps of like sign doubles in its later half; the cube of the time has 8


def judge(study: Study) -> Iterator[Finding]:
    """Findings on normalisers that are called along a loop, that pool over time, and on states that grow."""
    yield from _called(study)
    yield from _pooled(study)
    for found in recurrences(study):
        if _grows(found.state):
            yield _growing(study, found)


def _called(study: Study) -> Iterator[Finding]:
    """Batch norms that several steps of a loop share."""
    for module, calls in study.measurement.calls.items():
        entry = next((e for e in study.tape.entries if e.op == "batch_norm" and e.module == module), None)
        if entry is None or len(calls) < SHORTEST or not _follow(study, {number for number, _ in calls}):
            continue
        std = [math.sqrt(max(law.sample + law.site + law.residual, 0.0)) for _, law in calls if law.finite]
        low, high = _deciles(std)
        if low is not None and high > WARNING * low:
            severity = Severity.FAULT if high > FAULT * low else Severity.WARNING
            text = f"one batch norm for {len(calls)} time steps, whose std goes from {low:.3g} to {high:.3g} (deciles)"
            yield _finding(study, entry, severity, text, high / low, WARNING, std)


def _follow(study: Study, read: set[int]) -> bool:
    """Whether what one call reads is made of what the call before read, again and again: they are steps of a loop."""
    depth: dict[int, int] = {}
    for entry in study.tape.entries:
        here = max((depth.get(i, 0) for i in entry.inputs), default=0)
        for number in entry.outputs:
            if here or number in read:
                depth[number] = here + (number in read)
    return max((depth.get(n, 0) for n in read), default=0) >= SHORTEST


def _pooled(study: Study) -> Iterator[Finding]:
    """Batch norms behind a recurrence that take its time steps for samples."""
    behind: set[int] = set()
    for entry in study.tape.entries:
        if entry.op in RECURRENT or entry.op == "cumsum" or behind.intersection(entry.inputs):
            behind.update(entry.outputs)
        sites = study.measurement.sites.get(entry.outputs[0]) if entry.op == "batch_norm" and entry.training else None
        if sites is None or len(sites.std) < SHORTEST or entry.inputs[0] not in behind:
            continue
        low, high = _deciles(sites.std)
        if low is not None and high > POOLED * low:
            text = (
                f"batch norm pools {len(sites.std)} time steps, whose std goes from {low:.3g} to {high:.3g} (deciles)"
            )
            yield _finding(study, entry, Severity.WARNING, text, high / low, POOLED, sites.std)


def _deciles(std: Sequence[float]) -> tuple[float | None, float]:
    """First and ninth decile; None for the first when it is zero or anything is not finite."""
    ordered = sorted(std)
    if len(ordered) < SHORTEST or not all(map(math.isfinite, ordered)):
        return None, 0.0
    low, high = ordered[len(ordered) // 10], ordered[(9 * len(ordered)) // 10]
    return (low if low > 0 else None), high


def _grows(state: Sequence[float]) -> bool:
    """Whether a state's scale grows by a factor a step, up to the end."""
    if len(state) < 2 * SHORTEST or not all(map(math.isfinite, state)):
        return False
    early, middle, last = state[len(state) // 10], state[len(state) // 2], state[-1]
    return early > 0 and last > GROWN * early and last > LATER * middle


def _growing(study: Study, found: Recurrence) -> Finding:
    state = found.state
    grown = state[-1] / state[len(state) // 10]
    text = f"the state's rms grows × {grown:.3g} over {len(state)} time steps, and goes on growing"
    return _finding(study, found.entry, Severity.WARNING, text, grown, GROWN, state)


def _finding(
    study: Study, entry: Entry, severity: Severity, text: str, ratio: float, level: float, series: Sequence[float]
) -> Finding:
    evidence = (
        Evidence("ratio over time", ratio, 1.0),
        Evidence("scale at the first time step", series[0]),
        Evidence("scale at the last time step", series[-1]),
    )
    return Finding(
        "time-drift", severity, entry.module, str(study.tape.location(entry)), f"{text}; level: × {level:g}", evidence,
        entry.index, modules=(entry.module,),
    )  # fmt: skip


class _Sum(nn.Module):
    """A running sum of what enters, each state through one batch norm; the last one to a head."""

    def __init__(self, power: int) -> None:
        super().__init__()
        self.enter, self.norm, self.head = nn.Linear(3, 32), nn.BatchNorm1d(32), nn.Linear(32, 2)
        self.power = power

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, 2) of sequences (N, T, 3)."""
        total = self.enter(x[:, 0])
        for t in range(1, x.shape[1]):
            total = 0.5 * total + float(t) ** self.power * self.enter(x[:, t])
            state = self.norm(total)
        scores: Tensor = self.head(state.relu())
        return scores


def sick() -> Subject:
    """One batch norm for 24 steps whose states grow with time."""
    return _net(1)


def healthy() -> Subject:
    """The same net whose states have one law at all steps."""
    return _net(0)


def _net(power: int) -> Subject:
    torch.manual_seed(0)
    return Subject(_Sum(power), (torch.randn(32, 24, 3), torch.arange(32) % 2), nn.functional.cross_entropy)
