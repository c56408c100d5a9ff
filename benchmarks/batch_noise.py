"""What batch_noise costs and whether its numbers and intervals are right: python benchmarks/batch_noise.py

Cost: forward and backward with the per-sample-gradient variance over a plain forward and backward, in turn, one thread,
processor time. Truth: linear regression on standard normal inputs, whose gradient noise has a closed form,
tr Sigma = (d + 1) |D|^2 + d s^2 at a distance D from the optimum with noise s in the targets; with a correlated part of
the batch, whose rho has one too. Coverage: how often 95 % intervals hold the truth.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import tightrope as tr
from tightrope.instruments import per_sample

FEATURES = 8


def mlp() -> tuple[nn.Module, Tensor]:
    sizes = (784, 1000, 500, 100, 10)
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(sizes):
        layers += [nn.Linear(i, o), nn.ReLU()]
    return nn.Sequential(*layers[:-1]), torch.randn(128, 784)


def lenet() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3136, 1024), nn.ReLU(), nn.Linear(1024, 10),
    )  # fmt: skip
    return net, torch.randn(64, 1, 28, 28)


def blocks() -> tuple[nn.Module, Tensor]:
    layers: list[nn.Module] = []
    for i, o, stride in ((3, 32, 1), (32, 64, 2), (64, 128, 2), (128, 256, 2)):
        layers += [nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.GroupNorm(8, o), nn.ReLU()]
        layers += [nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.GroupNorm(8, o), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10)), torch.randn(32, 3, 32, 32)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(1000, 128)
        layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
        self.body, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.words(x)).mean(1))


def encoder() -> tuple[nn.Module, Tensor]:
    return Encoder(), torch.randint(0, 1000, (32, 64))


def cost(rounds: int) -> Table:
    table = Table(title="Forward and backward, with the per-sample-gradient variance over plain; medians of ratios")
    for column in ("model", "plain, ms", "ghost norms", "way", "whole instrument, steps"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for build in (mlp, lenet, blocks, encoder):
        torch.manual_seed(0)
        model, inputs = build()
        batch = (inputs, torch.randint(0, 10, (len(inputs),)))
        way = per_sample.find(model, batch, F.cross_entropy)

        def plain(model: nn.Module = model, batch: tuple[Tensor, Tensor] = batch) -> None:
            per_sample.gradient(model, batch, F.cross_entropy)

        def variance(way: per_sample.PerSample = way, batch: tuple[Tensor, Tensor] = batch) -> float:
            squared, mean = way(batch)
            assert squared is not None
            n = len(squared)
            return float(squared.sum() - n * mean.norm().double() ** 2) / (n - 1)

        taken = interleaved([plain, variance], rounds)
        begin = time.process_time()
        tr.batch_noise(model, batch, loss=F.cross_entropy)
        whole = time.process_time() - begin
        base = statistics.median(taken[0])
        ratios = [b / a for a, b in zip(*taken)]
        table.add_row(
            build.__name__, f"{1e3 * base:.1f}", f"{statistics.median(ratios):.2f}", way.method, f"{whole / base:.1f}"
        )
    return table


def interleaved(actions: list[Callable[[], object]], rounds: int) -> list[list[float]]:
    for action in actions * 2:
        action()
    taken: list[list[float]] = [[] for _ in actions]
    for _ in range(rounds):
        for seconds, action in zip(taken, actions):
            begin = time.process_time()
            action()
            seconds.append(time.process_time() - begin)
    return taken


class Line(nn.Module):
    """Prediction of a linear model at distance D from the optimum 0."""

    def __init__(self, distance: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(distance[None].clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)[:, 0]


def half_square(output: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (output - target).square().mean()


def draw(batches: int, size: int, rho: float) -> list[tuple[Tensor, Tensor]]:
    """Batches that repeat one sample with probability sqrt(rho) each: gradients then correlate by rho."""
    x, y = torch.randn(batches, size, FEATURES).double(), torch.randn(batches, size).double()
    shared = torch.rand(batches, size) < math.sqrt(rho)
    x = torch.where(shared[..., None], torch.randn(batches, 1, FEATURES).double(), x)
    y = torch.where(shared, torch.randn(batches, 1).double(), y)
    return list(zip(x, y))


class Batches:
    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def coverage(trials: int) -> Table:
    table = Table(title=f"Truth, mean of {trials} estimates with its standard error, coverage of 95 % intervals")
    for column in ("data", "quantity", "truth", "mean", "in standard errors", "coverage, %"):
        table.add_column(column, justify="left" if column in ("data", "quantity") else "right")
    distance = torch.ones(FEATURES).double() * math.sqrt(100 / FEATURES)
    square, sigma2 = 100.0, (FEATURES + 1) * 100.0 + FEATURES
    model = Line(distance)
    for name, batches, size, rho in (
        ("one batch of 512", 1, 512, 0.0), ("16 batches of 32", 16, 32, 0.0), ("32 batches of 32", 32, 32, 0.0),
        ("32 of 32, rho 0.05", 32, 32, 0.05), ("32 of 32, rho 0.5", 32, 32, 0.5),
    ):  # fmt: skip
        torch.manual_seed(1)
        found = []
        for _ in range(trials):
            made = draw(batches, size, rho)
            data = made[0] if batches == 1 else Batches(made)
            found.append(tr.batch_noise(model, data, loss=half_square, batches=batches if batches > 1 else 16))
        below = square - rho * sigma2
        truths = {
            "sigma2": sigma2, "signal": square, "noise_scale": sigma2 / square,
            "critical": sigma2 * (1 - rho) / below if below > 0 else math.inf,
        }  # fmt: skip
        if batches > 1:
            truths |= {"rho": rho, "effective": size / (1 + (size - 1) * rho)}
        for quantity, truth in truths.items():
            told = [getattr(noise, quantity) for noise in found]
            inside = 100 * statistics.mean(e.low <= truth <= e.high for e in told)
            values = torch.tensor([e.value for e in told])
            error = float(values.std()) / math.sqrt(trials)
            known = math.isfinite(error) and math.isfinite(truth)
            mean = f"{float(values.mean()):.4g} ± {error:.1g}" if known else "not resolved"
            table.add_row(
                name, quantity, f"{truth:.4g}", mean,
                f"{(float(values.mean()) - truth) / error:+.1f}" if known else "", f"{inside:.1f}",
            )  # fmt: skip
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=31)
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=110)
    if options.rounds:
        console.print(cost(options.rounds))
    if options.trials:
        console.print(coverage(options.trials))


if __name__ == "__main__":
    main()
