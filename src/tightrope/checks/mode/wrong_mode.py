"""`wrong-mode`: a model that is trained in evaluation mode, or evaluated in training mode.

Law       in evaluation mode batch norm computes (x - m) / sqrt(v + eps) with the running m and v, which that mode never
          updates; unless m and v are the batch's own, its output has mean (E x - m) / sqrt v and variance Var x / v in
          place of 0 and 1. Dropout is the identity there, so a net that is trained in it is not regularised. In
          training mode an evaluation depends on the batch it is computed on, and on the masks that dropout draws: with
          rate p a unit's noise has p / (1 - p) times its energy.
Evidence  the mode of every batch norm and dropout call on the tape of a backward pass; running variance and mean beside
          those of the batch; whether the model ran in training mode in a step recorded before; the same of evaluation
          passes, forward passes without gradient whose output meets labels.
Verdict   batch norm: `fault` when the running statistics are as they were built and a trained weight stands at it or
          before it and they miss the batch's variance by half or its mean by one std, `warning` when they miss it and
          are not fresh. Dropout: `warning` for a net whose weights are all trained and as drawn, `advice` else.
          `warning` when a model that was in training mode has left it under the same optimizer, and when whole models
          with dropout or batch norm are evaluated in training mode.
Remedy    `model.train()` before the training loop and after every evaluation, `model.eval()` before one (`set-mode`).
Limits    batch norm that is frozen on purpose keeps statistics near those of the batch (within 0.35 of the variance in
          fine-tuning) and is not reported. A model of which another part trains in training mode is taken as meant.
References  Ioffe, Szegedy (2015), Batch normalization, ICML; Srivastava et al. (2014), Dropout, JMLR 15.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from tightrope.checks.echoes import AFTERMATH
from tightrope.checks.mode.layers import Statistics, drops, norms, rate, statistics, trained_before
from tightrope.checks.weights import is_drawn
from tightrope.evaluation import Evaluation
from tightrope.finding import Evidence, Finding, Severity
from tightrope.study import Study
from tightrope.subject import Subject
from tightrope.tape.tape import Entry, Kind, Tape

STAGE = "run"
EXPLAINS = ("train-eval-mismatch", *AFTERMATH)
REMEDIES = ("set-mode",)

VARIANCE = 0.5
"""Relative distance of running and batch variance; fine-tuning with frozen statistics stayed below 0.35 in trials."""
SHIFT = 1.0
"""Distance of running and batch mean in standard deviations of the batch: half of a ReLU's units change sides."""
COUNT = 32
"""Numbers behind a batch's statistics: its variance is then known to a quarter, half of what is asked."""


def judge(study: Study) -> Iterator[Finding]:
    """At most one finding of what is trained in evaluation mode, and one of what is evaluated in training mode."""
    yield from _trained(study)
    if study.evaluation is not None and study.evaluation.labels is not None:
        yield from _evaluated(study.evaluation)


def _trained(study: Study) -> Iterator[Finding]:
    if study.tape.loss is None or _another_trains(study.tape):
        return
    asked = [e for e in norms(study.tape, training=False) if e.grad and trained_before(study.tape, e)]
    missed = [found for found in statistics(study.tape, asked) if _misses(found)]
    if missed:
        yield _frozen(study, missed)
        return
    idle = [e for e in drops(study.tape, training=False) if e.grad and trained_before(study.tape, e)]
    calls = [*idle, *norms(study.tape, training=False)]
    if calls and _left_training(study):
        yield _switched(study, calls)
    elif idle and not any(True for _ in drops(study.tape, training=True)) and _in_evaluation(study.tape):
        yield _undropped(study, idle)


def _evaluated(evaluation: Evaluation) -> Iterator[Finding]:
    """Layers that ran as in training while the output of their model was held against labels."""
    tape = evaluation.tape
    if not all(tape.modules[path].training for path in evaluation.roots if path in tape.modules):
        return  # single layers are in training mode on purpose: Monte Carlo dropout
    calls = [*drops(tape, training=True), *norms(tape, training=True)]
    if not calls:
        return
    fact = f"evaluated in training mode after step {evaluation.step}: {_list(calls)} as in training"
    rates = [rate(entry) for entry in drops(tape, training=True)]
    evidence = [Evidence("layers that act as in training", len(calls), 0.0, unit="layers")]
    if rates:
        evidence.append(Evidence("share of elements that are dropped", max(rates), 0.0))
    yield Finding(
        "wrong-mode", Severity.WARNING, calls[0].module, str(evaluation.location), fact, tuple(evidence),
        modules=tuple(dict.fromkeys(entry.module for entry in calls)),
    )  # fmt: skip


def _another_trains(tape: Tape) -> bool:
    """Whether some model with trained parameters runs in training mode beside one that does not."""
    roots = {path for path in tape.modules if "." not in path}
    if len(roots) < 2 or "" in roots:
        return False
    trained = {(v.name or "").split(".")[0] for v in tape.value_of(Kind.PARAMETER) if v.trained}
    return len({tape.modules[path].training for path in roots & trained}) > 1


def _misses(found: Statistics) -> bool:
    far = found.variance >= VARIANCE or found.shift >= SHIFT
    return far and (found.fresh or found.count >= COUNT)


def _frozen(study: Study, missed: list[Statistics]) -> Finding:
    fresh = [s for s in missed if s.fresh]
    worst = max(fresh or missed, key=lambda s: s.variance)
    state = "never updated" if fresh else "of other data"
    variance, shift = (Evidence(f"running {word}", number, 0.0) for word, number in (
        ("variance, relative distance from the batch's", worst.variance),
        ("mean, distance from the batch's in its std", worst.shift),
    ))  # fmt: skip
    fact = (
        f"trained in eval mode: the running statistics of {len(missed)} batch norm{'s' * (len(missed) > 1)} are "
        f"{state}; their variance is {worst.variance:.3g} of the batch's away from it, their mean {worst.shift:.3g} std"
    )
    entries = [s.entry for s in missed]
    return _finding(study, Severity.FAULT if fresh else Severity.WARNING, entries, fact, (variance, shift))


def _left_training(study: Study) -> bool:
    """Whether the model was in training mode in a step before, under the same optimizers."""
    if study.history is None or study.tape.modules.get(_root(study.tape)) is None:
        return False
    root = _root(study.tape)
    if study.tape.modules[root].training or not study.optimizers.items:
        return False
    known = {id(optimizer) for optimizer in study.optimizers.items}
    return any(
        root in earlier.tape.modules and earlier.tape.modules[root].training
        and earlier.step < study.step and known == {id(o) for o in earlier.optimizers.items}
        for earlier in study.history.earlier
    )  # fmt: skip


def _root(tape: Tape) -> str:
    """Path of the first model on a tape."""
    return next((path for path in tape.modules if "." not in path), "")


def _in_evaluation(tape: Tape) -> bool:
    roots = [info for path, info in tape.modules.items() if "." not in path]
    return not any(info.training for info in roots)


def _switched(study: Study, calls: list[Entry]) -> Finding:
    fact = f"the model has left training mode since step 1 and is trained on; {_list(calls)} as in evaluation"
    evidence = (Evidence("layers of which training mode is another function", len(calls), 0.0),)
    return _finding(study, Severity.WARNING, calls, fact, evidence)


def _undropped(study: Study, idle: list[Entry]) -> Finding:
    tape = study.tape
    matrices = [v for v in tape.value_of(Kind.PARAMETER) if len(v.shape) >= 2]
    scratch = study.step == 1 and all(v.trained and is_drawn(v.content) for v in matrices)
    fact = f"trained in eval mode: {len(idle)} dropout layer{'s' * (len(idle) > 1)} of rate {rate(idle[0]):.3g} idle"
    evidence = (Evidence("share of elements that are dropped", 0.0, rate(idle[0])),)
    return _finding(study, Severity.WARNING if scratch else Severity.ADVICE, idle, fact, evidence)


def _list(calls: list[Entry]) -> str:
    kinds = list(dict.fromkeys(entry.op for entry in calls))
    return " and ".join(f"{sum(e.op == op for e in calls)} {op}" for op in kinds) + " run"


def _finding(
    study: Study, severity: Severity, entries: list[Entry], fact: str, evidence: tuple[Evidence, ...]
) -> Finding:
    first = min(entries, key=lambda entry: entry.index)
    return Finding(
        "wrong-mode", severity, first.module, str(study.tape.location(first)), fact, evidence, first.index,
        modules=tuple(dict.fromkeys(entry.module for entry in entries)),
    )  # fmt: skip


def sick() -> Subject:
    """A net with batch norm that is trained in evaluation mode from the start."""
    return _net(training=False)


def healthy() -> Subject:
    """The same net in training mode."""
    return _net(training=True)


def _net(*, training: bool) -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(),
        nn.Linear(64, 4),
    )  # fmt: skip
    return Subject(model.train(training), (torch.randn(128, 16), torch.arange(128) % 4), nn.functional.cross_entropy)
