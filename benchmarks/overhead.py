"""What a recorded step costs beside a plain one: python benchmarks/overhead.py

Recording alone, with every law measured, and predicting from the recording, per model; medians of runs in turn, one
thread.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import torch
from models import Case, cases
from rich.console import Console
from rich.table import Table

from tightrope.inputs import arguments
from tightrope.measure import Meter
from tightrope.predict import forecast
from tightrope.step import record, trace
from tightrope.tape import Recorder

JUDGED = ("noise: resnet18", "noise: resnet50", "vit_tiny", "language: gpt2", "mlp: 10 x relu", "recurrent: LSTM")


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


def actions(case: Case) -> list[Callable[[], object]]:
    """A forward, a plain step, a recorded one, a measured one and a forecast of the recorded one, of one model."""
    torch.manual_seed(0)
    model, inputs = case.build()
    args, kwargs = arguments(model, inputs)

    def plain() -> None:
        output = model(*args, **kwargs)
        own = getattr(output, "loss", None)
        (own if own is not None else output.sum()).backward()
        model.zero_grad()

    def forward() -> None:
        with torch.no_grad():
            model(*args, **kwargs)

    tape = trace(model, inputs)
    return [
        forward,
        plain,
        lambda: record(model, args, kwargs, None, Recorder(roots={"": model})),
        lambda: record(model, args, kwargs, None, Recorder(Meter(), roots={"": model})),
        lambda: forecast(tape),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=JUDGED, help="parts of 'group: model'")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(title="Seconds, and multiples of a plain step (of a forward for the prediction)")
    for column in ("model", "forward", "plain step", "recorded", "measured", "predicted"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name in options.names:
        case = next(case for case in cases() if name in f"{case.group}: {case.name}")
        forward, plain, *rest, predicted = medians(actions(case))
        recorded = (f"{seconds:.3f} ({seconds / plain:.1f}x)" for seconds in rest)
        table.add_row(
            case.name, f"{forward:.3f}", f"{plain:.3f}", *recorded,
            f"{predicted:.3f} ({predicted / forward:.1f}x)",
        )  # fmt: skip
    console = Console(width=110)
    console.print(table)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    console.print(f"peak resident memory {peak:.0f} MiB")


if __name__ == "__main__":
    main()
