"""`dropout-before-norm`: batch statistics that include dropout's noise, which evaluation does not have.

Law       inverted dropout of rate p keeps E x and turns E[x^2] into E[x^2] / (1 - p). A linear map behind it receives
          that extra variance, and a batch norm's running variance remembers it. In evaluation the noise is gone: the
          norm divides by the standard deviation of the training and its output has variance Var_off / Var_on < 1. The
          shift of n such norms multiplies.
Evidence  the recorded calls are made again with dropout off: variance of each batch norm's input, off over on, median
          over channels; the loss with dropout off under the statistics of dropout on, and under the batch's own.
Verdict   judged where the ratio is below 0.9. `warning` when the statistics of dropout on cost more than 5 % of the
          loss, else `advice`.
Remedy    dropout behind the last norm (just before the head), or no dropout where there is batch norm; for a trained
          model, running statistics taken anew with dropout off (`move-dropout`).
Limits    one batch and one draw of the masks. The stack norm, ReLU, dropout, linear, norm is common: it has the shift,
          and how much it costs is what is judged.
References  Li, Chen, Hu, Yang (2019), Understanding the disharmony between dropout and batch normalization by variance
          shift, CVPR.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from tightrope.checks.mode.layers import drops, norms, rate
from tightrope.checks.mode.rates import Modes, fall, loss_in
from tightrope.finding import Evidence, Finding, Severity
from tightrope.study import Study
from tightrope.subject import Subject
from tightrope.tape.rerun import Unplayable

STAGE = "run"
EXPLAINS = ("train-eval-mismatch",)
REMEDIES = ("move-dropout",)

RATIO = 0.9
"""Of the variances; healthy programs lay between 0.98 and 1.01 in trials."""
COST = 0.05
"""Share of the loss that counts as worse."""


def judge(study: Study) -> Iterator[Finding]:
    """At most one finding, at the norm whose statistics miss most."""
    tape = study.tape
    entries, chance = list(norms(tape, training=True)), list(drops(tape, training=True))
    if not entries or not chance or tape.loss is None:
        return
    try:
        on, off, stale = Modes(drop=True), Modes(drop=False), Modes(drop=False)
        loss_in(tape, on)
        own = loss_in(tape, off)
        stale.given = on.seen
        lost = loss_in(tape, stale)
    except Unplayable:
        return
    ratios = {e.index: fall(on.seen[e.index], off.seen[e.index]) for e in entries if e.index in off.seen}
    shifted = [entry for entry in entries if ratios.get(entry.index, 1.0) < RATIO]
    if not shifted:
        return
    harmful = lost > own + COST * abs(own)
    if not harmful and study.history is not None and not study.history.ended:
        return  # what it costs shows when the net has learnt something
    worst = min(shifted, key=lambda entry: ratios[entry.index])
    ratio = ratios[worst.index]
    yield Finding(
        "dropout-before-norm", Severity.WARNING if harmful else Severity.ADVICE, worst.module,
        str(tape.location(worst)),
        f"without dropout the variance that batch norm reads is {ratio:.3g} of that in training, at {len(shifted)} of "
        f"{len(entries)} norms; the loss in evaluation is {lost:.3g}, {own:.3g} with statistics of its own",
        (
            Evidence("variance without dropout over variance with it", ratio, 1.0),
            Evidence("loss without dropout, statistics of training", lost, own),
            Evidence("rate", max(rate(entry) for entry in chance)),
        ),
        worst.index, modules=tuple(dict.fromkeys(entry.module for entry in shifted)),
    )  # fmt: skip


def sick() -> Subject:
    """Dropout of rate 0.5 right in front of each batch norm."""
    return _net(before=True)


def healthy() -> Subject:
    """Dropout behind the last norm, in front of the head."""
    return _net(before=False)


def _net(*, before: bool) -> Subject:
    torch.manual_seed(0)
    inner: list[nn.Module] = [nn.Dropout(0.5)] if before else []
    model = nn.Sequential(
        nn.Linear(16, 64), nn.ReLU(), *inner, nn.BatchNorm1d(64),
        nn.Linear(64, 64), nn.ReLU(), *[nn.Dropout(0.5) for _ in inner], nn.BatchNorm1d(64),
        *([] if before else [nn.Dropout(0.5)]), nn.Linear(64, 4),
    )  # fmt: skip
    return Subject(model, (torch.randn(128, 16), torch.arange(128) % 4), F.cross_entropy)
