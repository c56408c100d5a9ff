"""What a recorded step costs beside a plain one: python benchmarks/overhead.py

Recording alone, with every law measured, and predicting, per model; medians of runs in turn, one thread.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable

import torch
from models import MAIN
from rich.console import Console
from rich.table import Table

import tightrope as tr
from tightrope.inputs import arguments
from tightrope.measure import Meter
from tightrope.step import record
from tightrope.tape import Recorder


def medians(actions: list[Callable[[], object]], rounds: int = 5) -> list[float]:
    taken: list[list[float]] = [[] for _ in actions]
    for action in actions:
        action()
    for _ in range(rounds):
        for seconds, action in zip(taken, actions, strict=True):
            begin = time.perf_counter()
            action()
            seconds.append(time.perf_counter() - begin)
    return [statistics.median(seconds) for seconds in taken]


def actions(name: str) -> list[Callable[[], object]]:
    """A plain step, a recorded one, a measured one and a forecast of one model."""
    torch.manual_seed(0)
    model, inputs = MAIN[name]()
    args, kwargs = arguments(model, inputs)

    def plain() -> None:
        output = model(*args, **kwargs)
        own = getattr(output, "loss", None)
        (own if own is not None else output.sum()).backward()
        model.zero_grad()

    return [
        plain,
        lambda: record(model, args, kwargs, None, Recorder(roots={"": model})),
        lambda: record(model, args, kwargs, None, Recorder(Meter(), roots={"": model})),
        lambda: tr.predict(model, inputs),
    ]


def main() -> None:
    torch.set_num_threads(1)
    table = Table(title="Seconds, and multiples of a plain step")
    for column in ("model", "plain step", "recorded", "measured", "predicted"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name in MAIN:
        plain, *rest = medians(actions(name))
        table.add_row(name, f"{plain:.3f}", *(f"{seconds:.3f} ({seconds / plain:.1f}x)" for seconds in rest))
    console = Console(width=110)
    console.print(table)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    console.print(f"peak resident memory {peak:.0f} MiB")


if __name__ == "__main__":
    main()
