"""The compass against closed forms and against training again: python benchmarks/compass.py

Ridge regression has dE_val/dlog(lambda) in closed form: relative errors of `tr.compass` and of a truncated Neumann
series at the same minimum, and the time of a reading. Then the sign: random ridge and logistic regressions, each at one
value on either side of the bottom of its own validation curve, which is known by closed form or by training at 60
values.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import tightrope as tr

Data = tuple[Tensor, Tensor]


def square(output: Tensor, target: Tensor) -> Tensor:
    return (output[:, 0] - target).square().mean()


def regression(features: int, samples: int, chance: torch.Generator) -> tuple[Data, Data]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=chance)

    scale = 10 ** (normal(features) / 3)
    weight = normal(features) / features**0.5
    x = normal(2 * samples, features) * scale
    y = x @ weight + 3 * float(torch.rand(1, generator=chance)) * normal(2 * samples) + normal(2 * samples) / 2
    return (x[:samples], y[:samples]), (x[samples:], y[samples:])


def ridge(train: Data, decay: float) -> Tensor:
    x, y = train
    return torch.linalg.solve(2 / len(x) * x.T @ x + decay * torch.eye(x.shape[1], dtype=x.dtype), 2 / len(x) * x.T @ y)


def closed(train: Data, val: Data, decay: float) -> float:
    (x, _), (xv, yv), w = train, val, ridge(train, decay)
    bend = 2 / len(x) * x.T @ x + decay * torch.eye(x.shape[1], dtype=x.dtype)
    return float(2 / len(xv) * (xv @ w - yv) @ xv @ -torch.linalg.solve(bend, w))


def neumann(train: Data, val: Data, decay: float, terms: int) -> float:
    """The truncated series for H^-1 with the step 1 / lambda_max."""
    (x, _), (xv, yv), w = train, val, ridge(train, decay)
    bend = 2 / len(x) * x.T @ x + decay * torch.eye(x.shape[1], dtype=x.dtype)
    step = 1 / float(torch.linalg.matrix_norm(bend, 2))
    total = part = w
    for _ in range(terms):
        part = part - step * (bend @ part)
        total = total + part
    return float(2 / len(xv) * (xv @ w - yv) @ xv @ (-step * total))


def linear(weight: Tensor, outputs: int = 1) -> nn.Module:
    layer = nn.Linear(weight.shape[-1], outputs, bias=False, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight.reshape(outputs, -1))
    return layer


def exactness(console: Console, cases: int) -> None:
    table = Table("features", "samples", "worst of compass", "series, 3 terms", "20", "100", "ms a reading")
    for features, samples in ((50, 80), (50, 40), (200, 150), (400, 300)):
        errors, series, seconds = [], [], []
        for seed in range(cases):
            train, val = regression(features, samples, torch.Generator().manual_seed(seed))
            decay = 10 ** (-2 + 3 * seed / max(cases - 1, 1))
            exact, model = closed(train, val, decay), linear(ridge(train, decay))
            begin = time.perf_counter()
            found = tr.compass(model, train=train, val=val, loss=square, hyperparameters={"weight_decay": decay})
            seconds.append(time.perf_counter() - begin)
            errors.append(abs(found.derivatives["weight_decay"] / exact - 1))
            series.append([abs(neumann(train, val, decay, k) / exact - 1) for k in (3, 20, 100)])
        middle = torch.tensor(series).median(0).values.tolist()
        table.add_row(
            str(features), str(samples), f"{max(errors):.1e}", *(f"{e:.0%}" for e in middle),
            f"{1000 * min(seconds):.1f}",
        )  # fmt: skip
    console.print(table)


def logistic(train: Data, decay: float, start: Tensor | None = None) -> Tensor:
    """Minimum of the mean logistic loss and decay / 2 |w|^2, by Newton's method."""
    x, y = train
    w = torch.zeros(x.shape[1], dtype=x.dtype) if start is None else start.clone()

    def value(w: Tensor) -> float:
        return float(F.binary_cross_entropy_with_logits(x @ w, y) + decay / 2 * w @ w)

    for _ in range(100):
        p = torch.sigmoid(x @ w)
        slope = x.T @ (p - y) / len(x) + decay * w
        if float(slope.norm()) < 1e-13:
            break
        bend = (x * (p * (1 - p))[:, None]).T @ x / len(x) + decay * torch.eye(x.shape[1], dtype=x.dtype)
        step = torch.linalg.solve(bend, slope)
        length = 1.0
        while value(w - length * step) > value(w) and length > 1e-9:
            length /= 2
        w = w - length * step
    return w


def binary(output: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(output[:, 0], target)


def bottom(of: Callable[[float], float]) -> float | None:
    """The value with the lowest validation loss; None where the curve has no inner minimum."""
    grid = [10 ** (-5 + 8 * i / 60) for i in range(61)]
    losses = [of(value) for value in grid]
    best = min(range(61), key=losses.__getitem__)
    return grid[best] if 10 <= best <= 50 else None


def signs(console: Console, settings: int) -> None:
    table = Table("problem", "settings", "readings", "right sign", "wrong", "certain side", "certain and wrong")
    for name in ("ridge", "logistic"):
        done = right = total = certain = false = 0
        seed = 0
        while done < settings // 2:
            chance = torch.Generator().manual_seed(1000 + seed)
            seed += 1
            train, val = regression(int(torch.randint(10, 60, (1,), generator=chance)), 60, chance)
            loss, solve = (square, ridge) if name == "ridge" else (binary, logistic)
            if name == "logistic":
                train, val = ((x, (y > 0).double()) for x, y in (train, val))

            def curve(decay: float, train: Data = train, val: Data = val, loss: object = loss) -> float:
                w = solve(train, decay)  # noqa: B023
                return float(loss((val[0] @ w)[:, None], val[1]))  # type: ignore[operator]

            low = bottom(curve)
            if low is None:
                continue
            done += 1
            for factor in (1 / 10, 1 / 2, 2, 10):
                decay = low * factor
                truth = curve(decay * 1.001) - curve(decay / 1.001)
                if truth * math.log(factor) < 0:
                    continue  # a second dip: the side of the bottom is not that of the slope
                found = tr.compass(
                    linear(solve(train, decay)), train=train, val=val, loss=loss,
                    hyperparameters={"weight_decay": decay},
                )  # fmt: skip
                total += 1
                right += found.derivatives["weight_decay"] * truth > 0
                if found.side in ("overfitting", "underfitting"):
                    certain += 1
                    false += (found.side == "underfitting") != (truth > 0)
        table.add_row(name, str(done), str(total), str(right), str(total - right), str(certain), str(false))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=8, help="ridge regressions of each size")
    parser.add_argument("--settings", type=int, default=20, help="random problems for the sign")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    exactness(console, options.cases)
    signs(console, options.settings)


if __name__ == "__main__":
    main()
