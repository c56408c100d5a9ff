"""How well the laws of theory agree with measured ones: python benchmarks/accuracy.py [--all] [--seeds N] [name ...]

For each model one row: relative errors of the standard deviation of every non-trivial result, and of the rms of the
loss's gradient with respect to it, pooled over the seeds; the operations without a rule; seconds per forecast.
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np
import torch
from models import MAIN, MORE, Build
from rich.console import Console
from rich.table import Table

import tightrope as tr


def errors(rows: list[tr.Comparison], predicted: str, measured: str) -> list[float]:
    """Relative errors over non-trivial rows that have both numbers."""
    found = []
    for comparison in rows:
        for row in comparison.rows:
            a, b = getattr(row, predicted), getattr(row, measured)
            if not row.trivial and a is not None and b and math.isfinite(a) and math.isfinite(b):
                found.append(abs(a / b - 1))
    return found


def judge(build: Build, seeds: int) -> tuple[list[tr.Comparison], float]:
    """Comparisons over seeds, and the mean seconds of a forecast."""
    comparisons, seconds = [], 0.0
    for seed in range(seeds):
        torch.manual_seed(seed)
        model, inputs = build()
        begin = time.perf_counter()
        forecast = tr.predict(model, inputs)
        seconds += (time.perf_counter() - begin) / seeds
        comparisons.append(tr.compare(forecast, tr.measure(model, inputs)))
    return comparisons, seconds


def cells(found: list[float]) -> list[str]:
    if not found:
        return ["-"] * 3
    return [f"{100 * value:.2f}" for value in (np.median(found), np.quantile(found, 0.9), max(found))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of model names; all when none is given")
    parser.add_argument("--all", action="store_true", help="the longer list of models")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    table = Table(title="Predicted against measured, relative error in %")
    for name in ("model", "rows", "std median", "p90", "max", "grad median", "p90", "max", "no rule", "unknown", "s"):
        table.add_column(name, justify="left" if name in ("model", "no rule") else "right", overflow="fold")
    for name, build in {**MAIN, **(MORE if options.all or options.names else {})}.items():
        if options.names and not any(part.lower() in name.lower() for part in options.names):
            continue
        comparisons, seconds = judge(build, options.seeds)
        summary = comparisons[0].summary()
        table.add_row(
            name, str(summary.rows), *cells(errors(comparisons, "predicted_std", "measured_std")),
            *cells(errors(comparisons, "predicted_grad_rms", "measured_grad_rms")),
            ", ".join(summary.without_rule) or "0", str(len(summary.unknown)), f"{seconds:.1f}",
        )  # fmt: skip
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
