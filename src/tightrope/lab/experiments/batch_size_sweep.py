"""`batch-size-sweep`: the statistics of m samples are wrong by 1 / sqrt(m), and batch norm passes that error on.

Law         the mean of m values has the relative error 1 / sqrt(m), their variance sqrt(2 / (m - 1)). What batch norm
            makes of a normal value differs from what an endless batch would make of it by 2 (1 - c) on average of the
            square, c the mean of the batch's standard deviation, sqrt(2 / m) Gamma(m / 2) / Gamma((m - 1) / 2): about
            3 / (2 m), and all of the signal at m = 1. Layer, instance and group norm do not see the other samples.
            `nn.BlendedNorm` gives the batch the weight w = m / (m + 8) at first: it passes on w sqrt(3 / (2 m)).
Setting     noise: normal channels through each layer, m = 2 to 256. Accuracy: scikit-learn's digits, rows as sites of
            three convolutions, 32 samples a step in groups of m that share their statistics, as on devices that do not
            talk to each other, so that steps, rate and the gradient's batch are the same for every m.
Band        exact for batch norm. The blend's law is the first order in 1 / m, and its layer statistics rest on 64
            channels: 4 / m + 3 / 64 of itself, claimed from m = 64 on.
Reading     dashed lines are 1 / sqrt(m) and the normalisers for which m plays no part. Groups of single samples make
            batch norm instance norm in training and another net at inference; the blend does not notice them much.
References  Ioffe (2017), Batch renormalization, NeurIPS; Wu and He (2018), Group normalization, ECCV, for the sweep;
            Luo et al. (2019), Differentiable learning-to-normalize via switchable normalization, ICLR.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial
from tightrope.nn import BlendedNorm
from tightrope.nn.blended_norm import PSEUDO

PRINCIPLES = ("P07", "P08")
SIZES = (2, 4, 8, 16, 32, 64, 128, 256)
CHANNELS, BATCH = 64, 32
GROUPS = (1, 4, 32)
"""Samples that share their statistics in training."""
STEPS, HELD = 50, 600
"""Training steps; digits that are held out."""
Make = Callable[[int], nn.Module]
OWN: dict[str, Make] = {
    "layer norm": lambda c: nn.GroupNorm(1, c),
    "group norm": lambda c: nn.GroupNorm(8, c),
    "instance norm": lambda c: nn.InstanceNorm1d(c, affine=True, track_running_stats=False),
}
SHARED: dict[str, Make] = {"batch norm": lambda c: nn.BatchNorm1d(c), "blended norm": lambda c: BlendedNorm(c)}


def run(trial: Trial) -> Result:
    """Errors of the batch statistics, noise of what is made of them, accuracy of nets that train with them."""
    seeds, values = trial.seeds(3, 10), trial.pick(250_000, 4_000_000)
    means, spreads, noises = _errors(seeds, values)
    blends = _blends(seeds, values)
    laws = ([m**-0.5 for m in SIZES], [(2 / (m - 1)) ** 0.5 for m in SIZES], [batch_noise(m) for m in SIZES])
    claims = [
        Claim.curve("relative error of the batch mean, m", SIZES, laws[0], *means),
        Claim.curve("relative error of the batch variance, m", SIZES, laws[1], *spreads),
        Claim.curve("noise of batch norm's values, m", SIZES, laws[2], *noises),
        *(Claim.equal(f"noise of the blend's values, m = {m}", blend_noise(m), mean, error, within=4 / m + 3 / CHANNELS)
          for m, mean, error in zip(SIZES, *blends, strict=True) if m in (64, 256)),
        Claim.equal("change of layer, group and instance norm with the other samples", 0.0, _changes(seeds[0])),
    ]  # fmt: skip
    scores = {name: {m: [_accuracy(make, m, seed) for seed in seeds] for m in GROUPS} for name, make in SHARED.items()}
    own = {name: [_accuracy(make, BATCH, seed) for seed in seeds] for name, make in OWN.items()}
    claims += _comparisons(scores)
    panels = (*_noise_panels(means, spreads, noises, blends), _accuracies(scores, own))
    return Result(tuple(claims), panels, seeds)


def batch_noise(m: int) -> float:
    """Root mean square of what a batch of m makes of a normal value minus what an endless batch makes of it."""
    std = math.sqrt(2 / m) * math.exp(math.lgamma(m / 2) - math.lgamma((m - 1) / 2))
    return math.sqrt(2 * (1 - std))


def blend_noise(m: int) -> float:
    """The same of `BlendedNorm` at its start, to first order."""
    return m / (m + PSEUDO) * math.sqrt(1.5 / m)


Figures = tuple[list[float], list[float]]


def _summary(rows: list[list[float]]) -> Figures:
    """Mean and standard error over seeds; rows of one seed each."""
    table = torch.tensor(rows)
    return table.mean(0).tolist(), (table.std(0) / math.sqrt(len(rows))).tolist()


def _errors(seeds: tuple[int, ...], values: int) -> list[Figures]:
    """Errors of torch's batch mean and variance, and of what it makes of standard normal values."""
    rows = []
    for m in SIZES:
        squares = []
        for seed in seeds:
            torch.manual_seed(seed)
            norm = nn.BatchNorm1d(max(values // m, 8192), eps=1e-12, momentum=1.0)  # a batch for each channel
            x = torch.randn(m, norm.num_features)
            noise = (norm(x).detach() - x).square().mean(0)
            assert norm.running_mean is not None and norm.running_var is not None
            squares.append(torch.stack([norm.running_mean.square(), (norm.running_var - 1).square(), noise]))
        rows.append([_root(part) for part in torch.cat(squares, 1)])
    return [tuple(map(list, zip(*column, strict=True))) for column in zip(*rows, strict=True)]  # type: ignore[misc]


def _root(squares: Tensor) -> tuple[float, float]:
    """Root of the mean of squares, with its standard error."""
    root = float(squares.mean().sqrt())
    return root, float(squares.std()) / math.sqrt(len(squares)) / (2 * root)


def _blends(seeds: tuple[int, ...], values: int) -> Figures:
    """Noise of the blend: what it makes of a batch minus what it would with the true statistics for the batch's."""
    found = []
    for m in SIZES:
        norm, squares = BlendedNorm(CHANNELS), list[Tensor]()
        share = float(norm.share(float(m))[0])
        for seed in seeds:
            torch.manual_seed(seed)
            for _ in range(max(values // (m * CHANNELS * 20), 40)):
                x = torch.randn(m, CHANNELS)
                own, spread = x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True)
                endless = (x - (1 - share) * own) / (share + (1 - share) * spread).sqrt()
                squares.append((norm(x).detach() - endless).square().mean())
        found.append(_root(torch.stack(squares)))
    return [root for root, _ in found], [error for _, error in found]


def _changes(seed: int) -> float:
    """Largest change of a sample's result when the rest of its batch is drawn anew."""
    torch.manual_seed(seed)
    x, y = torch.randn(8, CHANNELS, 4), torch.randn(8, CHANNELS, 4)
    y[0] = x[0]
    return max(float((norm(x)[0] - norm(y)[0]).abs().max()) for norm in (make(CHANNELS) for make in OWN.values()))


def _accuracy(make: Make, group: int, seed: int) -> float:
    """Share of held-out digits that a net names rightly; `group` samples share their statistics in training."""
    from sklearn.datasets import load_digits

    torch.manual_seed(seed)
    data = load_digits()
    order = torch.randperm(len(data.target))
    x, y = torch.tensor(data.images, dtype=torch.float32)[order] / 16, torch.tensor(data.target)[order]
    net = _net(make, group)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(STEPS):
        rows = HELD + torch.randperm(len(y) - HELD)[:BATCH]
        optimizer.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        return float((net.eval()(x[:HELD]).argmax(1) == y[:HELD]).float().mean())


class _Grouped(nn.Module):
    """Applies a normaliser to groups of so many samples in training."""

    def __init__(self, norm: nn.Module, group: int) -> None:
        super().__init__()
        self.norm, self.group = norm, group

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.norm(part) for part in x.split(self.group)]) if self.training else self.norm(x)


def _net(make: Make, group: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, stride in ((8, 1), (32, 2), (32, 2)):
        layers += [nn.Conv1d(before, 32, 3, stride, 1, bias=False), _Grouped(make(32), group), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 10))


def _comparisons(scores: dict[str, dict[int, list[float]]]) -> list[Claim]:
    """Differences of accuracy between runs of one seed."""
    batch, blend = scores["batch norm"], scores["blended norm"]
    pairs = (
        ("batch norm: accuracy in groups of 32 minus in groups of 1", batch[BATCH], batch[1]),
        ("accuracy in groups of 1: blend minus batch norm", blend[1], batch[1]),
    )
    claims = []
    for text, better, worse in pairs:
        gap = torch.tensor(better) - torch.tensor(worse)
        claims.append(Claim.above(text, 0.0, float(gap.mean()), float(gap.std()) / math.sqrt(len(gap))))
    return claims


def _noise_panels(means: Figures, spreads: Figures, noises: Figures, blends: Figures) -> tuple[Panel, Panel]:
    statistics = (
        Series("mean", SIZES, [m**-0.5 for m in SIZES], kind="law"), Series("mean", SIZES, *means),
        Series("variance", SIZES, [(2 / (m - 1)) ** 0.5 for m in SIZES], kind="law"),
        Series("variance", SIZES, *spreads),
    )  # fmt: skip
    values = (
        Series("batch norm", SIZES, [batch_noise(m) for m in SIZES], kind="law"),
        Series("batch norm", SIZES, *noises),
        Series("blended norm", SIZES[3:], [blend_noise(m) for m in SIZES[3:]], kind="law"),
        Series("blended norm", SIZES, *blends),
        Series("1 / sqrt(m)", SIZES, [m**-0.5 for m in SIZES], kind="reference"),
    )
    text = "values behind each statistic, m"
    return (
        Panel("error of the batch statistics", text, "relative error", statistics, log_x=True, log_y=True),
        Panel("noise of what is made of them", text, "noise beside a signal of 1", values, log_x=True, log_y=True),
    )


def _accuracies(scores: dict[str, dict[int, list[float]]], own: dict[str, list[float]]) -> Panel:
    series = []
    for name, by_size in scores.items():
        series.append(Series(name, GROUPS, *_summary([list(row) for row in zip(*by_size.values(), strict=True)])))
    for name, found in own.items():
        series.append(Series(name, (1, BATCH), [sum(found) / len(found)] * 2, kind="reference"))
    return Panel("digits, held out", "samples that share their statistics", "accuracy", tuple(series), log_x=True)
