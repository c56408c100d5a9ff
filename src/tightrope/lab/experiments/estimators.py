"""`estimators`: score-function and pathwise gradients are both unbiased, and their variances have closed forms.

Law         For z normal with mean mu and deviation s, f = (z - k)^2 and D = (mu - k)^2, the gradient of E f in mu is
            2 (mu - k). The score function with a baseline b estimates it with the variance 15 s^2 + 12 D + (D - b)^2
            / s^2 + 6 (D - b) - 4 D, least at b = D + 3 s^2; the pathwise gradient with 4 s^2. For f = |z|^2 at unit
            means and deviations in n dimensions the score function's variance in a coordinate is 30 + 22 (n - 1) + 4
            (n - 1)^2, the pathwise one 4. For a binary z with probability p the straight-through gradient in p is 2
            (p - k) on average, the true one is 1 - 2 k.
Setting     `tr.stochastic.compare_estimators` on these objectives: mu = 1, k = 3, deviations from 0.1 to 4; 1 to 64
            dimensions; binary draws with p from 0.1 to 0.9 and k = 0.3. Errors are the instrument's own, by the
            jackknife over blocks of draws. The draws of different settings are independent.
Band        the optimal baseline is estimated from half of a block of B draws, which adds a share of the order of 10 /
            B, 0.2 % at most. The other laws are exact.
Reading     a small deviation is where the two part: the pathwise variance falls with it, the score function's grows
            as 1 / s^2, and a baseline takes off that growth alone. The third panel shows what a biased gradient
            costs: at a small p it points the wrong way.
References  Williams (1992), Simple statistical gradient-following algorithms for connectionist reinforcement
            learning, Machine Learning 8; Greensmith, Bartlett, Baxter (2004), Variance reduction techniques for
            gradient estimates in reinforcement learning, JMLR 5; Mohamed, Rosca, Figurnov, Mnih (2020), Monte Carlo
            gradient estimation in machine learning, JMLR 21.
"""

from __future__ import annotations

import torch
from torch.distributions import Bernoulli, Independent, Normal

from tightrope.instruments.stochastic import EstimatorComparison, compare_estimators
from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial

PRINCIPLES = ("P19",)
MU, K = 1.0, 3.0
DEVIATIONS = (0.1, 0.2, 0.4, 0.75, 1.5, 2.5, 4.0)
DIMENSIONS = (1, 2, 4, 8, 16, 32, 64)
PROBABILITIES = (0.1, 0.2, 0.45, 0.6, 0.75, 0.9)
TARGET = 0.3
"""k of the binary objective: the true gradient is 0.4 at every p."""
SCORE, OPTIMAL, PATH, THROUGH = "score function", "score, optimal baseline", "pathwise", "straight-through"
USED = (SCORE, OPTIMAL, PATH, THROUGH)
NEAR = 0.002
"""What the baseline's own noise may add to the variance, as a share."""


def run(trial: Trial) -> Result:
    """Variances over the deviation, over the dimension, and the means of binary gradients."""
    claims, first = _normal(trial)
    more, second = _dimensions(trial)
    last, third = _binary(trial)
    return Result((*claims, *more, *last), (first, second, third), (trial.seed,))


def _normal(trial: Trial) -> tuple[list[Claim], Panel]:
    found = []
    for i, s in enumerate(DEVIATIONS):
        q = Normal(torch.tensor(MU, requires_grad=True), torch.tensor(s))
        found.append(_compared(lambda z: (z - K) ** 2, q, trial, i, 600_000))
    laws = {SCORE: [_score(s, 0.0) for s in DEVIATIONS], OPTIMAL: [_score(s, 4 + 3 * s * s) for s in DEVIATIONS],
            PATH: [4 * s * s for s in DEVIATIONS]}  # fmt: skip
    claims, series = [], list[Series]()
    at = [f"deviation {s}" for s in DEVIATIONS]
    for name, law in laws.items():
        values, errors = _variances(found, name)
        near = NEAR if name == OPTIMAL else 0.0
        claims.append(Claim.curve(f"variance of a draw's gradient, {name}", at, law, values, errors, within=near))
        series += [Series(name, DEVIATIONS, law, kind="law"), Series(name, DEVIATIONS, values, errors)]
    for name in (SCORE, PATH):
        means = [float(one[name].mean["loc"]) for one in found]
        spread = [float(one[name].error["loc"]) for one in found]
        claims.append(Claim.curve(f"mean gradient, {name}", at, [2 * (MU - K)] * len(at), means, spread))
    panel = Panel("a normal variable", "standard deviation of z", "variance of a draw's gradient", tuple(series),
                  log_x=True, log_y=True)  # fmt: skip
    return claims, panel


def _score(s: float, b: float) -> float:
    d = (MU - K) ** 2
    return 15 * s**2 + 12 * d + (d - b) ** 2 / s**2 + 6 * (d - b) - 4 * d


def _dimensions(trial: Trial) -> tuple[list[Claim], Panel]:
    found = []
    for i, n in enumerate(DIMENSIONS):
        q = Independent(Normal(torch.ones(n, requires_grad=True), torch.ones(n)), 1)
        found.append(_compared(lambda z: z.square().sum(), q, trial, 100 + i, max(160_000 // n, 20_000)))
    laws = {SCORE: [30.0 + 22 * (n - 1) + 4 * (n - 1) ** 2 for n in DIMENSIONS], PATH: [4.0] * len(DIMENSIONS)}
    claims, series = [], list[Series]()
    for name, law in laws.items():
        values, errors = _variances(found, name)
        at = [f"{n} dimensions" for n in DIMENSIONS]
        if name == SCORE:
            claims.append(Claim.curve(f"variance in a coordinate, {name}", at, law, values, errors))
        series += [Series(name, DIMENSIONS, law, kind="law"), Series(name, DIMENSIONS, values, errors)]
    panel = Panel("more dimensions", "dimensions", "variance in a coordinate", tuple(series), log_x=True, log_y=True)
    return claims, panel


def _binary(trial: Trial) -> tuple[list[Claim], Panel]:
    found = []
    for i, p in enumerate(PROBABILITIES):
        q = Bernoulli(probs=torch.tensor(p, requires_grad=True))
        found.append(_compared(lambda z: (z - TARGET) ** 2, q, trial, 200 + i, 50_000))
    laws = {SCORE: [1 - 2 * TARGET] * len(found), THROUGH: [2 * (p - TARGET) for p in PROBABILITIES]}
    claims, series = [], list[Series]()
    for name, law in laws.items():
        means = [float(one[name].mean["probs"]) for one in found]
        errors = [float(one[name].error["probs"]) for one in found]
        shown = "true and score function" if name == SCORE else name
        series += [Series(shown, PROBABILITIES, law, kind="law"), Series(shown, PROBABILITIES, means, errors)]
        claims.append(Claim.curve(f"mean gradient of a binary draw, {name}", [f"p = {p}" for p in PROBABILITIES], law,
                                  means, errors))  # fmt: skip
    panel = Panel("a binary variable", "probability p", "mean gradient in p", tuple(series))
    return claims, panel


def _compared(f: object, q: object, trial: Trial, salt: int, draws: int) -> EstimatorComparison:
    count = trial.pick(draws, 4 * draws)
    return compare_estimators(f, q, only=USED, draws=count, seed=1000 * trial.seed + salt)  # type: ignore[arg-type]


def _variances(found: list[EstimatorComparison], name: str) -> tuple[list[float], list[float]]:
    """Mean over coordinates, and its error with their errors taken as one."""
    values = [float(one[name].variance["loc"].mean()) for one in found]
    return values, [float(one[name].variance_error["loc"].mean()) for one in found]
