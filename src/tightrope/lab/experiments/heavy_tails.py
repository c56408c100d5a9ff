"""`heavy-tails`: where slopes have heavy tails, a layer's gain is that of a few units, and its mean explodes.

Law         a layer's gain of the squared gradient is a mean of x_i = f'(z_i)^2 over units. The share of few of them, p
            = E[sum x_i^2 / (sum x_i)^2], is n int s L''(s) L(s)^(n-1) ds with L(s) = E e^(-s x): for bounded slopes it
            falls as E x^2 / (n E[x]^2), for slopes with tails P(f' > t) = t^-a and a < 2 it stays at 1 - a/2 however
            wide the layer. Through depth, products of such slopes have the logarithm L / a on average with variance L /
            a^2, while their mean, (a / (a - 1))^L, grows faster and, for a <= 1, does not exist.
Setting     activations whose slope at a standard normal z is exactly Pareto: f'(z) = P(|Z| > |z|)^(-1/a), beside
            sigmoid, tanh and GELU. The tail index is Hill's from the slopes of units, shares and products are means
            over draws.
Band        none: all laws are exact at every width and depth, the integral is taken to 1e-6.
Reading     the panel of shares: what is bounded falls as 1/n, what has a heavy tail does not.
References  Hill (1975), A simple general approach to inference about the tail of a distribution, Annals of Statistics
            3; Logan, Mallows, Rice, Shepp (1973), Limit distributions of self-normalized sums, Annals of Probability 1,
            for sums that few terms rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial

PRINCIPLES = ("P24",)
WIDTHS = (8, 32, 128, 512, 1024)
DEPTHS = (1, 2, 4, 8, 16, 32)
TAILS = (1.0, 1.5, 3.0)
"""Tail indices a of the slopes; below 2 their square has no mean."""
PART = 500
"""Layers that are drawn at a time."""
BOUNDED: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "GELU": F.gelu}


def run(trial: Trial) -> Result:
    """Tail indices, the share of few units by width, and products by depth."""
    draws = trial.pick(2000, 20000)
    torch.manual_seed(trial.seed)
    claims, shares = list[Claim](), list[Series]()
    for a in TAILS:
        index, error = _hill(_pareto(_normal(100 * draws), a), draws)
        claims.append(Claim.equal(f"tail index of the slopes, a = {a:g}", a, index, error))
    for name, squares in _squares().items():
        layers = draws if name in BOUNDED else 8 * draws  # what few terms rule scatters more
        means, errors = zip(*(_share(squares, width, layers) for width in WIDTHS), strict=True)
        law = [_integral(squares, width) for width in WIDTHS]
        shares += [Series(name, WIDTHS, law, kind="law"), Series(name, WIDTHS, means, errors)]
        claims.append(Claim.curve(f"share of few units, {name}", WIDTHS, law, means, errors, within=1e-3))
    wide = _integral(_squares()["a = 1"], 1024)
    claims.append(Claim.equal("share at 1024 units, a = 1, beside 1 - a/2", 0.5, wide, within=2 / math.sqrt(1024)))
    growth = list[Series]()
    for a in TAILS[1:]:
        middle, scatter = _products(a, draws)
        law = [depth / a for depth in DEPTHS]
        growth += [Series(f"typical, a = {a:g}", DEPTHS, law, kind="law"),
                   Series(f"typical, a = {a:g}", DEPTHS, middle, scatter),
                   Series(f"mean, a = {a:g}", DEPTHS, [d * math.log(a / (a - 1)) for d in DEPTHS],
                          kind="reference")]  # fmt: skip
        claims.append(Claim.curve(f"log of a product of slopes, a = {a:g}", DEPTHS, law, middle, scatter))
    return Result(
        tuple(claims),
        (
            Panel("share of few units in a layer's gain", "units", "E sum x² / (sum x)²", tuple(shares),
                  log_x=True, log_y=True),
            Panel("product of slopes through depth", "layers", "log of the product", tuple(growth), log_x=True),
        ),
        (trial.seed,),
    )  # fmt: skip


def _normal(count: int) -> Tensor:
    return torch.randn(count, dtype=torch.float64)


def _pareto(z: Tensor, a: float) -> Tensor:
    """The slope at z; where z is standard normal P(slope > t) = t^-a."""
    slope: Tensor = torch.special.erfc(z.abs() / math.sqrt(2)) ** (-1 / a)
    return slope


def _squares() -> dict[str, Callable[[Tensor], Tensor]]:
    """The squared slope of each activation as a function of z."""

    def bounded(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def squared(z: Tensor) -> Tensor:
            at = z.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(function(at).sum(), at)
            return slope.square()

        return squared

    heavy = {f"a = {a:g}": lambda z, a=a: _pareto(z, a).square() for a in TAILS}
    return {**heavy, **{name: bounded(function) for name, function in BOUNDED.items()}}


def _hill(slopes: Tensor, top: int) -> tuple[float, float]:
    """One over the mean excess of the logarithm above the `top`-th largest; its error is its value / sqrt(top)."""
    largest = slopes.log().topk(top + 1).values
    index = 1 / float((largest[:-1] - largest[-1]).mean())
    return index, index / math.sqrt(top)


def _share(squares: Callable[[Tensor], Tensor], width: int, draws: int) -> tuple[float, float]:
    parts = []
    for _ in range(draws // PART):
        x = squares(_normal(PART * width)).reshape(PART, width)
        x = x / x.amax(1, keepdim=True)
        parts.append(x.square().sum(1) / x.sum(1).square())
    found = torch.cat(parts)
    return float(found.mean()), float(found.std()) / math.sqrt(len(found))


def _integral(squares: Callable[[Tensor], Tensor], width: int) -> float:
    """n int s L''(s) L(s)^(n-1) ds, over the logarithm of s, with L by quadrature over z's quantiles."""
    # quantiles by the logarithm of the upper tail, so that the heavy end is resolved
    log_tail = torch.linspace(-60, 0, 3001, dtype=torch.float64)[:-1] + 0.01
    tail = log_tail.exp()
    weight = tail / tail.sum()
    z = _upper(tail)
    x, weight = torch.cat([squares(z), squares(-z)]), torch.cat([weight, weight]) / 2
    total = 0.0
    grid = np.linspace(-70, 25, 761)
    for t in grid:
        s = math.exp(t)
        decay = (-s * x).exp() * weight
        plain, second = float(decay.sum()), float((decay * x.square()).sum())
        total += s * s * second * plain ** (width - 1)
    return width * total * float(grid[1] - grid[0])


def _upper(tail: Tensor) -> Tensor:
    """The z >= 0 with P(|Z| > z) = tail, by Newton's method on the logarithm."""
    z = (-2 * tail.log()).clamp(min=0).sqrt()
    for _ in range(60):
        log = torch.special.log_ndtr(-z) + math.log(2)
        slope = -torch.exp(-z.square() / 2 - math.log(math.sqrt(2 * math.pi)) - torch.special.log_ndtr(-z))
        z = (z - (log - tail.log()) / slope).clamp(min=0)
    return z


def _products(a: float, draws: int) -> tuple[list[float], list[float]]:
    logs = _pareto(_normal(draws * DEPTHS[-1]), a).log().reshape(draws, -1).cumsum(1)
    found = logs[:, [depth - 1 for depth in DEPTHS]]
    return found.mean(0).tolist(), (found.std(0) / math.sqrt(draws)).tolist()
