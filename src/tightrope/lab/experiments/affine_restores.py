"""`affine-restores`: behind a normaliser a channel has mean beta and standard deviation |gamma|, whatever lies below.

Law         z = gamma (x - m) / sqrt(v + eps) + beta with m and v the batch's own: its mean is beta, its standard
            deviation |gamma| sqrt(v / (v + eps)), for every m and v. With the error g = dL/dz that comes in from above,
            dL/dbeta is the sum of g, dL/dgamma the sum of g (z - beta) / gamma, both over samples and sites. What
            arrives below sums to zero, so that a bias there gets no gradient.
Setting     a convolution whose weights and biases are set so that its channels have means from -1000 to 1000, or
            standard deviations from 0.0001 to 1000, then BatchNorm2d with gains and biases of its own, a tanh and a
            quadratic loss. The last claim: the law of the output by `tightrope.predict`, in every such state.
Band        x is rounded to 2^-24 of its mean, which the division by its standard deviation scales up, and the mean of
            2048 such numbers by as much again: 2^-22 |m| / sigma in units of gamma. Sums of gradients are rounded to
            2^-20 of the sum of their magnitudes, times the mean where it enters. The forecast takes the channels'
            variances from the weights; the batch's v has the relative error sqrt(2 / 2048) beside it, of which eps
            lets through at most a half, and the spread of the betas hides more: 1 per cent.
Reading     lines are the law, points measured, dashed is the layer below, which without a normaliser would reach the
            next one. The bend at the left of the second panel is eps, and of the law.
References  Ioffe and Szegedy (2015), Batch normalization: accelerating deep network training by reducing internal
            covariate shift, ICML, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial
from tightrope.step import predict

PRINCIPLES = ("P06",)
GAINS, BIASES = torch.tensor([0.5, 1.0, -2.0]), torch.tensor([-1.0, 0.5, 2.0])
"""Of the channels."""
MEANS = (-1000.0, -300.0, -100.0, -30.0, -10.0, 0.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
SPREADS = tuple(10.0 ** (n / 2) for n in range(-8, 7))
EPS = 1e-5
ROUNDING = 2.0**-22


@dataclass(frozen=True)
class Step:
    """One step of the convolution, its normaliser and the loss; one number a channel.

    Attributes:
        variance: of what the normaliser reads.
        mean, std: of what it makes.
        sums: dL/dbeta and dL/dgamma by the law, shape (2, channels); `gradients`: by torch; `sizes`: the sums of the
            magnitudes of what is added up.
        below: dL/db of the convolution.
        forecast: predicted mean and standard deviation over all channels; `pooled`: those measured.
    """

    variance: Tensor
    mean: Tensor
    std: Tensor
    sums: Tensor
    gradients: Tensor
    sizes: Tensor
    below: Tensor
    forecast: tuple[float, float]
    pooled: tuple[float, float]


def run(trial: Trial) -> Result:
    """Means and standard deviations behind the normaliser, and the identities of its gradients."""
    seeds = trial.seeds(3, 12)
    moved = {(seed, m): _step(m, 1.0, seed) for seed in seeds for m in MEANS}
    scaled = {(seed, s): _step(0.0, s, seed) for seed in seeds for s in SPREADS}
    steps = [*moved.values(), *scaled.values()]
    names = [f"mean {m:g} below" for _, m in moved] + [f"std {s:.3g} below" for _, s in scaled]
    claims = [_means(moved), _spreads(scaled), *_identities(steps, names), *_forecasts(steps, names)]
    return Result(tuple(claims), (*_laws(moved, scaled, seeds[0]), *_scatter(steps)), seeds)


def _step(mean: float, spread: float, seed: int) -> Step:
    torch.manual_seed(seed)
    below, norm = nn.Conv2d(4, len(GAINS), 3), nn.BatchNorm2d(len(GAINS), eps=EPS)
    with torch.no_grad():
        below.weight /= below.weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1) / spread
        below.bias.fill_(mean * spread)  # type: ignore[union-attr]
        norm.weight.copy_(GAINS)
        norm.bias.copy_(BIASES)
    x, target = torch.randn(32, 4, 10, 10), torch.randn(32, len(GAINS), 8, 8)
    forecast = predict(nn.Sequential(below, norm), x)
    law = forecast.laws[next(e.outputs[0] for e in forecast.tape.entries if e.op == "batch_norm")]
    read = below(x)
    made = norm(read)
    made.retain_grad()
    (made.tanh() - target).square().mean().backward()
    error, unit = made.grad.double(), (made.detach().double() - BIASES.view(1, -1, 1, 1)) / GAINS.view(1, -1, 1, 1)
    parts = torch.stack([error, error * unit])
    beta, gamma, bias = (p.grad.double() for p in (norm.bias, norm.weight, below.bias))  # type: ignore[union-attr]
    over = (0, 2, 3)
    values = made.detach().double()
    return Step(
        read.detach().double().var(over, correction=0), values.mean(over), values.std(over, correction=0),
        parts.sum((1, 3, 4)), torch.stack([beta, gamma]), parts.abs().sum((1, 3, 4)),
        bias, (law.mean, law.std),
        (float(values.mean()), float(values.std(correction=0))),
    )  # fmt: skip


def _expected(step: Step) -> Tensor:
    return GAINS.abs() * (step.variance / (step.variance + EPS)).sqrt()


def _means(moved: dict[tuple[int, float], Step]) -> Claim:
    at = [f"{mean:g}" for _, mean in moved for _ in BIASES]
    law = BIASES.tolist() * len(moved)
    found = [float(value) for step in moved.values() for value in step.mean]
    band = float(GAINS.abs().max()) * ROUNDING * MEANS[-1]
    return Claim.curve("mean, by the mean below", at, law, found, [0.0] * len(at), absolute=band)


def _spreads(scaled: dict[tuple[int, float], Step]) -> Claim:
    at = [f"{spread:.3g}" for _, spread in scaled for _ in GAINS]
    law = [float(value) for step in scaled.values() for value in _expected(step)]
    found = [float(value) for step in scaled.values() for value in step.std]
    return Claim.curve("std, by the std below", at, law, found, [0.0] * len(at), within=4 * ROUNDING)


def _identities(steps: list[Step], names: list[str]) -> list[Claim]:
    """Gradients of bias and gain, and of the bias below, in units of the sum of the magnitudes of their parts."""
    at = [name for name in names for _ in GAINS]
    nothing, exact = [0.0] * len(at), 2.0**-20
    drift = 2 * MEANS[-1] * exact  # of (x - m) / sigma, by the rounding of x
    claims = []
    for row, name, band in ((0, "beta", exact), (1, "gamma", drift)):
        law = torch.cat([step.sums[row] / step.sizes[row] for step in steps]).tolist()
        found = torch.cat([step.gradients[row] / step.sizes[row] for step in steps]).tolist()
        claims.append(Claim.curve(f"dL/d{name} over the sum of magnitudes", at, law, found, nothing, absolute=band))
    below = [step.below * (step.variance + EPS).sqrt() / GAINS.abs() / step.sizes[0] for step in steps]
    text = "gradient of the bias below over the sum of magnitudes"
    claims.append(Claim.curve(text, at, nothing, torch.cat(below).tolist(), nothing, absolute=drift))
    return claims


def _forecasts(steps: list[Step], names: list[str]) -> list[Claim]:
    claims = []
    for n, what in enumerate(("mean", "std")):
        law, found = [step.forecast[n] for step in steps], [step.pooled[n] for step in steps]
        claims.append(
            Claim.curve(f"{what} of the output by the forecast", names, law, found, [0.0] * len(names), within=0.01)
        )
    return claims


def _laws(moved: dict[tuple[int, float], Step], scaled: dict[tuple[int, float], Step], seed: int) -> list[Panel]:
    centre, width = list[Series](), list[Series]()
    for k, (gain, bias) in enumerate(zip(GAINS.tolist(), BIASES.tolist(), strict=True)):
        name = f"gamma {gain:g}, beta {bias:g}"
        centre.append(Series(name, MEANS, [bias] * len(MEANS), kind="law"))
        centre.append(Series(name, MEANS, [float(moved[seed, m].mean[k]) for m in MEANS]))
        width.append(Series(name, SPREADS, [float(_expected(scaled[seed, s])[k]) for s in SPREADS], kind="law"))
        width.append(Series(name, SPREADS, [float(scaled[seed, s].std[k]) for s in SPREADS]))
    width.append(Series("the layer below", SPREADS[:10], SPREADS[:10], kind="reference"))
    return [
        Panel("mean", "mean of the layer below, in its standard deviations", "mean of the output", tuple(centre)),
        Panel("spread", "std of the layer below", "std of the output", tuple(width), log_x=True, log_y=True),
    ]


def _scatter(steps: list[Step]) -> list[Panel]:
    panels = []
    laws = {"beta": "sum of the error", "gamma": "sum of the error times (z - beta) / gamma"}
    some = steps[:: max(1, len(steps) // 10)]
    for row, (name, law) in enumerate(laws.items()):
        x, y = torch.cat([step.sums[row] for step in some]), torch.cat([step.gradients[row] for step in some])
        ends = [float(x.min()), float(x.max())]
        series = (Series("", ends, ends, kind="law"), Series("", x.tolist(), y.tolist()))
        panels.append(Panel(f"gradient of {name}", law, f"dL/d{name}", series))
    return panels
