"""What a product with the Hessian costs, and whether an eigenvalue is silently wrong: python benchmarks/curvature.py

Costs are multiples of a gradient, minima of runs in turn, one thread. The random cases compare `tr.curvature` with the
full Hessian in double precision, row by row (torch.func.hessian of torch 2.13 is 20 % off where there is a layer norm,
by differences of gradients), and with matrices whose spectrum is known: clusters, copies, indefinite, zero and of low
rank. Each full Hessian is held against a difference of gradients along a random vector. A case counts as silent when a
value that is called resolved is off by more than 1e-4 of itself, or when a bound does not hold.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp

import tightrope as tr
from tightrope.instruments.hessian import hessian, unflat

Data = tuple[Tensor, Tensor]
TOLERANCE = 1e-4


class Tokens(nn.Module):
    """A small transformer over 16 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True, norm_first=True)
        self.body, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x)).mean(1))


def mlp(act: type[nn.Module] = nn.ReLU) -> nn.Module:
    return nn.Sequential(nn.Linear(784, 256), act(), nn.Linear(256, 128), act(), nn.Linear(128, 10))


def deep() -> nn.Module:
    return nn.Sequential(*(m for _ in range(8) for m in (nn.Linear(256, 256), nn.ReLU())), nn.Linear(256, 10))


def pictures() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32, track_running_stats=False), nn.ReLU(),  # torch.func refuses to write running ones
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "MLP 784-256-128-10, 512 samples": (mlp, lambda: torch.randn(512, 784)),
    "MLP 9 x 256, 256 samples": (deep, lambda: torch.randn(256, 256)),
    "CNN with batch norm, 64 of 3x16x16": (pictures, lambda: torch.randn(64, 3, 16, 16)),
    "transformer 2 x 64, 32 of 16 tokens": (Tokens, lambda: torch.randint(50, (32, 16))),
}


def minima(actions: list[Callable[[], object]], rounds: int) -> list[float]:
    """Least processor time of each, in turn."""
    taken: list[list[float]] = [[] for _ in actions]
    for _ in range(rounds + 1):
        for seconds, action in zip(taken, actions, strict=True):
            begin = time.process_time()
            action()
            seconds.append(time.process_time() - begin)
    return [min(seconds[1:]) for seconds in taken]


def costs(name: str, rounds: int) -> tuple[float, list[float]]:
    """Milliseconds of a gradient, and the ways to a product in multiples of it."""
    torch.manual_seed(0)
    model, x = MODELS[name][0](), MODELS[name][1]()
    y = torch.randint(10, (len(x),))
    names, parameters = zip(*model.named_parameters(), strict=True)

    def gradient(graph: bool = False) -> tuple[Tensor, ...]:
        return torch.autograd.grad(F.cross_entropy(model(x), y), parameters, create_graph=graph)

    point = {n: p.detach() for n, p in zip(names, parameters, strict=True)}
    vector = torch.randn(sum(p.numel() for p in parameters))
    parts = unflat(vector, parameters)

    def of(point: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(model, point, (x,)), y)

    tangent = dict(zip(names, parts, strict=True))
    with (
        hessian(model, (x, y), F.cross_entropy) as second,
        hessian(model, (x, y), F.cross_entropy, "gauss-newton") as g,
    ):
        seconds = minima(
            [
                gradient,
                lambda: second(vector),
                lambda: torch.autograd.grad(gradient(True), parameters, parts),
                lambda: jvp(grad(of), (point,), (tangent,)),
                lambda: g(vector),
            ],
            rounds,
        )
    return 1e3 * seconds[0], [s / seconds[0] for s in seconds[1:]]


class Bowl(nn.Module):
    """w' A w / 2."""

    matrix: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.weight = nn.Parameter(torch.randn(len(matrix), dtype=matrix.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight @ self.matrix @ self.weight * x.mean() / 2


SPECTRA: dict[str, Callable[[np.random.Generator, int], object]] = {
    "normal": lambda g, n: g.normal(size=n),
    "negative": lambda g, n: -g.uniform(0.1, 1, size=n),
    "indefinite": lambda g, n: [
        *np.sort(g.uniform(1, 5, size=8)),
        *-g.uniform(5, 9, size=8),
        *g.normal(size=n - 16) / 9,
    ],
    "cluster 1e-6": lambda g, n: [*(3 + 1e-6 * g.normal(size=8)), *g.uniform(0, 2.9, size=n - 8)],
    "cluster 1e-4": lambda g, n: [*(3 + 1e-4 * g.normal(size=8)), *g.uniform(-2, 2.9, size=n - 8)],
    "cluster 1e-2": lambda g, n: [*(3 + 1e-2 * g.normal(size=8)), *g.uniform(-4, 2.9, size=n - 8)],
    "copies": lambda g, n: [*[4.0] * int(g.integers(2, 12)), *g.uniform(-1, 1, size=n - 12)],
    "two copies below": lambda g, n: [5, 4, 3, 3, 2, 2, *g.uniform(-1, 1, size=n - 6)],
    "identity": lambda g, n: np.ones(n),
    "zero": lambda g, n: np.zeros(n),
    "rank one": lambda g, n: [3.0],
    "low rank": lambda g, n: g.normal(size=7),
    "decay": lambda g, n: 0.8 ** np.arange(n),
    "power": lambda g, n: np.arange(1, n + 1.0) ** -1.5,
    "dense edge": lambda g, n: 1 - np.linspace(0, 1, n) ** 3,
}


def spectrum(name: str, seed: int) -> tuple[tr.Curvature, np.ndarray]:
    """A matrix of 300 to 900 rows, every other one in single precision."""
    chance = np.random.default_rng(seed)
    size, dtype = int(chance.integers(300, 900)), (torch.float64, torch.float32)[seed % 2]
    values = np.array([*np.asarray(SPECTRA[name](chance, size), dtype=float), *np.zeros(size)])[:size]
    basis = torch.linalg.qr(
        torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    ).Q
    model = Bowl(((basis * torch.as_tensor(values)) @ basis.T).to(dtype))
    return tr.curvature(model, torch.ones(1, dtype=dtype), probes=1, seed=seed), np.sort(values)[::-1]


ACTIVATIONS = (nn.Tanh, nn.ReLU, nn.GELU, nn.Softplus, nn.SiLU)


def net(seed: int) -> tuple[tr.Curvature, np.ndarray]:
    """A random net, some of it trained, against its full Hessian."""
    torch.manual_seed(seed)
    chance = np.random.default_rng(seed)
    widths = [int(w) for w in chance.integers(3, 14, size=int(chance.integers(3, 6)))]
    layers: list[nn.Module] = []
    for before, after in zip([20, *widths], widths, strict=False):
        layers += [nn.Linear(before, after), ACTIVATIONS[int(chance.integers(5))]()]
        layers += [nn.LayerNorm(after)] if chance.random() < 0.3 else []
    dtype = (torch.float32, torch.float64)[seed % 2]
    classes = int(chance.integers(2, 8))
    model = nn.Sequential(*layers, nn.Linear(widths[-1], classes)).to(dtype)
    x, y = torch.randn(32, 20, dtype=dtype), torch.randint(classes, (32,))
    loss = F.cross_entropy if chance.random() < 0.7 else partial(_squares, classes)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(int(chance.integers(0, 200))):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    found = tr.curvature(model, (x, y), loss=loss, probes=1, seed=seed)
    return found, full(copy.deepcopy(model).double(), (x.double(), y), loss)


def _squares(classes: int, output: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(output, F.one_hot(target, classes).to(output.dtype))


def full(model: nn.Module, data: Data, loss: Callable[[Tensor, Tensor], Tensor]) -> np.ndarray:
    """All eigenvalues, largest first, of the Hessian that torch makes row by row, differences of gradients agreeing."""
    names, parameters = zip(*((n, p.detach()) for n, p in model.named_parameters()), strict=True)

    def of(vector: Tensor) -> Tensor:
        return loss(
            functional_call(model, dict(zip(names, unflat(vector, parameters), strict=True)), (data[0],)), data[1]
        )

    point = torch.cat([p.reshape(-1) for p in parameters])
    made = torch.autograd.functional.hessian(of, point)
    along = 1e-6 * torch.randn_like(point) / math.sqrt(point.numel())
    ends = [torch.autograd.functional.jacobian(of, point + sign * along) for sign in (0.5, -0.5)]
    error = float((made @ along - (ends[0] - ends[1])).norm() / (made @ along).norm())
    assert error < 1e-4, f"the full Hessian is off by {error:.1g} from a difference of gradients"
    return np.linalg.eigvalsh(made.numpy())[::-1]


def judged(found: tr.Curvature, truth: np.ndarray) -> tuple[bool, float, int]:
    """Whether a case is silent, its largest relative error among the resolved, and how many are resolved."""
    truth = np.where(np.abs(truth) < 1e-13 * np.abs(truth).max(initial=0.0), 0.0, truth)
    off = np.abs(np.array(found.eigenvalues) - truth[: len(found.eigenvalues)])
    resolved = np.array(found.resolved)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(off > 0, off / np.abs(truth[: len(off)]), 0.0)
    held = (off <= np.array(found.errors) + 1e-13 * np.abs(truth).max()).all()
    below = found.smallest - truth[-1] <= found.smallest_error + 1e-13 * np.abs(truth).max()
    worst = float(relative[resolved].max(initial=0.0))
    return bool(worst > TOLERANCE or not held or not below), worst, int(resolved.sum())


def cases(console: Console, count: int) -> int:
    """Random cases, half of them nets; the number of silent ones."""
    table = Table(title=f"{count} random cases of top=5 against the whole spectrum")
    for column in ("case", "converged", "resolved", "largest relative error", "products", "silent errors"):
        table.add_column(column, justify="left" if column == "case" else "right")
    kinds = list(SPECTRA)
    rows: dict[str, list[tuple[bool, float, int, tr.Curvature]]] = {}
    for seed in range(count):
        name = "net" if seed % 2 else kinds[seed // 2 % len(kinds)]
        # the parity of the seed chooses the precision, so nets and spectra draw theirs from another number
        found, truth = net(seed // 2) if seed % 2 else spectrum(name, seed // 2)
        rows.setdefault(name, []).append((*judged(found, truth), found))
    for name, found_rows in rows.items():
        silent, worst, resolved, found_all = zip(*found_rows, strict=True)
        table.add_row(
            f"{len(silent)} x {name}", str(sum(f.converged for f in found_all)),
            f"{sum(resolved)} of {5 * len(silent)}",
            f"{max(worst):.1e}", f"{np.mean([f.products for f in found_all]):.0f}", str(sum(silent)),
        )  # fmt: skip
    console.print(table)
    total = sum(row[0] for found_rows in rows.values() for row in found_rows)
    console.print(f"{total} silent errors in {count}")
    return total


def large(console: Console) -> None:
    """Five eigenvalues of a net of 235146 parameters, at the start of training and after a while."""
    torch.manual_seed(0)
    model = mlp(nn.Tanh)
    x, y = torch.randn(512, 784), torch.randint(10, (512,))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for when in ("at the start", "after 50 steps"):
        begin = time.process_time()
        found = tr.curvature(model, (x, y), loss=F.cross_entropy, optimizer=optimizer)
        values = " ".join(f"{v:.5f}" for v in found.eigenvalues)
        console.print(
            f"MLP 784-256-128-10 {when}: {values} ± {max(found.errors):.0e}, converged {found.converged}, "
            f"{found.products} products, {time.process_time() - begin:.1f} s"
        )
        for _ in range(50):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cases", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=120)
    table = Table(title="A product in multiples of a gradient")
    for column in ("model", "gradient ms", "kept graph (used)", "fresh graph", "forward over reverse", "Gauss-Newton"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name in MODELS:
        gradient, ratios = costs(name, options.rounds)
        table.add_row(name, f"{gradient:.1f}", *(f"{ratio:.2f}" for ratio in ratios))
    console.print(table)
    large(console)
    raise SystemExit(1 if cases(console, options.cases) else 0)


if __name__ == "__main__":
    main()
