"""`moving-target`: the law of what a layer reads moves as the layers below it train.

Law       a layer fits the law of its input at this step; when the layers below move that law by more than its own width
          before it is learnt, what was learnt is of an input that comes no more. A normaliser in front fixes mean and
          standard deviation, whatever happens below.
Evidence  the input of every hidden weight, at this step and at the first recorded one: difference of the means in
          standard deviations, and ln of the ratio of the standard deviations, with standard errors.
Verdict   `advice` where the mean has moved by more than 2 standard deviations, or the scale by more than a factor of 5,
          beyond 4 standard errors, within the first 100 steps. Training moves laws rightly; it is never more.
Remedy    a normaliser in front of the layer (`add-norm`); a warm-up of the learning rate.
Limits    only the first two moments are compared. Layers behind a normaliser, and inputs that are data, are left out.
References  Ioffe, Szegedy (2015), Batch normalization, ICML; Santurkar et al. (2018), How does batch normalization help
          optimization?, NeurIPS, who find the shift no harm in itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from tightrope.checks.layers import layers
from tightrope.checks.trace import CHANCE, NORMS, VIEWS, origin
from tightrope.finding import Evidence, Finding, Severity
from tightrope.law import Law
from tightrope.study import History, Study
from tightrope.subject import Program
from tightrope.tape.tape import Entry, Kind

STAGE = "run"
EXPLAINS = ()
REMEDIES = ("add-norm",)

SHIFT = 2.0  # standard deviations: the old and the new law then overlap by a third
SCALE = math.log(5.0)  # the factor at which init-too-large calls a pre-activation out of range
SIGNIFICANT = 4.0  # standard errors, over as many layers as a net has
EARLY = 100  # steps; later the law of a first step is of no interest


@dataclass(frozen=True)
class Move:
    """How far one layer's input has moved.

    Attributes:
        entry: the call that reads it, at the later step.
        shift: difference of the means, in standard deviations of the earlier law.
        stretch: ln of the later over the earlier standard deviation.
        shift_error, stretch_error: their standard errors.
    """

    entry: Entry
    shift: float
    stretch: float
    shift_error: float
    stretch_error: float

    @property
    def far(self) -> bool:
        """Whether it has moved out of the law that it had."""
        shifted = abs(self.shift) > SHIFT + SIGNIFICANT * self.shift_error
        return shifted or abs(self.stretch) > SCALE + SIGNIFICANT * self.stretch_error


def judge(study: Study, history: History) -> Iterator[Finding]:
    """One finding over all layers whose input has moved away."""
    if history.ended or study.step > EARLY:
        return
    first = next((s for s in history.earlier if s.step < study.step and _alike(s, study)), None)
    if first is None:
        return
    moved = [move for move in moves(first, study) if move.far]
    if moved:
        yield _finding(study, first.step, moved)


def _alike(first: Study, later: Study) -> bool:
    """Whether two passes made the same calls."""
    return [(e.op, e.module) for e in first.tape.entries] == [(e.op, e.module) for e in later.tape.entries]


def moves(first: Study, later: Study) -> Iterator[Move]:
    """How the inputs of the hidden weights have moved between two recorded passes of the same calls."""
    made = later.tape.makers
    places = {entry.index: n for n, entry in enumerate(later.tape.entries)}
    for layer in layers(later.tape, later.measurement.laws):
        number = next((i for i in layer.entry.inputs if later.tape.values[i].kind is Kind.RESULT), None)
        if number is None:
            continue
        source = made.get(origin(made, number, VIEWS | CHANCE))
        if source is None or source.op in NORMS or number in later.tape.parametric:
            continue
        before = first.tape.entries[places[source.index]].outputs[0]
        old, new = first.measurement.laws.get(before), later.measurement.laws.get(source.outputs[0])
        if old is None or new is None or not (old.finite and new.finite and old.std > 0 and new.std > 0):
            continue
        yield _move(layer.entry, old, new, later.tape.samples or 1)


def _move(entry: Entry, old: Law, new: Law, samples: int) -> Move:
    ratio = new.std / old.std
    error = math.sqrt((1 + ratio**2) / samples)
    return Move(entry, (new.mean - old.mean) / old.std, math.log(ratio), error, math.hypot(old.error, new.error))


def _finding(study: Study, since: int, moved: list[Move]) -> Finding:
    worst = max(moved, key=lambda m: max(abs(m.shift) / SHIFT, abs(m.stretch) / SCALE))
    evidence = (
        Evidence("shift of the mean, in standard deviations", worst.shift, 0.0, worst.shift_error),
        Evidence(
            "std over the earlier std", math.exp(worst.stretch), 1.0, math.exp(worst.stretch) * worst.stretch_error
        ),
    )
    names = tuple(dict.fromkeys(move.entry.module for move in moved))
    return Finding(
        "moving-target", Severity.ADVICE, worst.entry.module, str(study.tape.location(worst.entry)),
        f"since step {since} the input's mean has moved by {worst.shift:.3g} standard deviations, its std × "
        f"{math.exp(worst.stretch):.3g}; so have the inputs of {len(moved)} layers; level: {SHIFT:g} and × 5",
        evidence, worst.entry.index, modules=names,
    )  # fmt: skip


def sick() -> Program:
    """A first layer with 300 times the rate of what stands on it."""
    return Program(lambda: _train(0.3))


def healthy() -> Program:
    """The same net with one rate for all layers."""
    return Program(lambda: _train(1e-3))


def _train(rate: float) -> None:
    """Ten steps of a net of three layers, the first one at a rate of its own."""
    torch.manual_seed(0)
    first = nn.Linear(16, 64)
    rest = nn.Sequential(nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    model = nn.Sequential(first, rest)
    groups = [{"params": first.parameters(), "lr": rate}, {"params": rest.parameters(), "lr": 1e-3}]
    optimizer = torch.optim.Adam(groups)
    for _ in range(10):
        x = torch.randn(64, 16)
        loss = nn.functional.mse_loss(model(x), x[:, :1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
