"""`loss-broadcast`: a loss that compares every sample with the target of every other.

Law       shapes (n, 1) and (n,) broadcast to (n, n). A squared error over all pairs is (1/n^2) sum_ij (f_i - y_j)^2 =
          (1/n) sum_i (f_i - mean y)^2 + Var(y): it depends on the targets through their mean and variance alone, so its
          minimum is the constant f = mean y, whatever the inputs. An absolute error has its minimum at the median, a
          product of the two at nothing that pairs them.
Evidence  the shapes of the two operands, read off the tape: one depends on the weights and the other on data alone,
          their ranks differ, and each has the batch where the other has length 1 or no dimension.
Verdict   `fault`, always: the loss does not change when the targets are permuted.
Remedy    give both operands one shape (`match-shapes`), by squeezing the model's output or unsqueezing the target.
Limits    a comparison of all pairs that is meant is written with both operands of one rank, or with an unsqueeze in the
          same line; neither is reported. Nor is what a weight reads afterwards: it is no loss.
References  Harris et al. (2020), Array programming with NumPy, Nature 585; Zhang, Chen, Cheung, Xiong, Zhang (2018),
          An empirical study on TensorFlow program bugs, ISSTA.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from tightrope.checks.echoes import AFTERMATH
from tightrope.checks.loss.heads import NAMED
from tightrope.checks.trace import VIEWS, feeds_weight, learned, producers
from tightrope.finding import Evidence, Finding, Severity
from tightrope.study import Study
from tightrope.subject import Subject
from tightrope.tape.tape import Entry, Tape

STAGE = "graph"
EXPLAINS = ("sample-mixing", "unscaled-target", *AFTERMATH)
REMEDIES = ("match-shapes",)

PAIRED = frozenset(("sub", "rsub", "mul", "div"))
"""Calls in which a loss that is written out meets its target."""
INSERTING = frozenset(("unsqueeze", "getitem"))
"""Calls that insert a dimension on purpose, where they stand in the line of the comparison."""


def judge(study: Study) -> Iterator[Finding]:
    """A finding for each comparison of scores and target that broadcasts one sample to all others."""
    tape = study.tape
    depends = learned(tape)
    made = producers(tape)
    for entry in tape.entries:
        if (entry.op not in PAIRED and entry.op not in NAMED) or len(entry.inputs) < 2:
            continue
        sides = [i for i in entry.inputs[:2] if i in depends], [i for i in entry.inputs[:2] if i not in depends]
        if len(sides[0]) != 1 or len(sides[1]) != 1 or sides[0][0] in tape.parametric:
            continue
        scores, target = sides[0][0], sides[1][0]
        pairs = crossed(tape.values[scores].shape, tape.values[target].shape)
        if pairs > 1 and not _meant(tape, made, entry, scores) and not feeds_weight(tape, entry.outputs[0]):
            yield _finding(study, entry, scores, target, pairs)


def crossed(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """The length that each of two shapes of different rank has where the other is stretched; 1 when they fit."""
    if len(a) == len(b):
        return 1
    width = max(len(a), len(b))
    long_a, long_b = ((1,) * (width - len(shape)) + shape for shape in (a, b))
    in_a = {m for m, n in zip(long_a, long_b, strict=True) if n == 1 < m}
    in_b = {n for m, n in zip(long_a, long_b, strict=True) if m == 1 < n}
    return max(in_a & in_b, default=1)


def _meant(tape: Tape, made: dict[int, Entry], entry: Entry, scores: int) -> bool:
    """Whether the scores get their dimension of length 1 in the very line of the comparison, inside no module."""
    number = scores
    while number in made and made[number].op in VIEWS and made[number].inputs:
        maker = made[number]
        grown = len(tape.values[number].shape) > len(tape.values[maker.inputs[0]].shape)
        if grown and maker.op in INSERTING and maker.location == entry.location and not maker.module:
            return True
        number = maker.inputs[0]
    return False


def _finding(study: Study, entry: Entry, scores: int, target: int, pairs: int) -> Finding:
    values = study.tape.values
    a, b = values[scores].shape, values[target].shape
    made = entry.outputs[0]
    wide = math.prod(torch.broadcast_shapes(a, b))
    evidence = [
        Evidence("comparisons", wide, max(math.prod(a), math.prod(b))),
        Evidence("samples that each target is compared with", pairs, 1.0),
    ]
    wanted = study.measurement.laws.get(target)
    loss = study.measurement.laws.get(made)
    if entry.op == "mse_loss" and wanted is not None and loss is not None:
        evidence.append(Evidence("smallest loss that it can reach", wanted.variance, 0.0))
    return Finding(
        "loss-broadcast", Severity.FAULT, entry.module, str(entry.location),
        f"{entry.op} of shapes {a} and {b} makes {pairs} x {pairs} pairs: each of {pairs} targets is compared with all "
        f"{pairs} outputs; level: with its own",
        tuple(evidence), entry.index, modules=(entry.module,),
    )  # fmt: skip


def sick() -> Subject:
    """Outputs of shape (64, 1) against targets of shape (64,)."""
    return _net(torch.Tensor.flatten)


def healthy() -> Subject:
    """The same net with targets of shape (64, 1)."""
    return _net(torch.Tensor.contiguous)


def _net(shape: object) -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    x = torch.randn(64, 8)
    return Subject(model, (x, shape(x[:, :1] + x[:, 1:2])), _squared)  # type: ignore[operator]


def _squared(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output - target).square().mean()


__all__ = ["crossed"]
