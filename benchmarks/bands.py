"""How many measured laws lie inside the 90 % bands of theory.

    python benchmarks/bands.py [--seeds 20] [--size 64] [part of a model ...]

For each model two rows: the forecast from its actual weights, where the drawn batch alone is left to chance, and the
forecast from the laws of its initialisers, where the drawn weights are too. Printed are the share of non-trivial
results whose std, and whose gradient's rms, lies inside the band, and the rms of z (1 when calibrated).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from models import Case, cases

import tightrope as tr
from tightrope.compare import BAND
from tightrope.tape.initialisers import remember

MODELS = (
    "mlp: 10 x relu",
    "mlp: 10 x tanh",
    "mlp: 10 x gelu",
    "mlp: 10 x sigmoid",
    "mlp: 10 x selu ln",
    "resnet18",
    "gpt2",
)
"""Cases whose 'group: model' ends in one of these."""


def z_scores(case: Case, seeds: int, forecast: tr.Forecast | None) -> tuple[list[float], list[float]]:
    """z of every non-trivial result and of its gradient, over draws of weights and batch.

    Args:
        case: a model and a batch.
        seeds: number of draws.
        forecast: of all draws; None: each draw's own.
    """
    forward: list[float] = []
    backward: list[float] = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        model, inputs = case.build()
        comparison = tr.compare(forecast or tr.predict(model, inputs), tr.measure(model, inputs))
        rows = [row for row in comparison.rows if not row.trivial]
        forward += [row.z for row in rows if row.z is not None]
        backward += [row.grad_z for row in rows if row.grad_z is not None]
    return forward, backward


def abstract(case: Case) -> tr.Forecast:
    """The forecast from the laws of the initialisers; the batch is real."""
    torch.manual_seed(0)
    _, inputs = case.build()
    with remember(), torch.device("meta"):
        model, _ = case.build()
    return tr.predict(model, inputs)


def line(z: list[float]) -> str:
    sizes = np.abs(z)
    if not len(sizes):
        return f"{'-':>7} {'-':>7}"
    return f"{100 * np.mean(sizes < BAND):7.1f} {np.sqrt(np.mean(np.minimum(sizes, 99) ** 2)):7.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="ends of 'group: model'")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--size", type=int, default=64, help="edge of the convolutional nets' pictures")
    options = parser.parse_args()
    print(f"{'model':28} {'weights':10} {'std %':>7} {'z rms':>7} {'grad %':>7} {'z rms':>7}")
    modes: dict[str, Callable[[Case], Any]] = {"actual": lambda case: None, "by law": abstract}
    pooled: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in modes}
    for case in cases(options.size):
        if not f"{case.group}: {case.name}".endswith(tuple(options.names) or MODELS) or "pictures" in case.group:
            continue
        for name, forecast in modes.items():
            try:
                forward, backward = z_scores(case, options.seeds, forecast(case))
            except (tr.TightropeError, RuntimeError, NotImplementedError) as trouble:
                print(f"{case.name:28} {name:10} {str(trouble).splitlines()[0]}", file=sys.stderr, flush=True)
                continue
            print(f"{case.name:28} {name:10} {line(forward)} {line(backward)}", flush=True)
            pooled[name][0].extend(forward)
            pooled[name][1].extend(backward)
    for name, (forward, backward) in pooled.items():
        print(f"{'all':28} {name:10} {line(forward)} {line(backward)}", flush=True)


if __name__ == "__main__":
    main()
