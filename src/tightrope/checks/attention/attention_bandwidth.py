"""`attention-bandwidth`: attention weights so even that every query reads the same mean.

Law       attention is kernel regression of the values on the keys with a bandwidth set by the logits' standard
          deviation tau: of S keys a query uses effectively 1 / sum w^2, which is S exp(-tau^2) for normal logits. At
          tau -> 0 it is S: the output is the mean of the values whatever is asked, and the gradient to q and k, which
          carries the factor on q k^T, is as small as that factor. With q = 0 and k = 0 it is zero, and stays so.
Evidence  effective number of keys over the number of keys, logit standard deviation and the factor on q k^T beside
          1 / sqrt(d), measured; rms of q and k.
Verdict   `warning` when the factor is 100 times and more below 1 / sqrt(d) and the logits' standard deviation below
          0.05; `fault` when q and k are both zero. Only in the first steps.
Remedy    scale the logits by 1 / sqrt(d) (`attention-scale`); draw the weights of q and k (`initialize`).
Limits    small logits at initialisation are usual (weights of standard deviation 0.02, zero queries, a factor 1/d, a
          factor 1/depth) and grow within a few steps; they are silent. Trained weights are not judged.
References  Nadaraya (1964), On estimating regression; Kish (1965), Survey Sampling, for the effective number;
          Vaswani et al. (2017), Attention is all you need.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tightrope.checks.attention.unscaled_attention import (
    FIRST_STEPS,
    NARROW,
    Attention,
    Example,
    attentions,
    query_weight,
)
from tightrope.checks.echoes import GRADIENT, PROGRESS
from tightrope.checks.trace import producers
from tightrope.checks.weights import is_drawn
from tightrope.finding import Evidence, Finding, Severity
from tightrope.measure.probes import Rows
from tightrope.study import Study
from tightrope.subject import Subject

STAGE = "batch"
EXPLAINS = ("rank-collapse", *GRADIENT, *PROGRESS)
REMEDIES = ("attention-scale",)

SHORT = 100.0  # factor below 1 / sqrt(d); 1/d for the widest heads and 1/depth for the deepest nets stay above
EVEN = 0.05  # logit std at which the effective number of keys is within 0.25 % of all
KEYS = 4  # keys from which on their number means anything


def judge(study: Study) -> Iterator[Finding]:
    """A finding for each attention whose rows cannot tell keys apart."""
    if study.step > FIRST_STEPS:
        return
    tape, laws = study.tape, study.measurement.laws
    made = producers(tape)
    for found in attentions(tape, made):
        rows = study.measurement.rows.get(found.entry.outputs[0])
        if rows is None or rows.keys < KEYS or found.width < NARROW or rows.logit_std > EVEN:
            continue
        q, k = laws.get(found.query), laws.get(found.key)
        if q is not None and k is not None and q.rms == 0 and k.rms == 0:
            yield _finding(study, found, rows, Severity.FAULT, "q and k are zero, and so is their gradient")
        elif found.factor * found.width**0.5 * SHORT <= 1 and is_drawn(query_weight(tape, made, found.source)):
            text = f"the factor on q k^T is {found.factor:.3g}, the law asks for 1/sqrt(d) = {found.width**-0.5:.3g}"
            yield _finding(study, found, rows, Severity.WARNING, text)


def _finding(study: Study, found: Attention, rows: Rows, severity: Severity, reason: str) -> Finding:
    evidence = (
        Evidence("effective number of keys over all", rows.effective / rows.keys),
        Evidence("logit std within a row", rows.logit_std, rows.logit_std / (found.factor * found.width**0.5)),
        Evidence("factor on q k^T", found.factor, found.width**-0.5),
    )
    return Finding(
        "attention-bandwidth", severity, found.entry.module, str(study.tape.location(found.entry)),
        f"logit std {rows.logit_std:.2g}: each query reads {rows.effective / rows.keys:.3%} of {rows.keys:.3g} keys "
        f"alike; {reason}",
        evidence, found.entry.index, modules=(found.entry.module,),
    )  # fmt: skip


def sick() -> Subject:
    """Attention of width 64 whose logits are divided by the square of the width."""
    return _net(64.0**-2)


def healthy() -> Subject:
    """The same attention with the factor 1 / 8."""
    return _net(1 / 8)


def _net(factor: float) -> Subject:
    torch.manual_seed(0)
    x: Tensor = torch.randn(16, 16, 64)
    return Subject(Example(factor), (x, torch.arange(16) % 4), torch.nn.functional.cross_entropy)
