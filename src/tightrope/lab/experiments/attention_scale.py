"""`attention-scale`: the score q.k has variance d; without 1 / sqrt(d) the softmax saturates and its gradient dies.

Law         For independent standard normal q and k of d numbers Var(q.k) = d and Var(q.k / sqrt d) = 1. With scores
            of variance 1 over S keys the entropy is log S - 1/2 + (e + 1) / (2 S), whatever d is. Without the scale a
            row is nearly one-hot and depends on the gap between its two largest scores. With r the density of that
            gap at 0 in units of the scores' deviation, r = S (S - 1) times the integral of phi^2 Phi^(S - 2), the
            mean entropy falls as (pi^2 / 6) r / sqrt d, and so does the mean of the squared gradient that the softmax
            passes, E sum_j (p_j (g_j - sum_i p_i g_i))^2 for unit normal g, as (1/3) r / sqrt d: rare rows with a tie
            carry it. In the typical row, whose gap is the median G, it is 4 s(x)^2 s(-x)^2 with x = G sqrt d and s
            the sigmoid: it dies exponentially.
Setting     S = 256 keys, 256 queries that share them, q and k drawn anew for every seed, d from 8 to 4096. The
            forecast is that of `tightrope predict` for torch's own fused attention.
Band        entropy at variance 1: the next term of the series, of the order of e^4 / S^2 = 0.001. One-hot limits:
            three keys nearly tie with a probability that is smaller by the factor r / sqrt d, which is their band; in
            the typical row a third key then at most triples the squared gradient, a band of log 3 r / sqrt d in its
            logarithm. The forecast takes the law of its inputs from one batch: 3 %. The gradient at two large d: the
            query's energy varies by 2 / d, 1 %.
Reading     with the scale all curves are flat. Without it a row of 256 keys attends to little more than one at d =
            128, and the gradient of the typical row is a hundredth of what it was at d = 512 and nothing at d = 4096:
            nothing tells the queries and keys where else to look.
References  Vaswani et al. (2017), Attention is all you need, NeurIPS; Derrida (1981), Random-energy model, Physical
            Review B 24, for the softmax of many normal scores; Zhai et al. (2023), Stabilizing transformer training
            by preventing attention entropy collapse, ICML.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial
from tightrope.step import predict

PRINCIPLES = ("P03",)
KEYS, QUERIES = 256, 256
WIDTHS = (8, 32, 128, 512, 4096)
FORECAST = (8, 32, 128)
"""Widths at which the forecast is asked for the entropy without the scale."""
NAMES = ("with 1 / sqrt d", "without")


def run(trial: Trial) -> Result:
    """Variance, entropy and gradient over d, with the scale and without."""
    seeds = trial.seeds(45, 400)
    drawn = {d: torch.stack([_drawn(d, seed) for seed in seeds]) for d in WIDTHS}
    means = torch.stack([values.mean(0) for values in drawn.values()])  # (width, scaled or not, quantity)
    errors = torch.stack([values.std(0) / math.sqrt(len(seeds)) for values in drawn.values()])
    tie = _tie(KEYS)
    root = WIDTHS[-1] ** -0.5
    flat = math.log(KEYS) - 0.5 + (math.e + 1) / (2 * KEYS)
    forecast = [_forecast(d, trial.seed) for d in FORECAST]
    at = [f"d = {d}" for d in WIDTHS]
    variances = [[1.0] * len(WIDTHS), [float(d) for d in WIDTHS]]
    claims = [
        Claim.curve(f"variance of the scores, {name}", at, law, means[:, i, 0].tolist(), errors[:, i, 0].tolist())
        for i, (name, law) in enumerate(zip(NAMES, variances, strict=True))
    ]
    claims += [
        Claim.curve("entropy, with 1 / sqrt d", at, [flat] * len(WIDTHS), means[:, 0, 1].tolist(),
                    errors[:, 0, 1].tolist(), absolute=0.001),
        Claim.curve("entropy, without, by the forecast", at[:3], forecast, means[:3, 1, 1].tolist(),
                    errors[:3, 1, 1].tolist(), within=0.03),
        Claim.equal("entropy, without, d = 4096", math.pi**2 / 6 * tie * root, float(means[-1, 1, 1]),
                    float(errors[-1, 1, 1]), within=tie * root),
        Claim.equal("squared gradient, without, d = 4096", tie * root / 3, float(means[-1, 1, 2]),
                    float(errors[-1, 1, 2]), within=tie * root),
        Claim.equal("log of the typical row's squared gradient, without, d = 4096", _typical(WIDTHS[-1]),
                    float(means[-1, 1, 3]), float(errors[-1, 1, 3]), absolute=math.log(3) * tie * root),
        _ratio("squared gradient, with 1 / sqrt d, d = 4096 over d = 512", drawn[4096][:, 0, 2], drawn[512][:, 0, 2]),
    ]  # fmt: skip
    return Result(tuple(claims), _panels(means, errors, variances, flat, forecast, tie), seeds)


def _drawn(d: int, seed: int) -> Tensor:
    """Variance of the scores, entropy, squared gradient and its typical logarithm; scaled and not, shape (2, 4)."""
    torch.manual_seed(1000 * seed + d)
    scores = torch.randn(QUERIES, d) @ torch.randn(d, KEYS)
    return torch.stack([_moments(scores / math.sqrt(d)), _moments(scores)])


def _moments(scores: Tensor) -> Tensor:
    log = scores.double().log_softmax(-1)
    p = log.exp()
    gradient = _passed(p)
    entropy = -(p * log).sum(-1).mean()
    return torch.stack([scores.double().square().mean(), entropy, gradient.mean(), gradient.median().log()])


def _passed(p: Tensor) -> Tensor:
    """E |p (g - p.g)|^2 = sum_j p_j^2 ((1 - p_j)^2 + sum_(i != j) p_i^2); 1 - p of the largest is the others' sum."""
    top, where = p.max(-1, keepdim=True)
    rest = p.scatter(-1, where, 0.0)
    squares = rest.square()
    total = squares.sum(-1, keepdim=True)
    first = top.square() * (rest.sum(-1, keepdim=True).square() + total)
    others = squares * ((1 - rest).square() + top.square() + total - squares)
    return (first + others.sum(-1, keepdim=True))[:, 0]


def _gap(keys: int) -> float:
    """Median of that gap: P(gap > g) = keys * integral of phi(x) Phi(x - g)^(keys - 1)."""
    x = torch.linspace(-9.0, 9.0, 20001, dtype=torch.float64)
    low, high = 0.0, 9.0
    for _ in range(60):
        middle = (low + high) / 2
        log = -x.square() / 2 - math.log(2 * math.pi) / 2 + (keys - 1) * torch.special.log_ndtr(x - middle)
        beyond = keys * float(torch.trapezoid(log.exp(), x))
        low, high = (middle, high) if beyond > 0.5 else (low, middle)
    return low


def _typical(d: int) -> float:
    """Logarithm of the squared gradient of a row with two keys at the median gap."""
    x = _gap(KEYS) * math.sqrt(d)
    return math.log(4) - 2 * x - 4 * math.log1p(math.exp(-x))


def _tie(keys: int) -> float:
    """Density at 0 of the gap between the two largest of so many standard normal variables."""
    x = torch.linspace(-9.0, 9.0, 20001, dtype=torch.float64)
    log = -x.square() - math.log(2 * math.pi) + (keys - 2) * torch.special.log_ndtr(x)
    return keys * (keys - 1) * float(torch.trapezoid(log.exp(), x))


class _Attention(nn.Module):
    """Scores without a scale, and something to train."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 4)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        made: Tensor = self.out(F.scaled_dot_product_attention(q, k, v, scale=1.0))
        return made


def _forecast(d: int, seed: int) -> float:
    torch.manual_seed(seed)
    inputs = (torch.randn(8, KEYS, d), torch.randn(8, KEYS, d), torch.randn(8, KEYS, 4))
    return float(predict(_Attention(), inputs).attention[0].entropy)


def _ratio(text: str, top: Tensor, bottom: Tensor) -> Claim:
    relative = [float(x.std() / x.mean()) / math.sqrt(len(x)) for x in (top, bottom)]
    value = float(top.mean() / bottom.mean())
    return Claim.equal(text, 1.0, value, value * math.hypot(*relative), within=0.01)


def _panels(
    means: Tensor, errors: Tensor, variances: list[list[float]], flat: float, forecast: list[float], tie: float
) -> tuple[Panel, ...]:
    laws: list[list[tuple[tuple[int, ...], list[float]]]] = [
        [(WIDTHS, variances[0]), (WIDTHS, variances[1])],
        [(WIDTHS, [flat] * len(WIDTHS)), (FORECAST, forecast)],
        [((), []), (WIDTHS[2:], [_typical(d) / math.log(10) for d in WIDTHS[2:]])],
    ]
    limit = Series("one-hot limit", WIDTHS[2:], [math.pi**2 / 6 * tie / math.sqrt(d) for d in WIDTHS[2:]],
                   kind="reference")  # fmt: skip
    titles = (("scores", "variance of q.k"), ("softmax", "entropy of a row, nats"),
              ("gradient of the typical row", "log10 of the squared gradient through the softmax"))  # fmt: skip
    panels = []
    for i, (title, label) in enumerate(titles):
        series = list[Series]()
        column, unit = (i, 1.0) if i < 2 else (3, math.log(10))
        for j, name in enumerate(NAMES):
            x, law = laws[i][j]
            series += [Series(name, x, law, kind="law")] if x else []
            y, bars = means[:, j, column] / unit, errors[:, j, column] / unit
            series.append(Series(name, WIDTHS, y.tolist(), bars.tolist()))
        series += [limit] if i == 1 else []
        panels.append(Panel(title, "d", label, tuple(series), log_x=True, log_y=i < 2))
    return tuple(panels)
