"""`wrong-softmax-axis`: a softmax whose rows run over another dimension than the one that is summed.

Law       weights exp(z_k) / sum_j exp(z_j) make sum_k w_k v_k an average of the v_k when the sum runs over the
          dimension that the softmax ran over. Summed over another one, the weights of an average add up to anything:
          K / Q on average for Q rows and K columns. Over the batch, the weights of one sample depend on the other
          samples, and are 1 for a sample alone.
Evidence  the softmax's dimension and its role (sample, site, channel); it is followed through views and products to
          the call that sums; the sum of the weights over the dimension that is summed.
Verdict   `fault` for a softmax over the batch inside a model whose weights are summed over another dimension and never
          over the batch, and for a likelihood loss whose probabilities add up to 1 over another dimension than the
          classes; `warning` for products of queries and keys that are normalised over the queries.
Remedy    the dimension that is summed (`softmax-dim`): in memory where the softmax is a module, else the line to
          change.
Limits    soft assignments (scores of a linear map over clusters, summed over sites), weights that are normalised again,
          and anything that the walk cannot follow pass.
References  Vaswani et al. (2017), Attention is all you need; Bahdanau, Cho, Bengio (2015), Neural machine translation
          by jointly learning to align and translate, ICLR.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.checks.attention.unscaled_attention import attentions
from tightrope.checks.echoes import AFTERMATH
from tightrope.checks.graph.dims import Use, axes_of, is_sample, uses
from tightrope.checks.loss.heads import loss_terms
from tightrope.checks.trace import feeds_weight, learned, producers
from tightrope.finding import Evidence, Finding, Severity
from tightrope.study import Study
from tightrope.subject import Subject
from tightrope.tape.tape import Entry, Tape, softmax_dim

STAGE = "graph"
EXPLAINS = ("sample-mixing", *AFTERMATH)
REMEDIES = ("softmax-dim",)

SOFTMAXES = frozenset(("softmax", "log_softmax"))


def judge(study: Study) -> Iterator[Finding]:
    """A finding for each softmax over a dimension that its weights are not summed over."""
    tape = study.tape
    entries = [entry for entry in tape.entries if entry.op in SOFTMAXES and tape.values[entry.outputs[0]].shape]
    if not entries:
        return
    made, depends, axes = producers(tape), learned(tape), axes_of(tape)
    products = {found.entry.index for found in attentions(tape, made)}
    for entry in entries:
        shape = tape.values[entry.outputs[0]].shape
        dim = softmax_dim(entry.argument(1, "dim", -1), len(shape))
        if entry.outputs[0] not in depends or shape[dim] < 2:
            continue
        found = list(uses(tape, entry.outputs[0], dim))
        batch = len(shape) > 1 and is_sample(axes.get(entry.outputs[0]), dim, tape.samples)
        if (batch and _across(tape, entry, found)) or _classes(tape, dim, found):
            yield _finding(study, entry, dim, batch, found, Severity.FAULT)
        elif entry.index in products and found and all(use.summed is False for use in found):
            yield _finding(study, entry, dim, batch, found, Severity.WARNING)


def _across(tape: Tape, entry: Entry, found: list[Use]) -> bool:
    """Whether weights over the batch are summed over something else, inside a model or by a loss of single samples."""
    summed = [use.summed for use in found]
    picks = [use for use in found if use.entry.op in ("nll_loss", "getitem", "gather")]
    if picks and len(picks) == len(found):
        return (
            all(use.dim == 0 for use in picks)
            and len(tape.values[entry.outputs[0]].shape) == 2
            and _feeds_loss(tape, entry)
        )
    inside = bool(entry.module) or feeds_weight(tape, entry.outputs[0])
    return inside and bool(summed) and all(item is False for item in summed)


def _feeds_loss(tape: Tape, entry: Entry) -> bool:
    kinds = ("nll", "likelihood", "soft")
    return any(t.scores == entry.outputs[0] and t.kind in kinds and t.target is not None for t in loss_terms(tape))


def _classes(tape: Tape, dim: int, found: list[Use]) -> bool:
    """Whether a likelihood loss reads its classes over another dimension than the softmax."""
    losses = [use for use in found if use.entry.op == "nll_loss" and use.entry.inputs[0] == use.value]
    wrong = [use for use in losses if use.dim != (1 if len(tape.values[use.value].shape) > 1 else 0)]
    return bool(losses) and len(wrong) == len(losses)


def right_dim(tape: Tape, entry: Entry) -> int | None:
    """The dimension of a softmax's result that every reader sums over; None when there is none or several."""
    shape = tape.values[entry.outputs[0]].shape
    found = []
    for dim in range(len(shape)):
        readers = list(uses(tape, entry.outputs[0], dim))
        classes = [u for u in readers if u.entry.op == "nll_loss" and u.dim == (len(tape.values[u.value].shape) > 1)]
        if readers and (all(use.summed for use in readers) or len(classes) == len(readers)):
            found.append(dim)
    return found[0] if len(found) == 1 else None


def _finding(study: Study, entry: Entry, dim: int, batch: bool, found: list[Use], severity: Severity) -> Finding:
    tape = study.tape
    shape = tape.values[entry.outputs[0]].shape
    right = right_dim(tape, entry)
    reader = next((use.entry for use in found if use.entry.op != "getitem"), found[0].entry)
    evidence = [Evidence("dimension of the softmax", dim, right)]
    level = f"{reader.op} takes another dimension"
    if right is not None:
        evidence.append(Evidence("sum of the weights over the summed dimension", shape[right] / shape[dim], 1.0))
        level = f"level: over dimension {right}, which {reader.op} sums over"
    return Finding(
        "wrong-softmax-axis", severity, entry.module, str(tape.location(entry)),
        f"{entry.op} of shape {shape} runs over dimension {dim}{', the batch' * batch}; {level}",
        tuple(evidence), entry.index, modules=(entry.module,),
    )  # fmt: skip


class _Pool(nn.Module):
    """Attention over tokens, pooled into one vector a sample."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score, self.value, self.head = nn.Linear(8, 1), nn.Linear(8, 16), nn.Linear(16, 3)
        self.weigh = nn.Softmax(dim=dim)

    def forward(self, x: Tensor) -> Tensor:
        pooled = (self.weigh(self.score(x)) * self.value(x)).sum(1)
        scores: Tensor = self.head(pooled)
        return scores


def sick() -> Subject:
    """Attention weights that are normalised over the batch, and summed over the tokens."""
    return _net(0)


def healthy() -> Subject:
    """The same weights, normalised over the tokens."""
    return _net(1)


def _net(dim: int) -> Subject:
    torch.manual_seed(0)
    return Subject(_Pool(dim), (torch.randn(32, 6, 8), torch.arange(32) % 3), F.cross_entropy)


__all__ = ["right_dim"]
