"""Whether uncertainty and calibration tell the truth: python benchmarks/uncertainty.py

Flags: how often a perfectly calibrated model is called miscalibrated, and how often an overconfident one is. Spread:
what E[m^2] - E[m]^2 in float32 and tr.decompose make of members whose spread is small beside their mean. Errors: how
often the intervals of the epistemic part hold the truth.
"""

from __future__ import annotations

import argparse
import math

import torch
from rich.console import Console
from rich.table import Table

import tightrope as tr


def flags(trials: int) -> Table:
    table = Table(title=f"Calibrated models flagged, of {trials}; the same with logits 1.5 times as long")
    for column in ("samples", "classes", "mean ECE", "its null", "p <= 0.05, %", "flagged, %", "x 1.5 flagged, %"):
        table.add_column(column, justify="right")
    for samples, classes in ((100, 2), (100, 10), (400, 10), (400, 50)):
        torch.manual_seed(0)
        found, hot = [], []
        for trial in range(trials):
            logits = 2 * torch.randn(samples, classes)
            labels = torch.distributions.Categorical(logits=logits).sample()
            found.append(tr.calibration(logits, labels, seed=trial))
            if trial < trials // 10:
                hot.append(tr.calibration(1.5 * logits, labels, seed=trial))
        ece, null = (sum(values) / trials for values in zip(*((f.ece.value, f.ece.null) for f in found)))
        table.add_row(
            str(samples), str(classes), f"{ece:.4f}", f"{null:.4f}",
            f"{100 * sum(f.ece.p <= 0.05 for f in found) / trials:.1f}",
            f"{100 * sum(f.miscalibrated for f in found) / trials:.1f}",
            f"{100 * sum(f.miscalibrated for f in hot) / max(len(hot), 1):.0f}",
        )  # fmt: skip
    return table


def spread() -> Table:
    table = Table(title="Standard deviation of 5 float32 members, 100,000 predictions")
    for column in ("mean", "spread", "naive: NaN, %", "naive: relative error", "decompose: NaN, %", "relative error"):
        table.add_column(column, justify="right")
    for mean, std in ((1.0, 0.01), (100.0, 0.01), (1000.0, 0.01), (1000.0, 1.0)):
        torch.manual_seed(0)
        members = (mean + std * torch.randn(5, 100_000)).float()
        truth = members.double().std(0)
        naive = (members.square().mean(0) - members.mean(0).square()).sqrt() * math.sqrt(5 / 4)
        own = tr.decompose(members, head="mean").epistemic.value.sqrt()
        cells = []
        for x in (naive, own):
            off = ((x.double() - truth).abs() / truth)[~x.isnan()]
            cells += [f"{100 * float(x.isnan().double().mean()):.0f}", f"{float(off.median()):.1g}"]
        table.add_row(f"{mean:g}", f"{std:g}", *cells)
    return table


def errors() -> Table:
    table = Table(title="Coverage of the 95 % intervals of the epistemic part, 20,000 predictions")
    for column in ("members", "law of the members", "mean / truth", "coverage, %"):
        table.add_column(column, justify="right")
    for members in (2, 5, 10, 30, 100):
        torch.manual_seed(0)
        draws = {
            "normal": (torch.randn(members, 20_000, dtype=torch.float64), 1.0),
            "uniform": (torch.rand(members, 20_000, dtype=torch.float64), 1 / 12),
        }
        for name, (x, truth) in draws.items():
            part = tr.decompose(x, head="mean").epistemic
            low, high = part.interval
            inside = float(((low <= truth) & (truth <= high)).double().mean())
            table.add_row(str(members), name, f"{part.average / truth:.3f}", f"{100 * inside:.1f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=110)
    console.print(spread())
    console.print(errors())
    console.print(flags(options.trials))


if __name__ == "__main__":
    main()
