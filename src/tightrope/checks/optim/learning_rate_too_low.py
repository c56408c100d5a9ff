"""`learning-rate-too-low`: updates too small to move the weights within the run, and a loss that stands still.

Law       T steps whose updates have the ratio r to the weights change them by at most T r. Below a hundredth the
          function is that of the initial weights, up to its first-order change. A schedule spends sum_t rate_t in all:
          over the largest rate it is the number of full steps that the run is worth.
Evidence  the largest rms(update) / rms(weight) of a weight matrix in the recorded steps; the learning rate of every
          step; the mean loss of the first and the last quarter of the run with its standard error; whether the weights
          are as an initialiser draws them.
Verdict   `fault` where T r < 0.01 over at least 20 steps and the loss fell by less than 2 % or two standard errors,
          for weights that are drawn afresh; `advice` for trained ones. `fault`, too, where a schedule left less than a
          twentieth of the steps worth of rate and the loss stands still. After two steps already where the ratio is
          below 1e-5 and does not depend on the gradient's size, without a schedule.
Remedy    scale the learning rate so that the ratio begins at 0.02 (`scale-learning-rate`); step the scheduler once
          an epoch.
Limits    warm-up is waited for. A loss that stands still at a normal ratio has other reasons. Tiny updates of a
          converged or a pretrained net are no fault.
References  Smith (2017), Cyclical learning rates for training neural networks, WACV; Goyal et al. (2017), Accurate,
          large minibatch SGD, arXiv:1706.02677.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from tightrope.checks.optim.progress import Progress, follows_gradient, progress, ratios, spent, stands
from tightrope.checks.optim.ratios import is_weight, largest
from tightrope.checks.weights import is_drawn
from tightrope.finding import Evidence, Finding, Severity
from tightrope.measure.updates import Group, Updates
from tightrope.study import Study
from tightrope.subject import Program
from tightrope.tape.source import UNKNOWN

STAGE = "run"
EXPLAINS = ("moving-target", "shuffled-labels")
REMEDIES = ("scale-learning-rate",)

REACH = 0.01
"""Of T times the ratio: weights that changed by a hundredth compute the initial function to first order."""
STEPS = 20
"""Steps before which nothing is said: a loss needs as many to be told from its noise."""
HOPELESS = 1e-5
"""Of the ratio: a hundred thousand steps to replace a weight. Fine-tuning stayed above 1e-4 in trials."""
WORTH = 0.05
"""Share of the run's steps that its schedule is worth at the full rate; cosine and linear decay are worth a half, a
single-cycle schedule a third."""
GONE = 1e-3
"""Of the largest rate: what is left of it changes nothing."""
TYPICAL = 1e-3
"""Smallest ratio of usual training."""


def judge(study: Study, updates: Updates) -> Iterator[Finding]:
    """A finding where the rate keeps the run from going anywhere."""
    found = ratios(updates, study.history, largest)
    fresh = _fresh(updates)
    stepped = [group for group in updates.groups if group.steps]
    if not found or not stepped or fresh is None:
        return
    group = max(stepped, key=lambda g: g.number("lr"))
    severity = Severity.FAULT if fresh else Severity.ADVICE
    history, run = study.history, progress(study.history)
    steps = history.steps if history is not None else 1
    settled = history is not None and (history.ended or steps >= 100) and steps >= STEPS
    still = run is not None and stands(run)
    rates = updates.rates[group.optimizer] if group.optimizer < len(updates.rates) else {}
    if rates and settled and still and run is not None and _decayed(rates, steps):
        yield _gone(group, rates, steps, run)
        return
    crawls = settled and still and max(found) * steps < REACH and not _rising(rates)
    hopeless = fresh and max(found) < HOPELESS and not follows_gradient(updates) and not _scheduled(updates)
    if crawls or (hopeless and not settled):
        yield _finding(group, max(found), run, steps, severity)


def _fresh(updates: Updates) -> bool | None:
    """Whether most weight matrices are as drawn; None without any."""
    drawn = [is_drawn(row.live) for row in updates.rows if is_weight(row) and row.live is not None]
    return sum(drawn) * 2 > len(drawn) if drawn else None


def _decayed(rates: dict[int, float], steps: int) -> bool:
    last = rates[max(rates)]
    return spent(rates, steps) < WORTH * steps and last < GONE * max(rates.values())


def _rising(rates: dict[int, float]) -> bool:
    """Whether the rate is still warming up."""
    ordered = [rates[step] for step in sorted(rates)]
    return len(ordered) > 1 and ordered[-1] >= max(ordered) > ordered[0]


def _scheduled(updates: Updates) -> bool:
    return any("initial_lr" in group.settings for group in updates.groups)


def _finding(group: Group, ratio: float, run: Progress | None, steps: int, severity: Severity) -> Finding:
    fact = (
        f"{group.kind} at a rate of {group.number('lr'):.3g} changes the weights by {ratio:.3g} of their rms in a step "
        f"(usual: {TYPICAL:.3g} to 0.01)"
    )
    evidence = [Evidence("rms of the update over that of the weights, largest", ratio, TYPICAL)]
    if run is not None and run.steps >= STEPS:
        fact += f"; the loss stands at {run.end:.3g} after {steps} steps"
        evidence.append(Evidence("fall of the loss over the run", run.begin - run.end, error=run.error))
    evidence.append(Evidence("learning rate", group.number("lr")))
    place = "" if group.location == UNKNOWN else str(group.location)
    return Finding("learning-rate-too-low", severity, "", place, fact, tuple(evidence))


def _gone(group: Group, rates: dict[int, float], steps: int, run: Progress) -> Finding:
    high, last, worth = max(rates.values()), rates[max(rates)], spent(rates, steps)
    fact = (
        f"the schedule takes the rate from {high:.3g} to {last:.3g} within {steps} steps, which together are worth "
        f"{worth:.3g} at the full rate (a linear decay: {steps / 2:.3g}); the loss stands at {run.end:.3g}"
    )
    evidence = (
        Evidence("steps at the full rate that the schedule is worth", worth, steps / 2),
        Evidence("fall of the loss over the run", run.begin - run.end, error=run.error),
    )
    place = "" if group.location == UNKNOWN else str(group.location)
    return Finding("learning-rate-too-low", Severity.FAULT, "", place, fact, evidence)


def sick() -> Program:
    """Adam at a rate of 1e-7."""
    return Program(lambda: _train(1e-7))


def healthy() -> Program:
    """Adam at a rate of 0.003."""
    return Program(lambda: _train(3e-3))


def _train(rate: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 16)
    y = (x[:, :4] @ torch.randn(4, 4)).argmax(1)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
