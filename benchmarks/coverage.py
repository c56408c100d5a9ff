"""How much of the common models has a rule, and how far the rules reach.

    python benchmarks/coverage.py [--rows] [--skip SECONDS] [part of 'group: model' ...]

One row a model: non-trivial rows, errors of std and gradient, the share of rows that were simulated with the names of
their operations, rows that are unknown and why, or what the model raised. A last table counts operations over models.
"""

from __future__ import annotations

import argparse
import math
import signal
import time
import traceback
import warnings
from collections import Counter
from types import FrameType

import torch
from accuracy import error, print_row, quantiles
from models import Case
from zoo_layers import layer_cases
from zoo_timm import timm_cases
from zoo_transformers import hugging_cases

import tightrope as tr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of 'group: model'; all when none is given")
    parser.add_argument("--rows", action="store_true", help="print every row")
    parser.add_argument("--trace", action="store_true", help="print the traceback of what a model raises")
    parser.add_argument("--skip", type=int, default=300, help="give a model up after so many seconds")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _late)
    simulated: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    for case in (*layer_cases(), *hugging_cases(), *timm_cases()):
        label = f"{case.group}: {case.name}"
        if options.names and not any(name in label for name in options.names):
            continue
        signal.alarm(options.skip)
        try:
            judge(case, label, simulated, unknown, show=options.rows)
        except Exception as trouble:
            print(f"{label:44} RAISED {type(trouble).__name__}: {str(trouble)[:300]}", flush=True)
            if options.trace:
                traceback.print_exc()
        finally:
            signal.alarm(0)
    for title, counts in (("simulated, by models", simulated), ("unknown, by models", unknown)):
        print(f"\n{title}")
        for name, count in counts.most_common():
            print(f"{count:5} {name}")


def judge(case: Case, label: str, simulated: Counter[str], unknown: Counter[str], *, show: bool) -> None:
    """Print one model's row and count its operations."""
    torch.manual_seed(0)
    model, inputs = case.build()
    begin = time.perf_counter()
    forecast = tr.predict(model, inputs)
    seconds = time.perf_counter() - begin
    comparison = tr.compare(forecast, tr.measure(model, inputs))
    rows = [row for row in comparison.rows if not row.trivial]
    forward, backward = [], []
    for row in rows:
        ahead = error(row.predicted_std, row.measured_std)
        back = error(row.predicted_grad_rms, row.measured_grad_rms)
        forward += [] if ahead is None else [ahead]
        backward += [] if back is None else [back]
        if show:
            print_row(row, ahead, back)
    blind = sum(not finite(row.predicted_std) and bool(row.measured_std) for row in rows)
    deaf = sum(not finite(row.predicted_grad_rms) and bool(row.measured_grad_rms) for row in rows)
    ops = Counter(row.op for row in rows if row.simulated)
    share = 100 * sum(ops.values()) / max(len(rows), 1)
    first, second = quantiles(forward), quantiles(backward)
    print(
        f"{label:44} {len(rows):5} std {100 * first[0]:6.1f} {100 * first[1]:6.1f} grad {100 * second[0]:6.1f} "
        f"{100 * second[1]:6.1f} sim {share:4.1f}% none {blind:3} {deaf:3} {seconds:5.1f}s "
        f"{' '.join(f'{op}:{n}' for op, n in ops.items())}",
        flush=True,
    )
    simulated.update(ops.keys())
    for text in list(dict.fromkeys(comparison.unknown))[:3]:
        print(f"      {text[:200]}", flush=True)
    unknown.update({f"{entry.op}: {why}" for entry, why in forecast.unknown if why != "an input's law is unknown"})


def finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _late(number: int, frame: FrameType | None) -> None:
    raise TimeoutError("not done in time")


if __name__ == "__main__":
    main()
