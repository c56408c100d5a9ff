"""`naive-softmax`: exp over a sum of exp, without the largest score taken off first.

Law       softmax(z + c) = softmax(z). Written as exp(z) / sum exp(z) it overflows once a score passes ln max(t), 88.7
          in single precision and 11.1 in float16, and is infinity over infinity, NaN, from there on; with c = -max z
          no exponent is above 0. The same holds for log sum exp z, for exp(z) / (1 + exp(z)), whose slope is 0 times
          infinity, and for ln(1 + exp(z)).
Evidence  the calls of exp, sum and division on the tape; the largest exponent expected by the predicted law over all
          elements, and the measured one, beside ln max(t) of the dtype that exp worked in.
Verdict   `fault` when the largest exponent passes the limit; for a softmax or a log-sum-exp of scores without a bound
          `warning`; for a sigmoid or a softplus `warning` above a tenth of the limit, else `advice`. Silent where the
          exponent has a bound (scores less their maximum, negative distances, cosines over a temperature).
Remedy    the function of the library (`stable-softmax`), which takes the maximum off.
Limits    bounds are followed through elementwise calls and products of normalised rows alone.
References  Goldberg (1991), What every computer scientist should know about floating-point arithmetic, ACM Comput.
          Surv. 23; Blanchard, Higham, Higham (2021), Accurately computing the log-sum-exp and softmax functions, IMA J.
          Numer. Anal. 41.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tightrope.checks.bounds import Bounds
from tightrope.checks.echoes import AFTERMATH
from tightrope.checks.numerics.exponentials import Exponential, exponentials
from tightrope.checks.trace import learned, producers
from tightrope.finding import Evidence, Finding, Severity
from tightrope.rules.extremes import highest
from tightrope.study import Study
from tightrope.subject import Subject

STAGE = "batch"
EXPLAINS = ("naive-log", *AFTERMATH)
REMEDIES = ("stable-softmax",)

GROWTH = 10.0  # scores of a classifier start near std 0.5 and end near 5


def judge(study: Study) -> Iterator[Finding]:
    """A finding for each softmax or sigmoid that is written out over exponents without a bound."""
    tape = study.tape
    made = producers(tape)
    found = list(exponentials(tape, made))
    if not found:
        return
    depends = learned(tape) - tape.parametric
    bounds = Bounds(tape, made, study.measurement.units, depends)
    done: set[int] = set()
    for one in found:
        number = one.exp.inputs[0]
        limit = math.log(torch.finfo(tape.values[one.exp.outputs[0]].dtype).max)
        if one.exp.index in done or number not in depends or bounds.of(number)[1] <= limit:
            continue
        done.add(one.exp.index)
        top = largest_exponent(study, number)
        severity = Severity.WARNING if one.summed or top * GROWTH >= limit else Severity.ADVICE
        yield _finding(study, one, top, limit, Severity.FAULT if top >= limit else severity)


def largest_exponent(study: Study, number: int) -> float:
    """The larger one of the measured and the expected largest value."""
    units, state = study.measurement.units.get(number), study.forecast.states.get(number)
    expected = highest(state, math.prod(study.tape.values[number].shape)) if state is not None else -math.inf
    return max(units.high if units is not None else -math.inf, expected if math.isfinite(expected) else -math.inf)


def _finding(study: Study, one: Exponential, top: float, limit: float, severity: Severity) -> Finding:
    kind = str(study.tape.values[one.exp.outputs[0]].dtype).removeprefix("torch.")
    evidence = (
        Evidence("largest exponent expected", top, limit),
        Evidence("growth of the scores that overflows", limit / top if top > 0 else math.inf),
    )
    return Finding(
        "naive-softmax", severity, one.entry.module, str(one.exp.location),
        f"{one.name} written out: exp reads up to {top:.3g}, {kind} overflows beyond {limit:.3g}; level: at most 0, "
        "with the maximum taken off",
        evidence, one.exp.index, modules=(one.entry.module,),
    )  # fmt: skip


class _Written(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        weights = torch.exp(x)
        return weights / weights.sum(1, keepdim=True)


def sick() -> Subject:
    """A softmax that is written out."""
    return _net(_Written())


def healthy() -> Subject:
    """The library's softmax."""
    return _net(nn.Softmax(1))


def _net(last: nn.Module) -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4), last)
    return Subject(model, (torch.randn(32, 8), torch.arange(32) % 4), _likelihood)


def _likelihood(p: Tensor, y: Tensor) -> Tensor:
    return -(p[torch.arange(len(y)), y] + 1e-9).log().mean()


__all__ = ["largest_exponent"]
