"""`unscaled-attention`: attention logits that grow with the width of a head.

Law       for independent q and k of d components, Var(q . k) = d Var(q) Var(k); with unit variances the logits have
          standard deviation sqrt(d), with the factor 1 / sqrt(d) they have 1. A softmax over T keys of logits with
          standard deviation tau gives its largest weight to one key once tau^2 passes 2 ln T, and its gradient dies.
Evidence  standard deviation of the logits within a row and entropy of the rows as a share of ln T, both measured; the
          factor between q k^T and the softmax, read off the tape, beside 1 / sqrt(d).
Verdict   when the factor is at least twice 1 / sqrt(d): logit standard deviation above 2 `warning`, above 4 `fault`.
          Only in the first steps, and while the query weights are as an initialiser draws them.
Remedy    scale the logits by 1 / sqrt(d) (`attention-scale`; in memory the query weights take the factor, which gives
          the same function).
Limits    models that fold the factor into their initialisation (T5) or normalise q and k keep small logits without it
          and are silent. Trained weights may want sharp attention and are not judged.
References  Vaswani et al. (2017), Attention is all you need, section 3.2.1 and its footnote.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.checks.echoes import GRADIENT, PROGRESS
from tightrope.checks.trace import CHANCE, VIEWS, origin, producers
from tightrope.checks.weights import is_drawn
from tightrope.finding import Evidence, Finding, Severity
from tightrope.measure.probes import Rows
from tightrope.study import Study
from tightrope.subject import Subject
from tightrope.tape.tape import Entry, Kind, Ref, Tape

STAGE = "batch"
EXPLAINS = ("attention-saturation", "rank-collapse", *GRADIENT, *PROGRESS)
REMEDIES = ("attention-scale",)

WARNING, FAULT = 2.0, 4.0  # logit std; trials at initialisation: healthy 0.84 to 0.94, unscaled 7.1
EXCESS = 2.0  # times 1 / sqrt(d)
NARROW = 4  # head width from which the factor matters
FIRST_STEPS = 5  # training sharpens attention, so later steps are not judged


@dataclass(frozen=True)
class Attention:
    """One attention on the tape.

    Attributes:
        entry: the softmax, or the fused call.
        query, key: ids of the tensors whose rows are multiplied.
        source: id of what the queries are views and multiples of.
        width: components of a row, d.
        outer: what multiplies q k^T on its way to the softmax.
        factor: the same times what multiplied q and k before.
    """

    entry: Entry
    query: int
    key: int
    source: int
    width: int
    outer: float
    factor: float


def judge(study: Study) -> Iterator[Finding]:
    """A finding for each attention without its factor whose logits are far out."""
    if study.step > FIRST_STEPS:
        return
    tape = study.tape
    made = producers(tape)
    for found in attentions(tape, made):
        rows = study.measurement.rows.get(found.entry.outputs[0])
        if rows is None or rows.logit_std <= WARNING or found.width < NARROW:
            continue
        if found.factor * found.width**0.5 >= EXCESS and is_drawn(query_weight(tape, made, found.source)):
            yield _finding(study, found, rows)


def attentions(tape: Tape, made: dict[int, Entry]) -> Iterator[Attention]:
    """Fused and unfused attentions: softmax rows of products of two activations."""
    for entry in tape.entries:
        if entry.op == "scaled_dot_product_attention":
            q, k = entry.inputs[0], entry.inputs[1]
            width = tape.values[q].shape[-1]
            factor = float(entry.kwargs.get("scale") or width**-0.5)
            source, inner = _inside(tape, made, q, k)
            yield Attention(entry, q, k, source, width, factor, factor * inner)
        elif entry.op == "softmax":
            number, factor = _scaled(tape, made, entry.inputs[0])
            product = made.get(number)
            pair = _operands(tape, product) if product is not None else None
            if pair is not None:
                q, k, width = pair
                source, inner = _inside(tape, made, q, k)
                yield Attention(entry, q, k, source, width, factor, factor * inner)


def _inside(tape: Tape, made: dict[int, Entry], query: int, key: int) -> tuple[int, float]:
    """What the queries come from, and the factor that q and k bring to their product."""
    source, before = _scaled(tape, made, query)
    return source, before * _scaled(tape, made, key)[1]


def _scaled(tape: Tape, made: dict[int, Entry], number: int) -> tuple[int, float]:
    """Back past views, masks and known factors: the value they started from, and the product of the factors."""
    factor = 1.0
    while number in made:
        entry = made[number]
        if entry.op in VIEWS | CHANCE | {"masked_fill", "where", "add", "tril", "triu"}:
            floats = [i for i in entry.inputs if tape.values[i].is_float and tape.values[i].kind is Kind.RESULT]
            if len(floats) != 1:  # a sum of two signals is no mask
                learned = [i for i in floats if not is_bias(tape, made, i)]
                if len(learned) != 1:
                    return number, factor
                floats = learned
            number = floats[0]
        elif entry.op in ("mul", "div") and (known := _number(tape, entry)) is not None:
            factor *= known if entry.op == "mul" else 1 / known
            number = next(i for i in entry.inputs if tape.values[i].kind is Kind.RESULT)
        else:
            break
    return number, factor


def is_bias(tape: Tape, made: dict[int, Entry], number: int) -> bool:
    """Whether a result is made of parameters and known tensors alone (a position bias), and of no sample's data."""
    seen: set[int] = set()
    waiting = [number]
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        if one in made:
            waiting.extend(made[one].inputs)
            continue
        value = tape.values[one]
        if value.kind is Kind.INPUT or (value.kind is Kind.KNOWN and value.shape[:1] == (tape.samples,)):
            return False
    return True


def _number(tape: Tape, entry: Entry) -> float | None:
    """The known number that a product or quotient of a result has for its other operand."""
    if sum(tape.values[i].kind is Kind.RESULT for i in entry.inputs) != 1:
        return None
    if entry.op == "div" and not (isinstance(entry.args[0], Ref) and entry.args[0].id in entry.inputs[:1]):
        return None
    for argument in entry.args:
        if isinstance(argument, (int, float)) and argument:
            return abs(float(argument))
        if isinstance(argument, Ref):
            value = tape.values[argument.id]
            if value.kind is not Kind.RESULT and value.content is not None and value.content.numel() == 1:
                return abs(float(value.content)) or None
    return None


def _operands(tape: Tape, product: Entry) -> tuple[int, int, int] | None:
    """Both activations of a matrix product and the length that it sums over."""
    if product.op not in ("matmul", "bmm", "baddbmm", "einsum"):
        return None
    pair = product.inputs[-2:]
    if len(pair) != 2 or any(tape.values[i].kind is not Kind.RESULT for i in pair):
        return None
    left, right = tape.values[pair[0]].shape, tape.values[pair[1]].shape
    if product.op == "einsum":
        equation = str(product.args[0]).replace(" ", "")
        inside, _, outside = equation.partition("->")
        summed = [c for c in inside.split(",")[0] if c not in outside and c != "."]
        return (*pair, left[inside.split(",")[0].index(summed[0])]) if len(summed) == 1 and "." not in inside else None
    return (*pair, left[-1]) if len(left) >= 3 and len(right) >= 3 else None


def query_weight(tape: Tape, made: dict[int, Entry], source: int) -> Tensor | None:
    """The weight of the projection that makes the queries; None when there is no such linear map."""
    entry = made.get(source)
    if entry is None or entry.op not in ("linear", "matmul", "addmm"):
        return None
    for i in entry.inputs:
        value = tape.values[origin(made, i)]
        if value.kind is Kind.PARAMETER and len(value.shape) == 2:
            return value.content
    return None


def _finding(study: Study, found: Attention, rows: Rows) -> Finding:
    tape, laws = study.tape, study.measurement.laws
    evidence = [
        Evidence("logit std within a row", rows.logit_std, rows.logit_std / (found.factor * found.width**0.5)),
        Evidence("factor on q k^T", found.factor, found.width**-0.5),
        Evidence("entropy of the rows over ln T", rows.entropy, 1.0),
    ]
    q, k = laws.get(found.query), laws.get(found.key)
    if q is not None and k is not None:
        between = (k.site + k.residual + k.sample) ** 0.5
        evidence.append(Evidence("logit std by the law of q and k", found.outer * found.width**0.5 * q.rms * between))
    return Finding(
        "unscaled-attention", Severity.FAULT if rows.logit_std > FAULT else Severity.WARNING, found.entry.module,
        str(tape.location(found.entry)),
        f"logit std {rows.logit_std:.3g}: the factor on q k^T is {found.factor:.3g} for heads of {found.width} "
        f"components, the law asks for 1/sqrt(d) = {found.width**-0.5:.3g}",
        tuple(evidence), found.entry.index, modules=(found.entry.module,),
    )  # fmt: skip


class Example(nn.Module):
    """One head of self-attention over 16 tokens, with a given factor on its logits."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)
        for layer in (self.query, self.key, self.value):
            nn.init.normal_(layer.weight, std=1 / 8)
        self.head = nn.Linear(64, 4)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, 4) of sequences (N, T, 64)."""
        logits = self.factor * self.query(x) @ self.key(x).transpose(1, 2)
        scores: Tensor = self.head((logits.softmax(-1) @ self.value(x)).mean(1))
        return scores


def sick() -> Subject:
    """Attention of width 64 with no factor."""
    return _net(1.0)


def healthy() -> Subject:
    """The same attention with the factor 1 / 8."""
    return _net(1 / 8)


def _net(factor: float) -> Subject:
    torch.manual_seed(0)
    return Subject(Example(factor), (torch.randn(16, 16, 64), torch.arange(16) % 4), F.cross_entropy)
