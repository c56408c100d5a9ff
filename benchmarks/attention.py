"""A block of single-head attention over the grid of DeepScaleLM's simulations: predicted and measured variances.

    python benchmarks/attention.py [--points 24] [--draws 16] [--seed 0]

Each point draws a length, a width, a correlation between the tokens of a sample, a dropout rate and the scales of the
projections at random, and with them several networks and batches. Printed are the quantiles of the relative errors of
the output's variance and of the gradient of the input's second moment, each averaged over the draws; and how much the
average of that many draws scatters by itself, below which no error can be seen.

Reference: Kedia et al., Transformers get stable: an end-to-end signal propagation theory for language models (ICML
2024), whose simulations reach, for P50 / P90 / P99, 1.4 / 4.1 / 7.8 % (variance) and 2.2 / 13.3 / 44.5 % (gradient).
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tightrope as tr

LENGTHS, WIDTHS = (64, 128, 256), (64, 128, 256)
CORRELATIONS, DROPOUTS = (0.0, 0.2, 0.4, 0.6), (0.0, 0.1, 0.2)
SCALES = (0.5, 1.0, 1.5)
BATCH = 4
BARS = {"variance": (1.3, 3.9, 7.4), "gradient": (1.3, 3.9, 9.0)}
"""Goals in per cent for P50, P90 and P99."""


@dataclass(frozen=True)
class Point:
    """One setting of the grid."""

    length: int
    width: int
    correlation: float
    dropout: float
    query_key: float
    value: float


class Block(nn.Module):
    """Queries, keys, values, attention with dropout on its weights, output projection."""

    def __init__(self, point: Point) -> None:
        super().__init__()
        self.point = point
        self.maps = nn.ModuleList(nn.Linear(point.width, point.width, bias=False) for _ in range(4))
        gains = (point.query_key, point.query_key, point.value, point.value)
        for layer, gain in zip(self.maps, gains, strict=True):
            nn.init.normal_(layer.weight, std=gain / math.sqrt(point.width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unsqueeze(1) for layer in self.maps[:3])
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.point.dropout)
        return self.maps[3](y.squeeze(1))


class Step(nn.Module):
    """A block on a result, so that the gradient with respect to its input is observed."""

    def __init__(self, point: Point) -> None:
        super().__init__()
        self.gain, self.block = nn.Parameter(torch.ones(())), Block(point)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x * self.gain)


def drawn(generator: np.random.Generator) -> Point:
    """A random point of the grid."""

    def one(of: tuple[float, ...]) -> float:
        return float(generator.choice(of))

    return Point(
        int(one(LENGTHS)), int(one(WIDTHS)), one(CORRELATIONS), one(DROPOUTS), one(SCALES), one(SCALES)
    )  # fmt: skip


def tokens(point: Point) -> Tensor:
    """Tokens of unit variance; those of a sample share their correlation's part of it."""
    shared, alone = torch.randn(BATCH, 1, point.width), torch.randn(BATCH, point.length, point.width)
    return math.sqrt(point.correlation) * shared + math.sqrt(1 - point.correlation) * alone


def judge(point: Point, draws: int) -> tuple[dict[str, float], dict[str, float]]:
    """Relative errors of the averages over draws, and the standard errors of the measured averages, in per cent."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in BARS}
    for _ in range(draws):
        model, x = Step(point), tokens(point)
        rows = tr.compare(tr.predict(model, x), tr.measure(model, x)).rows
        first, last = rows[0], [row for row in rows if row.op == "linear"][-1]
        assert first.predicted_grad_rms and first.measured_grad_rms and last.predicted_std and last.measured_std
        found["variance"].append((last.predicted_std**2, last.measured_std**2))
        found["gradient"].append((first.predicted_grad_rms**2, first.measured_grad_rms**2))
    errors, noise = {}, {}
    for name, pairs in found.items():
        predicted, real = np.array(pairs).T
        errors[name] = 100 * abs(predicted.mean() / real.mean() - 1)
        noise[name] = 100 * (real - predicted).std(ddof=1) / math.sqrt(len(real)) / real.mean()
    return errors, noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=24)
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", action="store_true", help="print every point")
    options = parser.parse_args()
    generator = np.random.default_rng(options.seed)
    torch.manual_seed(options.seed)
    errors: dict[str, list[float]] = {name: [] for name in BARS}
    noises: dict[str, list[float]] = {name: [] for name in BARS}
    for _ in range(options.points):
        point = drawn(generator)
        error, noise = judge(point, options.draws)
        for name in BARS:
            errors[name].append(error[name])
            noises[name].append(noise[name])
        if options.rows:
            cells = "  ".join(f"{name} {error[name]:6.2f} +- {noise[name]:5.2f}" for name in BARS)
            print(f"{cells}  {point}", flush=True)
    print(f"{'':10} {'P50 %':>7} {'P90 %':>7} {'P99 %':>7}   goals               P50 of the standard error")
    for name, bars in BARS.items():
        quantiles = [float(np.quantile(errors[name], q)) for q in (0.5, 0.9, 0.99)]
        cells = " ".join(f"{q:6.2f}{'!' if q > bar else ' '}" for q, bar in zip(quantiles, bars, strict=True))
        print(f"{name:10} {cells}   {' / '.join(f'{bar:g}' for bar in bars):20}{np.median(noises[name]):.2f}")


if __name__ == "__main__":
    main()
