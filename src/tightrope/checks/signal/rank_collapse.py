"""`rank-collapse`: the tokens of a sample become one and the same with depth.

Law       a row of attention weights is a mean; a stack of attentions alone takes means of means, and what tells tokens
          apart falls doubly exponentially with depth (the residual's norm goes as its cube at each layer). Their cosine
          goes to 1, where rows of independent entries have N(0, 1/d). A skip carries the tokens past each mean.
Evidence  share of the variance of the data that lies between the tokens of a sample, (site + residual) over (sample +
          site + residual), before the first attention and behind the later ones, on tensors all of whose ways pass at
          least two attentions.
Verdict   `warning` when the share falls below 1e-3 from 0.1 or more, `fault` below 1e-5.
Remedy    a skip around every attention (`add-skip`).
Limits    one attention without a skip is a usual pooling layer and is not judged. Dropout on the weights gives every
          token a mean of its own and hides the collapse. Samples that become
          indistinguishable, in a stack without attention too, are the matter of `vanishing-signal`.
References  Dong, Cordonnier, Loukas (2021), Attention is not all you need: pure attention loses rank doubly
          exponentially with depth, ICML; Noci et al. (2022), Signal propagation in transformers, NeurIPS.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tightrope.checks.echoes import GRADIENT, PROGRESS
from tightrope.checks.trace import CHANCE, VIEWS
from tightrope.finding import Evidence, Finding, Severity
from tightrope.law import Law
from tightrope.study import Study
from tightrope.subject import Subject
from tightrope.tape.tape import Entry, Kind, Tape

STAGE = "batch"
EXPLAINS = (*GRADIENT, *PROGRESS)
REMEDIES = ("add-skip",)

START = 0.1  # share of the variance between tokens where the tokens differ to begin with
WARNING, FAULT = 1e-3, 1e-5  # healthy models: 0.2 behind one attention, 0.6 behind twelve with skips
DEPTH = 2  # attentions on every way; one is a pooling layer
_PRODUCTS = frozenset(("matmul", "bmm", "einsum", "baddbmm"))


def judge(study: Study) -> Iterator[Finding]:
    """One finding, at the first tensor whose tokens have become one."""
    laws, depth = study.measurement.laws, depths(study.tape)
    shares: list[tuple[Entry, int, float]] = []
    for entry in study.tape.entries:
        law = laws.get(entry.outputs[0])
        share = _share(law) if law is not None else None
        if share is not None and entry.outputs[0] in depth and entry.op != "softmax":
            shares.append((entry, depth[entry.outputs[0]], share))
    start = max((share for _, passed, share in shares if passed == 0), default=0.0)
    least = math.inf  # of all that comes later: a branch whose stream goes on past it is no stream
    collapsed = None
    for entry, passed, share in reversed(shares):
        least = min(least, passed)
        if DEPTH <= passed <= least and share < WARNING:
            collapsed = entry, passed, share
    if collapsed is not None and start >= START:
        yield _finding(study, *collapsed, start)


def depths(tape: Tape) -> dict[int, int]:
    """The least number of attentions on a way from the data to each result, for results that depend on data."""
    depth = {value.id: 0 for value in tape.value_of(Kind.INPUT)}
    weights: set[int] = set()
    for entry in tape.entries:
        data = [i for i in entry.inputs if i in depth]
        if entry.op == "embedding":
            depth.update(dict.fromkeys(entry.outputs, 0))
        if not data:
            continue
        mixed = [i for i in data if i not in weights]
        if entry.op == "scaled_dot_product_attention":
            here = depth.get(entry.inputs[2], min(depth[i] for i in data)) + 1
        elif entry.op in _PRODUCTS and len(mixed) < len(data) and mixed:
            here = min(depth[i] for i in mixed) + 1
        else:
            here = min(depth[i] for i in data)
        depth.update(dict.fromkeys(entry.outputs, here))
        if entry.op == "softmax" or (entry.op in VIEWS | CHANCE and entry.inputs[0] in weights):
            weights.update(entry.outputs)
    return depth


def _share(law: Law) -> float | None:
    """Share of the data's variance that lies between the tokens of a sample; None without tokens or samples."""
    whole = law.sample + law.site + law.residual
    if not law.finite or whole <= 0 or (law.site == 0 and law.residual == 0):
        return None
    return (law.site + law.residual) / whole


def _finding(study: Study, entry: Entry, depth: int, share: float, start: float) -> Finding:
    return Finding(
        "rank-collapse", Severity.FAULT if share < FAULT else Severity.WARNING, entry.module,
        str(study.tape.location(entry)),
        f"the tokens of a sample share all but {share:.2g} of their variance behind {depth} attentions without a skip; "
        f"{start:.2g} at the start, level: {WARNING:g}",
        (Evidence("share of the variance between tokens", share, start),), entry.index, modules=(entry.module,),
    )  # fmt: skip


class _Attentions(nn.Module):
    """A stack of attentions over 12 tokens, with or without skips, and a head on each token."""

    def __init__(self, skip: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.MultiheadAttention(32, 4, batch_first=True) for _ in range(4))
        self.head, self.skip = nn.Linear(32, 5), skip

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, 5, T) of sequences (N, T, 32)."""
        for layer in self.layers:
            y = layer(x, x, x, need_weights=False)[0]
            x = x + y if self.skip else y
        scores: Tensor = self.head(x).transpose(1, 2)
        return scores


def sick() -> Subject:
    """Four attentions, one upon the other."""
    return _net(False)


def healthy() -> Subject:
    """The same four, each beside a skip."""
    return _net(True)


def _net(skip: bool) -> Subject:
    torch.manual_seed(0)
    model = _Attentions(skip)
    return Subject(model, (torch.randn(8, 12, 32), torch.randint(0, 5, (8, 12))), nn.functional.cross_entropy)
