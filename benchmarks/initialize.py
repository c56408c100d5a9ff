"""Training from weights that `initialize` solved, beside PyTorch's default, on scikit-learn's digits.

    python benchmarks/initialize.py [--depth 30] [--steps 100]

prints, for deep plain nets of several activations, the loss of the first step, the number of Adam steps until the
running loss is below half of ln 10, the running loss of the last step, and the seconds that the solution took.
"""

from __future__ import annotations

import argparse
import math
import time

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import tightrope as tr

GOAL = math.log(10) / 2
RATES = (3e-4, 1e-3)
ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid, nn.SELU, nn.SiLU)


def digits() -> tuple[Tensor, Tensor]:
    """Standardised images, one row each, and their classes."""
    data = load_digits()
    x = torch.tensor(data.data, dtype=torch.float32)
    x = (x - x.mean(0)) / (x.std(0) + 1e-2)
    return x / x.std(), torch.tensor(data.target)


def net(activation: type[nn.Module], depth: int, width: int = 128) -> nn.Sequential:
    """A plain net with `depth` hidden layers, as PyTorch draws it."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(64 if i == 0 else width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def train(model: nn.Module, x: Tensor, y: Tensor, steps: int, rate: float) -> list[float]:
    """Loss of each of `steps` steps of Adam, averaged over the last ten."""
    optimizer = torch.optim.Adam(model.parameters(), rate)
    order = torch.Generator().manual_seed(1)
    losses: list[float] = []
    for _ in range(steps):
        rows = torch.randint(len(x), (128,), generator=order)
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return [sum(losses[max(0, i - 9) : i + 1]) / len(losses[max(0, i - 9) : i + 1]) for i in range(steps)]


def row(activation: type[nn.Module], depth: int, steps: int, *, solved: bool, x: Tensor, y: Tensor) -> str:
    """The best of several learning rates, by the mean loss of the run; both starts may choose."""
    runs, seconds = {}, 0.0
    for rate in RATES:
        torch.manual_seed(0)
        model = net(activation, depth)
        if solved:
            begin = time.perf_counter()
            tr.initialize(model, x[:128])
            seconds = time.perf_counter() - begin
        runs[rate] = train(model, x, y, steps, rate)
    rate = min(runs, key=lambda r: sum(runs[r]))
    losses = runs[rate]
    reached = next((str(i + 1) for i, loss in enumerate(losses) if loss < GOAL), "never")
    name = f"{activation.__name__:8} {'solved' if solved else 'default':8}"
    return f"{name} {rate:6.0e} {losses[0]:7.3f} {reached:>6} {losses[-1]:7.3f} {seconds:8.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, default=30)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--only", default="", help="one activation")
    options = parser.parse_args()
    torch.set_num_threads(1)
    x, y = digits()
    print(f"{options.depth} hidden layers of 128; steps until the loss is below {GOAL:.2f}")
    print(f"{'':8} {'weights':8} {'rate':>6} {'first':>7} {'steps':>6} {'last':>7} {'solve s':>8}")
    for activation in ACTIVATIONS:
        if options.only.lower() in activation.__name__.lower():
            for solved in (False, True):
                print(row(activation, options.depth, options.steps, solved=solved, x=x, y=y), flush=True)


if __name__ == "__main__":
    main()
