"""`universal`: one layer approximates every continuous function, at a rate that the function's own curvature sets.

Law         n ReLU whose bends are at the knots make the line through the target's values there. Between knots h apart
            it is off by at most max |f''| h² / 8, and by exactly that to first order: 1 / n² for a function with two
            derivatives. Knots that are dense where the curvature is large, h ~ |f''|^-1/2, make it
            (integral of |f''|^1/2)² / (8 n²). The root of x has no derivative at 0: its error is h^1/2 / 4, exactly.
            Any continuous f is off by no more than its modulus of continuity at h.
Setting     nets of 8 to 512 units, weights set by hand, as torch modules: on the sine, on exp(-6 x), on the root, and
            on a sum of five cosines, each six times as fast as the last; errors are the largest on 129 points between
            two knots. Then random ReLU layers on two inputs, outer weights by least squares.
Band        of second order in the change of the curvature within an interval: (2 pi / 64)² / 2 = 0.5 % of the sine at
            64 units. The exponential's curvature is taken in the middle of the first interval, which leaves
            (6 / 64)² / 8 = 0.1 %; chosen knots are 0.1 apart at the end, (6 · 0.1)² / 12 = 3 %. The root's is exact.
Reading     all curves fall, so one layer is enough for each of these targets; at what cost is another matter. The root
            pays for one bad point with a rate of n^-1/2.
References  Cybenko (1989), Approximation by superpositions of a sigmoidal function, Mathematics of Control, Signals and
            Systems 2; Hornik (1991), Approximation capabilities of multilayer feedforward networks, Neural Networks 4;
            de Boor (1978), A practical guide to splines, Springer.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial

PRINCIPLES = ("P28",)
UNITS = (8, 16, 32, 64, 128, 256, 512)
LATE = 3
"""Of the widths, those from 64 units on are held against the law."""
FAST = 6.0
"""Decay rate of the exponential."""
Function = Callable[[Tensor], Tensor]


def run(trial: Trial) -> Result:
    """Largest errors of nets with knots at equal and at chosen distances, and of random layers."""
    at = [f"{n} units" for n in UNITS[LATE:]]
    none = [0.0] * len(at)
    claims, lines = [], list[Series]()
    cases: tuple[tuple[str, Function, Callable[[int], Tensor], Callable[[int], float], float], ...] = (
        ("sine", _sine, _even, lambda n: (2 * math.pi) ** 2 / (8 * n**2), 0.005),
        ("exp(-6 x), equal knots", _steep, _even, lambda n: FAST**2 / (8 * n**2) * math.exp(-FAST / (2 * n)), 0.002),
        ("exp(-6 x), chosen knots", _steep, _chosen, lambda n: _integral() ** 2 / (8 * n**2), 0.03),
        ("root of x", torch.sqrt, _even, lambda n: 1 / (4 * math.sqrt(n)), 1e-6),
    )
    for name, function, knots, law, band in cases:
        found = [_error(function, knots(n)) for n in UNITS]
        told = [law(n) for n in UNITS]
        claims.append(Claim.curve(f"largest error, {name}", at, told[LATE:], found[LATE:], none, within=band))
        lines += [Series(name, UNITS, told, kind="law"), Series(name, UNITS, found)]
    rough = [_error(_rough, _even(n)) for n in UNITS]
    bound = [_modulus(1 / n) for n in UNITS]
    worst = max(range(len(UNITS)), key=lambda i: rough[i] / bound[i])
    claims.append(Claim.below(f"largest error on five cosines, {UNITS[worst]} units", bound[worst], rough[worst]))
    sizes = (16, 64, 256)
    errors = {n: torch.tensor([_random(n, seed) for seed in trial.seeds(5, 20)]) for n in sizes}
    gains = (errors[sizes[0]] / errors[sizes[-1]]).log10()
    text = "log10 of the error of 16 random units over that of 256, two inputs"
    claims.append(Claim.above(text, 1.0, float(gains.mean()), float(gains.std() / math.sqrt(len(gains)))))
    means = [float(errors[n].mean()) for n in sizes]
    bars = [float(errors[n].std() / math.sqrt(len(errors[n]))) for n in sizes]
    panels = (
        Panel("weights set by hand", "units", "largest error", tuple(lines), log_x=True, log_y=True),
        Panel("a rough target, and random layers", "units", "largest error, rms error", (
            Series("five cosines: its modulus of continuity", UNITS, bound, kind="law"),
            Series("five cosines: its modulus of continuity", UNITS, rough),
            Series("random units, two inputs", sizes, means, bars),
        ), log_x=True, log_y=True),
    )  # fmt: skip
    return Result(tuple(claims), panels, trial.seeds(5, 20))


def _sine(x: Tensor) -> Tensor:
    return torch.sin(2 * math.pi * x)


def _steep(x: Tensor) -> Tensor:
    return torch.exp(-FAST * x)


def _rough(x: Tensor) -> Tensor:
    return torch.stack([0.6**k * torch.cos(math.pi * 6**k * x) for k in range(5)]).sum(0)


def _modulus(h: float) -> float:
    """Largest difference of two values of the cosines at a distance of h: a bound, term by term."""
    return math.fsum(0.6**k * min(2.0, math.pi * 6**k * h) for k in range(5))


def _even(units: int) -> Tensor:
    return torch.linspace(0, 1, units + 1, dtype=torch.float64)


def _integral() -> float:
    """Of the root of the exponential's second derivative."""
    return 2 * (1 - math.exp(-FAST / 2))


def _chosen(units: int) -> Tensor:
    """Knots with an equal share of that integral between them."""
    shares = torch.linspace(0, 1, units + 1, dtype=torch.float64)
    return -2 / FAST * torch.log(1 - shares * (1 - math.exp(-FAST / 2)))


def _net(function: Function, knots: Tensor) -> nn.Sequential:
    """The net whose outputs at the knots are the function's: each unit takes up the change of slope at its knot."""
    values = function(knots)
    slopes = values.diff() / knots.diff()
    enter, leave = (nn.Linear(a, b, dtype=torch.float64) for a, b in ((1, len(slopes)), (len(slopes), 1)))
    with torch.no_grad():
        enter.weight.fill_(1.0)
        enter.bias.copy_(-knots[:-1])
        leave.weight.copy_(torch.cat([slopes[:1], slopes.diff()])[None])
        leave.bias.fill_(float(values[0]))
    return nn.Sequential(enter, nn.ReLU(), leave)


@torch.no_grad()
def _error(function: Function, knots: Tensor) -> float:
    """Largest distance on a grid of 129 points in every interval."""
    model, worst = _net(function, knots), 0.0
    for left, width in zip(knots[:-1].split(64), knots.diff().split(64), strict=True):
        x = (left[:, None] + width[:, None] * torch.arange(129, dtype=torch.float64) / 128).reshape(-1)
        worst = max(worst, float((model(x[:, None])[:, 0] - function(x)).abs().max()))
    return worst


def _random(units: int, seed: int) -> float:
    """rms error on fresh points of random ReLU features, outer weights by least squares, of a wave on a square."""
    torch.manual_seed(seed)
    x = 2 * torch.rand(3000, 2, dtype=torch.float64) - 1
    y = torch.sin(3 * x[:, 0] + x[:, 1]) * torch.cos(2 * x[:, 1])
    weight = torch.nn.functional.normalize(torch.randn(2, units, dtype=torch.float64), dim=0)
    bias = 2.8 * torch.rand(units, dtype=torch.float64) - 1.4
    features = torch.cat([(x @ weight + bias).relu(), torch.ones(len(x), 1, dtype=torch.float64), x], 1)
    fit, fresh = features[:2000], features[2000:]
    outer = torch.linalg.lstsq(fit, y[:2000, None], driver="gelsd").solution
    return float(((fresh @ outer)[:, 0] - y[2000:]).square().mean().sqrt())
