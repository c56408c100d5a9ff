"""Whether the comparison of gradient estimators gives the variances of closed forms: python benchmarks/estimators.py

Truth: f = (z - k)^2 of a normal variable, whose estimators have variances in closed form; f = |z|^2 at unit means in d
dimensions. Coverage: how often 95 % intervals of the variance hold the truth. Cost: seconds of an estimator in units
of one pathwise gradient of the same draws, in turn.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table
from torch.distributions import Independent, Normal

import tightrope as tr
from tightrope.instruments.stochastic.problem import pose
from tightrope.instruments.stochastic.ways import WAYS

SCORE, MEAN, OPTIMAL = "score function", "score, mean baseline", "score, optimal baseline"


def laws(mu: float, sigma: float, k: float) -> dict[str, float]:
    """Variance of each estimator of the gradient in mu."""
    v, d = sigma**2, (mu - k) ** 2

    def score(b: float) -> float:
        return 15 * v + 12 * d + (d - b) ** 2 / v + 6 * (d - b) - 4 * d

    return {
        SCORE: score(0.0), MEAN: score(d + v), OPTIMAL: score(d + 3 * v), "pathwise": 4 * v,
        "measure-valued": 4 * d * (4 / math.pi - 1),
    }  # fmt: skip


def gaussian(setting: tuple[float, float, float], draws: int, seed: int = 0) -> tr.stochastic.EstimatorComparison:
    mu, sigma, k = setting
    loc = torch.tensor(mu, requires_grad=True)
    return tr.stochastic.compare_estimators(lambda z: (z - k) ** 2, Normal(loc, sigma), draws=draws, seed=seed)


def closed_forms(draws: int) -> Table:
    table = Table(title=f"Variance of a draw's gradient, {draws:,} draws")
    for column in ("(mu, sigma, k)", "estimator", "closed form", "measured", "standard errors off"):
        table.add_column(column, justify="left" if column == "estimator" else "right")
    for setting in ((1.0, 1.5, 3.0), (2.0, 0.1, 0.0)):
        found = gaussian(setting, draws)
        for name, law in laws(*setting).items():
            variance, error = (float(x["loc"]) for x in (found[name].variance, found[name].variance_error))
            table.add_row(
                str(setting), name, f"{law:.4g}", f"{variance:.4g} ± {error:.2g}", f"{(variance - law) / error:+.2f}"
            )
    return table


def dimensions(draws: int) -> Table:
    table = Table(title="f = |z|^2 at unit means: variance in one coordinate of the mean")
    for column in ("dimensions", "score, closed form", "score, measured", "pathwise (4)", "ratio"):
        table.add_column(column, justify="right")
    for d in (1, 10, 100):
        law = 30 + 22 * (d - 1) + 4 * (d - 1) ** 2
        loc = torch.ones(d, requires_grad=True)
        q = Independent(Normal(loc, torch.ones(d)), 1)
        found = tr.stochastic.compare_estimators(lambda z: z.square().sum(), q, draws=draws)
        score, path = (float(found[name].variance["loc"].mean()) for name in (SCORE, "pathwise"))
        table.add_row(str(d), str(law), f"{score:.5g}", f"{path:.4g}", f"{score / path:,.0f}")
    return table


def coverage(runs: int, draws: int) -> Table:
    setting = (1.0, 1.5, 3.0)
    inside, calls = dict.fromkeys(laws(*setting), 0), dict.fromkeys(laws(*setting), 0)
    for seed in range(runs):
        found = gaussian(setting, draws, seed)
        for name, law in laws(*setting).items():
            trace = found[name].trace
            assert trace is not None
            inside[name] += trace.low <= law <= trace.high
            calls[name] += found[name].biased
    table = Table(title=f"{runs} comparisons of {draws} draws")
    for column in ("estimator", "intervals that hold the variance", "called biased"):
        table.add_column(column, justify="left" if column == "estimator" else "right")
    for name in inside:
        table.add_row(name, f"{inside[name] / runs:.1%}", f"{calls[name]}")
    return table


def cost(rounds: int) -> Table:
    table = Table(title="Time of 256 draws over the pathwise gradient's; medians of ratios taken in turn")
    for column in ("estimator", "1 dimension", "32 dimensions"):
        table.add_column(column, justify="left" if column == "estimator" else "right")
    ratios: dict[str, list[str]] = {way.name: [] for way in WAYS}
    for d in (1, 32):
        q = Independent(Normal(torch.ones(d), torch.ones(d)), 1)
        problem = pose(lambda z: z.square().sum(), q, None, 0.5)
        taken: dict[str, list[float]] = {way.name: [] for way in WAYS if way.unbiased is not False}
        for _ in range(rounds):
            for way in WAYS:
                if way.name in taken:
                    begin = time.perf_counter()
                    way.gradients(problem, 256)
                    taken[way.name].append(time.perf_counter() - begin)
        for name, seconds in taken.items():
            ratio = statistics.median(a / b for a, b in zip(seconds, taken["pathwise"]))
            ratios[name].append(f"{ratio:.2f}")
    for name, found in ratios.items():
        if found:
            table.add_row(name, *found)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=400_000)
    parser.add_argument("--runs", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=120)
    console.print(closed_forms(options.draws), dimensions(options.draws // 10))
    console.print(coverage(options.runs, 4096), cost(options.runs // 4))


if __name__ == "__main__":
    main()
