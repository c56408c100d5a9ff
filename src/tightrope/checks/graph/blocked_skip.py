"""`blocked-skip`: residual blocks whose identity path shrinks or saturates in each of them.

Law       x_l+1 = x_l + F(x_l) gives the gradient an identity path: a sum of products, one of which is 1. With x_l+1 =
          c x_l + F(x_l) that term is c^L, and with x_l+1 = f(x_l + F(x_l)) it is the product of f' over all blocks,
          which for tanh and sigmoid is below 1 wherever x is not 0: the depth that a skip was to make harmless counts
          again.
Evidence  sums on the tape whose one operand reaches the sum before through no weight; the factors and the saturating
          calls on those ways; their measured slope, 1 - E[tanh^2] or E[s (1 - s)].
Verdict   `warning` when the product of factors and slopes over three blocks or more is below 0.1.
Remedy    a skip of the input itself (`open-skip`): the activation inside the branch, the factor on the branch.
Limits    the same weight in each block is a recurrence, whose state may decay on purpose, and passes; so do rectifiers
          and normalisers behind the sum, and gates that depend on the data.
References  He, Zhang, Ren, Sun (2016), Identity mappings in deep residual networks, ECCV.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.checks.echoes import AFTERMATH
from tightrope.checks.trace import CHANCE, VIEWS, learned, producers, weight_of
from tightrope.finding import Evidence, Finding, Severity
from tightrope.study import Study
from tightrope.subject import Subject
from tightrope.tape.tape import Entry, Ref

STAGE = "graph"
EXPLAINS = ("init-too-small", *AFTERMATH)
REMEDIES = ("open-skip",)

BLOCKS = 3  # two sums in a row may be anything
BLOCKED = 0.1  # the identity's share of the gradient that is left: an order of magnitude lost
SATURATING = frozenset(("tanh", "sigmoid"))


@dataclass(frozen=True)
class Skip:
    """The way from one sum to the next one's identity operand.

    Attributes:
        entry: the later sum.
        slope: product of the factors and mean slopes on the way.
        calls: what shrinks it: `tanh`, `mul`.
    """

    entry: Entry
    slope: float
    calls: tuple[str, ...]


def judge(study: Study) -> Iterator[Finding]:
    """At most one finding: the chain of sums whose identity path loses most."""
    made = producers(study.tape)
    chains = [chain for chain in _chains(study, made) if len(chain) >= BLOCKS]
    worst = min(chains, key=lambda chain: math.prod(skip.slope for skip in chain), default=[])
    product = math.prod(skip.slope for skip in worst)
    if product >= BLOCKED or not _residual(study, made, worst):
        return
    calls = tuple(dict.fromkeys(call for skip in worst for call in skip.calls))
    first = worst[0].entry
    modules = tuple(dict.fromkeys(skip.entry.module for skip in worst))
    span = modules[0] if len(modules) == 1 else f"{modules[0]} … {modules[-1]}"
    yield Finding(
        "blocked-skip", Severity.WARNING, span, str(first.location),
        f"{' and '.join(calls)} stand on the identity path of {len(worst)} residual blocks: it passes {product:.3g} of "
        "the gradient; level: 1",
        (
            Evidence("slope of the identity path over all blocks", product, 1.0),
            Evidence("slope a block", product ** (1 / len(worst)), 1.0),
            Evidence("blocks", len(worst)),
        ),
        first.index, modules=modules,
    )  # fmt: skip


def _chains(study: Study, made: dict[int, Entry]) -> list[list[Skip]]:
    """Residual sums one behind the other, each with the skip that leads to it."""
    tape = study.tape
    free = learned(tape) - tape.parametric
    chains: dict[int, list[Skip]] = {}
    for entry in tape.entries:
        if entry.op != "add" or len(entry.inputs) != 2 or not free.issuperset(entry.inputs):
            continue
        ways = [_way(study, made, free, number) for number in entry.inputs]
        kept = [way for way in ways if way is not None]
        if len(kept) == 1:
            start, slope, calls = kept[0]
            chains[entry.outputs[0]] = [*chains.get(start, []), Skip(entry, slope, calls)]
    return list(chains.values())


def _way(
    study: Study, made: dict[int, Entry], free: frozenset[int], number: int
) -> tuple[int, float, tuple[str, ...]] | None:
    """Back from a sum's operand to the sum before, past factors and saturating calls; None past anything else."""
    slope, calls = 1.0, []
    entry = made.get(number)
    while entry is not None and entry.op != "add":
        if entry.op in ("mul", "div") and (factor := _factor(study, entry, free)) is not None:
            slope *= factor if entry.op == "mul" else 1 / factor
            calls += [entry.op] * (abs(factor) != 1)
        elif entry.op in SATURATING:
            slope *= _slope(study, entry)
            calls.append(entry.op)
        elif entry.op not in VIEWS | CHANCE | {"relu"}:
            return None
        number = next((i for i in entry.inputs if i in free), -1)
        entry = made.get(number)
    return (number, slope, tuple(calls)) if entry is not None else None


def _factor(study: Study, entry: Entry, free: frozenset[int]) -> float | None:
    """The number that a value is multiplied by; None when it depends on data."""
    if sum(i in free for i in entry.inputs) != 1 or (entry.op == "div" and entry.inputs[0] not in free):
        return None
    for item in entry.args:
        if isinstance(item, (int, float)) and item:
            return abs(float(item))
        if isinstance(item, Ref) and item.id not in free:
            law = study.measurement.laws.get(item.id)
            return law.rms or None if law is not None else None
    return None


def _slope(study: Study, entry: Entry) -> float:
    """Mean slope of a saturating call, from the law of its result."""
    law = study.measurement.laws.get(entry.outputs[0])
    if law is None or not law.finite:
        return 1.0
    return max(1 - law.second_moment, 0.0) if entry.op == "tanh" else max(law.mean - law.second_moment, 0.0)


def _residual(study: Study, made: dict[int, Entry], chain: list[Skip]) -> bool:
    """Whether the sums of a chain have branches of their own weights: else it is a recurrence, or no residual net."""
    tape = study.tape
    first, last = chain[0].entry, chain[-1].entry
    between = tape.ancestors(*last.outputs) - tape.ancestors(*first.outputs)
    calls = [entry for entry in tape.entries if between.intersection(entry.outputs)]
    return len({weight_of(tape, made, entry) for entry in calls} - {None}) >= len(chain) - 1


class _Block(nn.Module):
    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.branch, self.last = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)), last

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(x + self.branch(x))
        return result


def sick() -> Subject:
    """A sigmoid behind the sum of each block."""
    return _net(nn.Sigmoid())


def healthy() -> Subject:
    """Blocks that end in their sum."""
    return _net(nn.Identity())


def _net(last: nn.Module) -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), *[_Block(last) for _ in range(5)], nn.Linear(32, 3))
    return Subject(model, (torch.randn(64, 8), torch.arange(64) % 3), F.cross_entropy)
