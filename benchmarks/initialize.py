"""Training from weights that `initialize` solved, beside PyTorch's default and LSUV, on scikit-learn's digits.

    python benchmarks/initialize.py [--seeds 3] [--steps 150] [--width 64] [case ...]

Cases: `mlp-ACTIVATION` (50 hidden layers, no normaliser), `residual` (50 blocks of two layers, no normaliser) and `cnn`
(34 convolutions, no normaliser). Prints, for each method at the learning rate that suits it best among the same few,
the number of Adam steps until the running loss is below half of ln 10 (mean and standard deviation over seeds of
weights and batches; a run that never gets there counts as all its steps), the loss of the first step, and the
seconds that the start took.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import tightrope as tr

GOAL = math.log(10) / 2
RATES = (1e-4, 3e-4, 1e-3)
RUNNING = 5
ACTIVATIONS = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "selu": nn.SELU,
}
CASES = (*(f"mlp-{name}" for name in ACTIVATIONS), "residual", "cnn")


def digits() -> tuple[Tensor, Tensor]:
    """Standardised images, (sample, 64), and their classes."""
    data = load_digits()
    x = torch.tensor(data.data, dtype=torch.float32)
    x = (x - x.mean(0)) / (x.std(0) + 1e-2)
    return x / x.std(), torch.tensor(data.target)


# -- nets ----------------------------------------------------------------------------------------


def plain(activation: type[nn.Module], depth: int, width: int) -> nn.Module:
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(64 if i == 0 else width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


class Residual(nn.Module):
    """x + f(x), block after block."""

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Linear(64, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(blocks)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def convolutions(depth: int, channels: int) -> nn.Module:
    """Three stages of 3 x 3 convolutions and ReLUs, at 8, 4 and 2 pixels."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
    for i in range(depth):
        stride = 2 if i in (depth // 3, 2 * depth // 3) else 1
        layers += [nn.Conv2d(1 if i == 0 else channels, channels, 3, stride, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * channels, 10))


def build(case: str, width: int) -> nn.Module:
    if case == "residual":
        return Residual(50, width)
    if case == "cnn":
        return convolutions(34, max(width // 4, 8))
    return plain(ACTIVATIONS[case.removeprefix("mlp-")], 50, width)


# -- starts --------------------------------------------------------------------------------------


def default(model: nn.Module, x: Tensor, seed: int) -> None:
    """As PyTorch draws it."""


def solved(model: nn.Module, x: Tensor, seed: int) -> None:
    tr.initialize(model, x, seed=seed)


def lsuv(model: nn.Module, x: Tensor, seed: int, tolerance: float = 0.1, trials: int = 10) -> None:
    """Layer-sequential unit variance: orthonormal weights, then each layer's output scaled to unit variance on data.

    Mishkin and Matas, All you need is a good init (2016), algorithm 1.
    """
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    with torch.no_grad():
        for layer in layers:
            nn.init.orthogonal_(layer.weight)
            assert layer.bias is not None
            layer.bias.zero_()
        for layer in layers:
            found: list[Tensor] = []
            hook = layer.register_forward_hook(lambda _, __, y, found=found: found.append(y))
            for _ in range(trials):
                found.clear()
                model(x)
                variance = float(found[0].var())
                if abs(variance - 1) < tolerance or variance <= 0:
                    break
                layer.weight /= math.sqrt(variance)
            hook.remove()


STARTS: dict[str, Callable[[nn.Module, Tensor, int], None]] = {"default": default, "lsuv": lsuv, "solved": solved}


# -- runs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """Steps until the goal (all of them if never), whether it was reached, the first loss, seconds of the start."""

    steps: int
    reached: bool
    first: float
    seconds: float


def train(case: str, method: str, seed: int, rate: float, options: argparse.Namespace, x: Tensor, y: Tensor) -> Run:
    """Train until the running loss is below the goal."""
    torch.manual_seed(seed)
    model = build(case, options.width)
    begin = time.perf_counter()
    STARTS[method](model, x[: options.batch], seed)
    seconds = time.perf_counter() - begin
    optimizer = torch.optim.Adam(model.parameters(), rate, foreach=True)
    order = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    for step in range(options.steps):
        rows = torch.randint(len(x), (options.batch,), generator=order)
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            break
        if step >= RUNNING and statistics.fmean(losses[-RUNNING:]) < GOAL:
            return Run(step + 1, True, losses[0], seconds)
    return Run(options.steps, False, losses[0], seconds)


def row(case: str, method: str, options: argparse.Namespace, x: Tensor, y: Tensor) -> str:
    """The best of the learning rates, by the mean number of steps."""
    runs = {r: [train(case, method, s, r, options, x, y) for s in range(options.seeds)] for r in options.rates}
    rate = min(runs, key=lambda r: statistics.fmean(run.steps for run in runs[r]))
    best = runs[rate]
    steps = [run.steps for run in best]
    count = sum(run.reached for run in best)
    spread = statistics.stdev(steps) if len(steps) > 1 else 0.0
    return (
        f"{case:12} {method:8} {rate:6.0e} {count:>3}/{len(best)} {statistics.fmean(steps):7.1f} {spread:6.1f}"
        f" {statistics.fmean(run.first for run in best):8.3g} {statistics.fmean(run.seconds for run in best):7.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="case", help=f"some of {', '.join(CASES)}; none: all")
    parser.add_argument("--methods", nargs="+", default=list(STARTS), choices=list(STARTS))
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    x, y = digits()
    print(
        f"Adam steps until the running loss is below {GOAL:.2f}; width {options.width}, {options.steps} steps at most"
    )
    print(f"{'case':12} {'weights':8} {'rate':>6} {'got':>5} {'steps':>7} {'+-':>6} {'first':>8} {'start s':>7}")
    for case in options.cases or CASES:
        for method in options.methods:
            print(row(case, method, options, x, y), flush=True)


if __name__ == "__main__":
    main()
