"""`single-linear-stack`: layers without a nonlinearity between them, which are one matrix together.

Law       W_2 (W_1 x + b_1) + b_2 = (W_2 W_1) x + (W_2 b_1 + b_2): a stack of linear maps is the linear map of its
          product, of rank min(d_0, ..., d_L) at most. Hidden widths of at least min(d_0, d_L) leave it any matrix: the
          stack represents what a single layer could, whatever its depth.
Evidence  the number of weights on the longest way from the data to the scores, and the widths between; every call on
          every way is read off the tape.
Verdict   `warning` when all ways from the data to the scores are linear, with two weights or more on one of them, and
          no width between is below min(d_0, d_L).
Remedy    an activation behind each hidden layer (`add-activation`): in memory where each is a module of its own.
Limits    a bottleneck narrower than input and output (low-rank adapters, linear autoencoders) restricts the map and
          passes; one nonlinear call anywhere on a way (max pooling, attention, a recurrent layer, a normaliser of
          single samples) and the check is silent. Batch normalisation is a linear map at inference and counts as one.
References  Cybenko (1989), Approximation by superpositions of a sigmoidal function, Math. Control Signals Syst. 2;
          Saxe, McClelland, Ganguli (2014), Exact solutions to the nonlinear dynamics of learning in deep linear
          networks, ICLR.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from tightrope.checks.bounds import head_range
from tightrope.checks.echoes import AFTERMATH
from tightrope.checks.loss.heads import loss_terms
from tightrope.checks.trace import CHANCE, JOINS, VIEWS, is_weighted, learned, origin, producers
from tightrope.finding import Evidence, Finding, Severity
from tightrope.study import Study
from tightrope.subject import Subject
from tightrope.tape.tape import Entry, Tape

STAGE = "graph"
EXPLAINS = AFTERMATH
REMEDIES = ("add-activation",)

LINEAR = VIEWS | CHANCE | JOINS | {
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "matmul", "mm",
    "bmm", "addmm", "baddbmm", "einsum", "add", "sub", "rsub", "neg", "mul", "div", "mean", "sum", "avg_pool1d",
    "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "batch_norm",
    "pad",
}  # fmt: skip
"""Calls that are linear in their data, as long as they have one operand of it."""
HEADS = frozenset(("softmax", "log_softmax", "sigmoid", "logsigmoid", "tanh", "relu", "softplus", "exp"))
"""Activations that the scores themselves may have gone through."""


def judge(study: Study) -> Iterator[Finding]:
    """At most one finding: the scores of a loss are a linear function of the data, in several layers."""
    tape = study.tape
    made, depends = producers(tape), learned(tape)
    for term in loss_terms(tape):
        head = made.get(origin(made, term.scores))
        while head is not None and (head.op in HEADS or head_range(head) is not None):
            head = made.get(origin(made, head.inputs[0]))
        stack = linear_stack(tape, made, depends, head) if head is not None else None
        if stack is None or len(stack) < 2 or head is None:
            continue
        hidden = [_width(tape, entry.outputs[0]) for entry in stack[:-1]]
        ends = _width(tape, _data(tape, depends, stack[0])), _width(tape, stack[-1].outputs[0])
        if min(hidden) >= min(ends):
            yield _finding(study, stack, hidden, ends)
            return


def linear_stack(tape: Tape, made: dict[int, Entry], depends: frozenset[int], last: Entry) -> list[Entry] | None:
    """The calls with a weight on the longest way to a call, first to last; None when some way is not linear."""
    free = depends - tape.parametric
    longest: dict[int, list[Entry]] = {}
    below = tape.ancestors(*last.outputs)
    for entry in tape.entries:
        if entry.index > last.index or not below.intersection(entry.outputs) or not free.intersection(entry.outputs):
            continue
        moving = [i for i in entry.inputs if i in free]
        weighted = is_weighted(tape, entry)
        data = [i for i in entry.inputs if i not in tape.parametric]
        joins = entry.op in JOINS | {"add", "sub", "rsub"}
        if entry.op not in LINEAR or (len(moving) > 1 and not joins) or (weighted and len(data) != 1):
            return None
        ways = [longest.get(i, []) for i in moving]
        way = max(ways, key=len, default=[])
        longest.update(dict.fromkeys(entry.outputs, [*way, entry] if weighted else way))
    return longest.get(last.outputs[0])


def _data(tape: Tape, depends: frozenset[int], entry: Entry) -> int:
    return next((i for i in entry.inputs if i not in tape.parametric), entry.inputs[0])


def _width(tape: Tape, number: int) -> int:
    """Numbers that one sample has in a value."""
    return math.prod(tape.values[number].shape[1:])


def _finding(study: Study, stack: list[Entry], hidden: list[int], ends: tuple[int, int]) -> Finding:
    tape = study.tape
    widths = " - ".join(str(width) for width in (ends[0], *hidden, ends[1]))
    evidence = (
        Evidence("weights on the way from the data to the scores", len(stack), 1.0),
        Evidence("nonlinear calls between them", 0.0, len(stack) - 1.0),
        Evidence("smallest hidden width", min(hidden), None),
        Evidence("largest rank of a single layer", min(ends), None),
    )
    modules = tuple(dict.fromkeys(entry.module for entry in stack))
    return Finding(
        "single-linear-stack", Severity.WARNING, f"{modules[0]} … {modules[-1]}", str(tape.location(stack[0])),
        f"{len(stack)} layers of widths {widths} have no nonlinearity between them: together they are one matrix of "
        f"{ends[0]} x {ends[1]}",
        evidence, stack[0].index, modules=modules,
    )  # fmt: skip


def sick() -> Subject:
    """Three linear layers in a row."""
    return _net(nn.Identity)


def healthy() -> Subject:
    """The same layers with rectifiers between them."""
    return _net(nn.ReLU)


def _net(act: type[nn.Module]) -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), act(), nn.Linear(32, 32), act(), nn.Linear(32, 3))
    return Subject(model, (torch.randn(64, 8), torch.arange(64) % 3), F.cross_entropy)


__all__ = ["linear_stack"]
