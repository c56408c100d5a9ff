"""`time-drift`: statistics that are pooled over time fit no step of a sequence whose law drifts.

Law         a state h_t = phi h_{t-1} + a + e_t that starts at 0 has the variance v_t = 1 + phi^2 + ... + phi^(2t-2) and
            the mean m_t = a (1 + phi + ... + phi^(t-1)). Batch norm over samples and steps divides by the pooled
            s^2 = mean(v) + Var(m), so that step t comes out with the mean (m_t - mean(m)) / s and the standard
            deviation sqrt(v_t) / s; statistics of each step make them 0 and 1. Steps beyond training share the
            statistics of the last one and come out with sqrt(v_t / v_T).
Setting     `nn.BatchNorm1d` and `TimeStepBatchNorm` in evaluation mode after 100 batches of 64 such sequences, on new
            ones. Then a recurrent net that reads handwritten digits pixel by pixel, 64 steps, its states normalised by
            statistics of one half of the digits and measured on the other.
Band        running statistics are estimates themselves, of 6,400 sequences and more: 0.03 of a standard deviation.
            Digits: 0.1 for two halves of 900.
Reading     a random walk normalised by pooled statistics still grows like sqrt(t); with statistics of each step the
            line is flat at 1.
References  Cooijmans, Ballas, Laurent, Gulcehre, Courville (2017), Recurrent batch normalization, ICLR; Laurent et al.
            (2016), Batch normalized recurrent neural networks, ICASSP.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial
from tightrope.nn import TimeStepBatchNorm

PRINCIPLES = ("P10",)
CHANNELS, STEPS, LATER = 16, 20, 32
PROCESSES = {"random walk": (1.0, 0.0), "with a drift of the mean": (0.9, 0.3)}
"""phi and a."""


def run(trial: Trial) -> Result:
    """Pooled and stepwise statistics on processes, then on the states of a net that reads digits."""
    seeds = trial.seeds(8, 24)
    claims, stds, means = [], list[Series](), list[Series]()
    at = list(range(1, STEPS + 1))
    for name, (phi, a) in PROCESSES.items():
        variance, mean, pooled = _law(phi, a)
        drawn = torch.stack([_normalised(phi, a, seed) for seed in seeds])
        for i, (layer, std_law, mean_law) in enumerate((
            ("pooled", [math.sqrt(v / pooled) for v in variance[:STEPS]],
             [(m - sum(mean[:STEPS]) / STEPS) / math.sqrt(pooled) for m in mean[:STEPS]]),
            ("each step", [1.0] * STEPS, [0.0] * STEPS),
        )):  # fmt: skip
            got, error = _mean(drawn[:, i, 0, :STEPS])
            claims.append(Claim.curve(f"std of each step, {layer}, {name}", at, std_law, got, error, absolute=0.03))
            label = layer
            if a == 0:
                stds += [Series(label, at, std_law, kind="law"), Series(label, at, got, error)]
                continue
            got, error = _mean(drawn[:, i, 1, :STEPS])
            claims.append(Claim.curve(f"mean of each step, {layer}, {name}", at, mean_law, got, error, absolute=0.03))
            means += [Series(label, at, mean_law, kind="law"), Series(label, at, got, error)]
        if a == 0:
            later = list(range(STEPS + 1, LATER + 1))
            law = [math.sqrt(variance[t - 1] / variance[STEPS - 1]) for t in later]
            got, error = _mean(drawn[:, 1, 0, STEPS:])
            claims.append(
                Claim.curve(
                    "std of steps beyond training, each step, random walk", later, law, got, error, absolute=0.03
                )
            )
            stds += [
                Series("each step", later, law, kind="reference"),
                Series("each step", later, got, error),
            ]
    digits, panel = _digits(seeds[: trial.pick(4, 12)])
    panels = (
        Panel("std of a random walk", "step", "std behind the layer", tuple(stds)),
        Panel("mean of a process that drifts", "step", "mean behind the layer", tuple(means)),
        panel,
    )
    return Result((*claims, *digits), panels, seeds)


def _mean(values: Tensor) -> tuple[list[float], list[float]]:
    return values.mean(0).tolist(), (values.std(0) / math.sqrt(len(values))).tolist()


def _law(phi: float, a: float) -> tuple[list[float], list[float], float]:
    """Variance and mean of each step, and the pooled variance of the steps of training."""
    variance, mean = [1.0], [a]
    for _ in range(LATER - 1):
        variance.append(phi**2 * variance[-1] + 1)
        mean.append(phi * mean[-1] + a)
    middle = sum(mean[:STEPS]) / STEPS
    pooled = sum(variance[:STEPS]) / STEPS + sum((m - middle) ** 2 for m in mean[:STEPS]) / STEPS
    return variance, mean, pooled


def _sequences(count: int, steps: int, phi: float, a: float) -> Tensor:
    h, states = torch.zeros(count, CHANNELS), []
    for _ in range(steps):
        h = phi * h + a + torch.randn(count, CHANNELS)
        states.append(h)
    return torch.stack(states, 1)


@torch.no_grad()
def _normalised(phi: float, a: float, seed: int) -> Tensor:
    """Std and mean of each step behind both layers; (2 layers, 2, steps). The pooled one has no later steps."""
    torch.manual_seed(seed)
    pooled = nn.BatchNorm1d(CHANNELS, momentum=None, affine=False)
    stepwise = TimeStepBatchNorm(CHANNELS, STEPS, momentum=None, affine=False)
    for _ in range(100):
        batch = _sequences(64, STEPS, phi, a)
        pooled(batch.transpose(1, 2))
        stepwise(batch)
    fresh = _sequences(1024, LATER, phi, a)
    made = (pooled.eval()(fresh.transpose(1, 2)).transpose(1, 2), stepwise.eval()(fresh))
    return torch.stack([torch.stack([x.var(0).mean(-1).sqrt(), x.mean((0, 2))]) for x in made])


@torch.no_grad()
def _digits(seeds: tuple[int, ...]) -> tuple[list[Claim], Panel]:
    """States of a recurrent net that reads pixels: std of each step behind both layers, other digits."""
    from sklearn.datasets import load_digits

    x = torch.tensor(load_digits().data, dtype=torch.float32)[:, :, None] / 16
    drawn = []
    for seed in seeds:
        torch.manual_seed(seed)
        net = nn.RNN(1, CHANNELS, batch_first=True)
        nn.init.orthogonal_(net.get_parameter("weight_hh_l0"))
        for name in ("bias_ih_l0", "bias_hh_l0"):
            nn.init.zeros_(net.get_parameter(name))
        states = net(x[torch.randperm(len(x))])[0]
        known, other = states[:900], states[900:]
        pooled = nn.BatchNorm1d(CHANNELS, momentum=None, affine=False)
        stepwise = TimeStepBatchNorm(CHANNELS, 64, momentum=None, affine=False)
        pooled(known.transpose(1, 2))
        stepwise(known)
        made = (pooled.eval()(other.transpose(1, 2)).transpose(1, 2), stepwise.eval()(other))
        # the law from the known half: variance of each step over the pooled one
        law = known.var(0) / known.var((0, 1))
        drawn.append(torch.stack([m.mean(-1).sqrt() for m in (law, made[0].var(0), made[1].var(0))]))
    both = [_mean(row) for row in torch.stack(drawn).unbind(1)]
    (law, _), (got, error), (flat, bars) = both
    first = 8  # the first row of a digit is all but empty
    at = list(range(first + 1, 65))
    apart = torch.stack(drawn)[:, 1] - torch.stack(drawn)[:, 0]
    gaps = (apart.std(0) / math.sqrt(len(apart))).tolist()
    claims = [
        Claim.curve("std of each step of the digits, pooled", at, law[first:], got[first:], gaps[first:], absolute=0.1),
        Claim.curve(
            "std of each step of the digits, each step", at, [1.0] * len(at), flat[first:], bars[first:], absolute=0.1
        ),
    ]
    shown = slice(first, None, 3)
    places = list(range(1, 65))
    series = (
        Series("pooled", places[first:], law[first:], kind="law"),
        Series("pooled", places[shown], got[shown], error[shown]),
        Series("each step", places[first:], [1.0] * len(at), kind="law"),
        Series("each step", places[shown], flat[shown], bars[shown]),
    )
    return claims, Panel("states of a net that reads digits", "pixel", "std behind the layer", series)
