"""`dropout-in-eval`: dropout that stays active in evaluation mode.

Law       inverted dropout with rate p multiplies x by m / (1 - p), m a Bernoulli variable of mean 1 - p. Its mean is x,
          its variance x^2 p / (1 - p): in evaluation that noise buys nothing, predictions change from call to call, and
          with independent errors the noise of n such layers adds up.
Evidence  the models' calls are made again with every module in evaluation mode: each dropout, and each fused attention
          with a dropout rate, that still draws there; its rate.
Verdict   `warning`; `advice` where the user's line says `training=True`, as Monte Carlo dropout does.
Remedy    `F.dropout(x, p, training=self.training)`, or `torch.nn.Dropout`; for fused attention
          `dropout_p=self.p if self.training else 0.0` (`dropout-by-mode`).
Limits    a model that cannot be called again without a trace is not judged; dropout that is written out is not seen.
References  Srivastava et al. (2014), Dropout, JMLR 15; Gal, Ghahramani (2016), Dropout as a Bayesian approximation,
          ICML, for the use that is meant.
"""

from __future__ import annotations

import linecache
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.checks.mode.layers import drops, rate
from tightrope.finding import Evidence, Finding, Severity
from tightrope.replay import Replay
from tightrope.subject import Subject
from tightrope.tape.tape import Entry, Tape

STAGE = "batch"
EXPLAINS = ("train-eval-mismatch",)
REMEDIES = ("dropout-by-mode",)

LINES = 4
"""Lines of a call that are read for the word that says it is meant."""


def judge(tape: Tape, replay: Replay) -> Iterator[Finding]:
    """At most one finding, for all dropouts that evaluation mode leaves active."""
    if not any(True for _ in (*drops(tape, training=True), *_attentions(tape))):
        return
    evaluated = replay.tape(training=False)
    if evaluated is None:
        return
    active = sorted((*drops(evaluated, training=True), *_attentions(evaluated)), key=lambda e: e.index)
    if not active:
        return
    meant = all(_is_meant(entry) for entry in active)
    rates = [_rate(entry) for entry in active]
    first = active[0]
    fact = f"{first.op} of rate {rates[0]:.3g} draws in evaluation mode too"
    if len(active) > 1:
        fact = f"{len(active)} calls with dropout, of rates up to {max(rates):.3g}, draw in evaluation mode too"
    evidence = (Evidence("rate of dropout in evaluation mode", max(rates), 0.0),)
    yield Finding(
        "dropout-in-eval", Severity.ADVICE if meant else Severity.WARNING, first.module, str(first.location), fact,
        evidence, _index(tape, first), modules=tuple(dict.fromkeys(entry.module for entry in active)),
    )  # fmt: skip


def _attentions(tape: Tape) -> Iterator[Entry]:
    """Fused attentions with a positive rate."""
    for entry in tape.entries:
        if entry.op == "scaled_dot_product_attention" and float(entry.argument(4, "dropout_p", 0.0)) > 0:
            yield entry


def _rate(entry: Entry) -> float:
    fused = entry.op == "scaled_dot_product_attention"
    return float(entry.argument(4, "dropout_p", 0.0)) if fused else rate(entry)


def _is_meant(entry: Entry) -> bool:
    """Whether the user's line says that it trains."""
    lines = (linecache.getline(entry.location.file, entry.location.line + k) for k in range(LINES))
    return "training=True" in "".join("".join(lines).split())


def _index(tape: Tape, entry: Entry) -> int:
    """Where the call stands on the tape of the step."""
    same = (e.index for e in tape.entries if (e.op, e.module, e.location) == (entry.op, entry.module, entry.location))
    return next(same, -1)


class _Net(nn.Module):
    def __init__(self, *, by_mode: bool) -> None:
        super().__init__()
        self.enter, self.leave, self.by_mode = nn.Linear(16, 64), nn.Linear(64, 4), by_mode

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.enter(x))
        h = F.dropout(h, 0.3, self.training) if self.by_mode else F.dropout(h, 0.3)
        scores: Tensor = self.leave(h)
        return scores


def sick() -> Subject:
    """`F.dropout(h, 0.3)`, which takes training for granted."""
    return _net(by_mode=False)


def healthy() -> Subject:
    """The same that is told the module's mode."""
    return _net(by_mode=True)


def _net(*, by_mode: bool) -> Subject:
    torch.manual_seed(0)
    return Subject(_Net(by_mode=by_mode), (torch.randn(64, 16), torch.arange(64) % 4), F.cross_entropy)
