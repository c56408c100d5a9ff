"""`train-eval-mismatch`: a layer whose law in evaluation is not the one that the net was trained with.

Law       dropout and stochastic depth keep the mean when what is kept is divided by the share that is kept, or when
          evaluation multiplies by that share: E[m x / p] = x. Where neither is done, every such layer is given 1 / p
          times its usual input in evaluation, and L of them in a row make it p^(-L). A running statistic after n
          updates with momentum a is (1 - a)^n times its first value plus a weighted mean of the batches'; it follows
          the data with a delay of 1 / a updates. While a n is below 1 it is mostly what it was built with, mean 0 and
          variance 1, and evaluation normalises with those.
Evidence  mean of each mask that the step draws by hand, with the constant factors beside it, and what the same calls do
          in eval mode. Weight (1 - a)^n of the first value; running variance and mean beside the batch's; the loss of
          the recorded batch with running statistics and with its own, dropout off in both.
Verdict   a mask of units, or of a branch beside its skip connection, that leaves less or more than the mean by a tenth
          and four standard errors, where eval mode neither draws nor multiplies: `warning`, a `fault` where the layers
          together lose half. Running statistics are judged at the end of a run, or of a model as it stands, after at
          least 30 updates: more than half the weight on the first value, statistics that miss the batch's variance by
          half or its mean by one std, and a loss that is more than 5 % higher is a `warning`, one that is twice as high
          a `fault`.
Remedy    divide by the share that is kept, or torch's own dropout (`rescale-mask`); a momentum of 0.1, or of 3 / n for
          a run of n steps; for a trained model, running statistics taken anew (`bn-momentum`).
Limits    one batch. Masks of whole samples or tokens are taken as part of the task. Batch norm that is frozen is
          `wrong-mode`'s to judge; a short run of a rate that is meant for a long one is reported all the same, since
          its evaluation does not work either.
References  Srivastava et al. (2014), Dropout, JMLR 15; Huang et al. (2016), Deep networks with stochastic depth, ECCV;
          Ioffe, Szegedy (2015), Batch normalization, ICML; Wu, Johnson (2021), Rethinking "batch" in BatchNorm,
          arXiv:2105.07576.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from tightrope.checks.mode.layers import Statistics, norms, statistics
from tightrope.checks.mode.masks import Mask, unequal
from tightrope.checks.mode.rates import Modes, loss_in, running
from tightrope.finding import Evidence, Finding, Severity
from tightrope.study import Study
from tightrope.subject import Subject
from tightrope.tape.rerun import Unplayable

STAGE = "run"
EXPLAINS = ()
REMEDIES = ("rescale-mask", "bn-momentum")

UPDATES = 30
"""Updates after which a model counts as trained at all."""
LEFT = 0.5
"""Weight of the first value above which statistics are mostly what they were built with."""
VARIANCE, SHIFT = (
    0.5,
    1.0,
)  # as in `wrong-mode`: twice what frozen statistics miss in fine-tuning; half of a ReLU's units
WORSE, TWICE = 1.05, 2.0


def judge(study: Study) -> Iterator[Finding]:
    """A finding for all masks that change the mean, else for all batch norms whose statistics have not arrived."""
    lost = unequal(study)
    if lost:
        yield _masked(study, lost)
    else:
        yield from _late(study)


def _masked(study: Study, found: list[Mask]) -> Finding:
    """Masks that nothing makes up for."""
    whole = math.prod(mask.mean for mask in found)
    worst = max(found, key=lambda mask: abs(math.log(max(mask.mean, 1e-6))))
    where = f"{len(found)} masks" if len(found) > 1 else "a mask"
    return Finding(
        "train-eval-mismatch", Severity.FAULT if not 0.5 < whole < 2 else Severity.WARNING, worst.entry.module,
        str(study.tape.location(worst.entry)),
        f"{where} drawn in training leave{'s' * (len(found) == 1)} {worst.mean:.3g} of the mean, and nothing stands in "
        f"for that in eval mode: what follows is given {1 / worst.mean:.3g} times its usual input",
        (
            Evidence("mean of the mask with its factors", worst.mean, 1.0, worst.error),
            Evidence("product over all such layers", whole, 1.0),
        ),
        worst.entry.index, modules=tuple(dict.fromkeys(mask.entry.module for mask in found)),
    )  # fmt: skip


def _late(study: Study) -> Iterator[Finding]:
    """At most one finding, for all batch norms whose statistics have not arrived."""
    tape = study.tape
    if tape.loss is None or (study.history is not None and not study.history.ended):
        return
    weights: dict[int, tuple[float, int]] = {}
    entries = list(norms(tape, training=True))
    for entry in entries:
        count = getattr(study.models.find(entry.module), "num_batches_tracked", None)
        rate = entry.argument(6, "momentum", 0.1)
        if count is not None and rate is not None and int(count) >= UPDATES:
            weights[entry.index] = ((1 - float(rate)) ** int(count), int(count))
    asked = [entry for entry in entries if weights.get(entry.index, (0.0, 0))[0] > LEFT]
    late = [
        (*weights[found.entry.index], found) for found in (statistics(tape, asked) if asked else ())
        if found.variance >= VARIANCE or found.shift >= SHIFT
    ]  # fmt: skip
    if not late:
        return
    try:
        own = loss_in(tape, Modes(drop=False))
        lost = loss_in(tape, Modes(drop=False, given=running(tape, entries)))
    except Unplayable:
        return
    if lost > own + (WORSE - 1) * abs(own):
        yield _finding(study, late, own, lost)


def _finding(study: Study, late: list[tuple[float, int, Statistics]], own: float, lost: float) -> Finding:
    left, count, worst = max(late, key=lambda item: item[2].variance)
    rate = float(worst.entry.argument(6, "momentum", 0.1))
    twice = lost > own + (TWICE - 1) * abs(own)
    return Finding(
        "train-eval-mismatch", Severity.FAULT if twice else Severity.WARNING, worst.entry.module,
        str(study.tape.location(worst.entry)),
        f"momentum {rate:.3g}: after {count} updates the running statistics of {len(late)} batch "
        f"norm{'s' * (len(late) > 1)} are {left:.3g} what they were built with; the loss in eval mode is {lost:.3g}, "
        f"{own:.3g} with the batch's own",
        (
            Evidence("weight of the first value in the running statistics", left, 0.0),
            Evidence("loss in eval mode, dropout off", lost, own),
            Evidence("running variance, relative distance from the batch's", worst.variance, 0.0),
        ),
        worst.entry.index, modules=tuple(item[2].entry.module for item in late),
    )  # fmt: skip


def sick() -> Subject:
    """A momentum of 0.0001, as other libraries count it from the other side, after 200 batches."""
    return _net(1e-4)


def healthy() -> Subject:
    """The same with torch's own momentum."""
    return _net(0.1)


def _net(momentum: float) -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(16, 64), nn.BatchNorm1d(64, momentum=momentum), nn.ReLU(),
        nn.Linear(64, 64), nn.BatchNorm1d(64, momentum=momentum), nn.ReLU(), nn.Linear(64, 4),
    )  # fmt: skip
    x = torch.randn(128, 16)
    y = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    return Subject(model, (x, y), F.cross_entropy)
