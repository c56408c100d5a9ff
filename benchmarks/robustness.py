"""Whether a bound is ever wrong, and what the numbers cost: python benchmarks/robustness.py

Random nets (plain, residual, normalised, convolutional; ten activations, both precisions) are searched for a slope that
exceeds a bound: by the instrument's own search, by the exact Jacobian at the samples, and by pairs of points inside the
local balls. LipSDP is compared with the norm of the product for positive weights, where that is the constant, and with
what a search finds. Ratios are of processor time, minima of runs in turn.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import tightrope as tr
from tightrope.instruments.robustness.lipsdp import lipsdp

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from instruments.test_robustness import random_net


def minima(actions: list[Callable[[], object]], rounds: int) -> list[float]:
    """Least processor time of each, in turn."""
    taken: list[list[float]] = [[] for _ in actions]
    for _ in range(rounds):
        for seconds, action in zip(taken, actions, strict=True):
            begin = time.process_time()
            action()
            seconds.append(time.process_time() - begin)
    return [min(seconds) for seconds in taken]


def invariants(console: Console, count: int) -> int:
    """How often a bound was exceeded, and how tight bounds are."""
    wrong, unknown, gaps, gains, locals_ = 0, 0, [], [], []
    for seed in range(count):
        model, x = random_net(seed)
        found = tr.robustness.lipschitz_bound(model, x, eps=0.05, sdp=seed % 4 == 0, rounds=2, seed=seed)
        if found.upper is None or found.local is None or found.product is None:
            unknown += 1
            continue
        model.eval()
        slopes = tr.robustness.jacobian_norms(model, x).values
        off = torch.randn_like(x)
        off = 0.05 * off / off.flatten(1).norm(dim=1).view(-1, *[1] * (x.dim() - 1))
        moved = (model(x + off) - model(x - off)).detach().double().norm(dim=1) / 0.1
        slack = 1 + 1e3 * torch.finfo(x.dtype).eps
        size = float(model(x).detach().abs().max()) * torch.finfo(x.dtype).eps * 100
        wrong += found.lower > found.upper
        wrong += bool((slopes > found.local * slack).any())
        wrong += bool((moved > found.local * slack + size).any())
        gaps.append(found.upper / max(found.lower, 1e-30))
        locals_.append(float((found.local / slopes.clamp(min=1e-30)).median()))
        if found.sdp is not None:
            gains.append(found.product / found.sdp)
            wrong += found.sdp > found.product * (1 + 1e-6)
    console.print(
        f"{count} random nets: {wrong} bounds exceeded, {unknown} without a bound; upper over lower "
        f"{np.median(gaps):.2f} (median), local bound at radius 0.05 over the Jacobian's norm "
        f"{np.median(locals_):.2f}, product over LipSDP {np.median(gains):.2f} in {len(gains)} nets"
    )
    return wrong


def semidefinite(console: Console) -> None:
    chance = np.random.default_rng(0)
    table = Table(title="LipSDP")
    for column in ("net", "bound", "largest slope known", "product", "s"):
        table.add_column(column, justify="left" if column == "net" else "right")
    widths = (2, 10, 30, 20, 2)
    weights = [chance.random((b, a)) / 2 for a, b in itertools.pairwise(widths)]
    truth = float(np.linalg.norm(np.linalg.multi_dot(weights[::-1]), 2))
    rows = [("2-10-30-20-2, positive weights", weights, truth)]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, 10))
    lower = tr.robustness.lipschitz_bound(model, torch.randn(128, 784), rounds=20).lower
    rows.append(
        ("784-50-10, torch's initialisation", [model[i].weight.detach().double().numpy() for i in (0, 2)], lower)
    )
    for name, matrices, known in rows:
        begin = time.process_time()
        bound = lipsdp([torch.tensor(w) for w in matrices], [(0.0, 1.0)] * (len(matrices) - 1))
        seconds = time.process_time() - begin
        product = float(np.prod([np.linalg.norm(w, 2) for w in matrices]))
        table.add_row(name, f"{bound:.5f}", f"{known:.5f}", f"{product:.3f}", f"{seconds:.2f}")
    console.print(table)


def jacobians(console: Console, rounds: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    x = torch.randn(256, 784)

    def whole() -> Tensor:
        return torch.linalg.svdvals(torch.func.vmap(torch.func.jacrev(model))(x).detach())[:, 0]

    ours, theirs = minima([lambda: tr.robustness.jacobian_norms(model, x), whole], rounds)
    found = tr.robustness.jacobian_norms(model, x)
    off = float(((found.values - whole()) / found.values).abs().max())
    product = tr.robustness.lipschitz_bound(model, x[:8], rounds=0).product
    console.print(
        f"Jacobian norms of 784-512-512-10, 256 samples: {ours:.3f} s, {theirs / ours:.1f} times as fast as "
        f"vmap(jacrev) and svd, {off:.0e} off; mean {found.mean.value:.4f}, sd {found.sd.value:.4f}, largest "
        f"{found.largest:.4f}, product bound {product:.4f}"
    )


def attacks(console: Console) -> None:
    """Against the closed form: the distance of a sample to a linear classifier's boundary."""
    torch.manual_seed(0)
    model = nn.Linear(50, 2).double()
    x = torch.randn(500, 50).double()
    y = model(x).argmax(1)
    w, b = model.weight[1] - model.weight[0], model.bias[1] - model.bias[0]
    for norm, length in (("2", w.norm()), ("inf", w.abs().sum())):
        truth = ((x @ w + b).abs() / length).detach()
        eps = float(truth.median())
        begin = time.process_time()
        found = tr.robustness.attack(model, (x, y), eps=eps, norm=norm)  # type: ignore[arg-type]
        seconds = time.process_time() - begin
        reached = truth < eps
        off = float((found.distances[reached] - truth[reached]).abs().max()) / eps
        console.print(
            f"PGD, norm {norm}: {found.robust.value:.4f} right, exactly {float((~reached).double().mean()):.4f}; "
            f"distances {off:.1e} of the radius off at most, {seconds:.2f} s"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=120)
    jacobians(console, options.rounds)
    semidefinite(console)
    attacks(console)
    raise SystemExit(1 if invariants(console, options.nets) else 0)


if __name__ == "__main__":
    main()
