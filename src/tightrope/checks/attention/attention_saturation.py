"""`attention-saturation`: rows of attention weights that one key takes whole, from the first step on.

Law       the slope of a softmax at a row w is diag(w) - w w^T, at most w (1 - w) for one key: with 0.99 on one key
          it is 0.01, a twenty-fifth of its largest value 1/4. Rows of S normal logits come near it once their
          variance passes 2 ln S, and then q and k learn nothing, whichever key it is.
Evidence  share of rows in which one key has more than 0.99 of the weight; logit standard deviation, entropy and
          effective number of keys; gradient that reaches q against the one that reaches v.
Verdict   `warning` from half of the rows on, `fault` from three in four. Only in the first steps, while the weights of
          q are as an initialiser draws them, and where q and k are two projections.
Remedy    bring the logits to unit standard deviation (`attention-scale`; in memory the query weights take the factor);
          normalise q and k (`qk-norm`), which bounds them.
Limits    training sharpens attention rightly (heads that look one token back), so later steps are not judged. A
          query that is its own key (shared q and k) finds itself by its norm alone and is not judged.
References  Zhai et al. (2023), Stabilizing transformer training by preventing attention entropy collapse, ICML;
          Henry et al. (2020), Query-key normalization for transformers, EMNLP.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from tightrope.checks.attention.unscaled_attention import FIRST_STEPS, Attention, Example, attentions, query_weight
from tightrope.checks.echoes import GRADIENT, PROGRESS
from tightrope.checks.trace import origin, producers
from tightrope.checks.weights import is_drawn
from tightrope.finding import Evidence, Finding, Severity
from tightrope.measure.probes import PEAK, Rows
from tightrope.study import Study
from tightrope.subject import Subject
from tightrope.tape.tape import Entry

STAGE = "batch"
EXPLAINS = ("rank-collapse", *GRADIENT, *PROGRESS)
REMEDIES = ("attention-scale", "qk-norm")

WARNING, FAULT = 0.5, 0.75  # share of saturated rows; normal logits over 16 keys reach it at a std of 15 and 31
TURNS = frozenset(("transpose", "permute", "mT", "T", "t", "contiguous", "movedim", "mul", "div"))
KEYS = 4  # keys from which on one of them taking all is no coin toss


def judge(study: Study) -> Iterator[Finding]:
    """A finding for each attention that starts saturated."""
    if study.step > FIRST_STEPS:
        return
    made = producers(study.tape)
    for found in attentions(study.tape, made):
        rows = study.measurement.rows.get(found.entry.outputs[0])
        if rows is None or rows.keys < KEYS or rows.sharp < WARNING or not _projected(study, made, found):
            continue
        yield _finding(study, found, rows)


def _projected(study: Study, made: dict[int, Entry], found: Attention) -> bool:
    """Whether q comes of a weight as an initialiser draws it, and k of another."""
    weight = query_weight(study.tape, made, found.source)
    own = origin(made, found.query, TURNS) == origin(made, found.key, TURNS)
    return weight is not None and not own and is_drawn(weight)


def _finding(study: Study, found: Attention, rows: Rows) -> Finding:
    gradients = study.measurement.gradients
    evidence = [
        Evidence(f"share of rows with more than {PEAK:g} on one key", rows.sharp, 0.0),
        Evidence("logit std within a row", rows.logit_std, 1.0),
        Evidence("effective number of keys", rows.effective, rows.keys),
    ]
    q = gradients.get(found.query)
    if q is not None:
        evidence.append(Evidence("rms of the gradient at q", q.rms))
    return Finding(
        "attention-saturation", Severity.FAULT if rows.sharp >= FAULT else Severity.WARNING, found.entry.module,
        str(study.tape.location(found.entry)),
        f"in {rows.sharp:.0%} of the rows one of {rows.keys:.3g} keys has more than {PEAK:.0%} of the weight at the "
        f"start (logit std {rows.logit_std:.3g}, the law asks for 1): q and k get no gradient there",
        tuple(evidence), found.entry.index, modules=(found.entry.module,),
    )  # fmt: skip


def sick() -> Subject:
    """Scaled attention whose query and key weights are five times too large."""
    return _net(5.0)


def healthy() -> Subject:
    """The same attention with weights of the law."""
    return _net(1.0)


def _net(excess: float) -> Subject:
    torch.manual_seed(0)
    model = Example(1 / 8)
    for layer in (model.query, model.key):
        nn.init.normal_(layer.weight, std=excess / 8)
    return Subject(model, (torch.randn(16, 16, 64), torch.arange(16) % 4), nn.functional.cross_entropy)
