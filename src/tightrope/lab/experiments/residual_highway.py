"""`residual-highway`: with a skip variances add instead of multiplying, and a thousand layers train.

Law         y = x + F(x) with weights of mean zero has Var(y) = Var(x) + Var(F), forward, and E[g^2] (1 + E[F'^2])
            backward. Behind a norm each branch adds the same v: the variance after l layers is q_0 + l v. A branch that
            is scaled by 1 / sqrt(L) adds a share 1 / L of what there is, (1 + 1 / L)^l, at most e, to signal and
            gradient alike. Without the skip, at the variance 2 / n, the logarithm of a layer's variance moves by
            -5 / (2 n) a layer, exp(-78) in a thousand layers of 32: neither signal nor gradient arrives.
Setting     1000 layers of 32 units on scikit-learn's digits, each of them W relu(x): plain, with a skip and scaled by
            1 / sqrt(L), with a skip and behind a layer norm; energies over draws of all weights. Then 30 steps of
            gradient descent, plain and scaled.
Band        a unit's sign tells a little of its layer's size, 1 / n of the share that is active: 1 / 32 of the energy.
            The 5 / (2 n) of the plain net is the first term of a series: the next is of the order of 10 / n^2, 0.01.
Reading     lines are the law, points the mean over draws, of the plain net the typical one. Its loss stays at log 10.
References  He, Zhang, Ren and Sun (2016), Identity mappings in deep residual networks, ECCV; Zhang, Dauphin and Ma
            (2019), Fixup initialization, ICLR; Hanin and Nica (2020), Products of many large random matrices,
            Communications in Mathematical Physics 376.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial

PRINCIPLES = ("P26",)
DEPTH, WIDTH, BATCH = 1000, 32, 64
KINDS = {"plain": 1, "scaled skip": 6, "skip with norm": 3}
"""Forms, and for how many times as many draws their energies are asked."""
DRAWS, SAMPLES = 32, 8
"""Nets that are drawn at once, and digits that each of them reads."""
EVERY = 50
"""Layers between the points that are kept."""
STEPS, RATE = 30, 0.02


class Highway(nn.Module):
    """A thousand linear layers behind rectifiers, with or without a skip around each."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.last = nn.Linear(64, WIDTH, bias=False), nn.Linear(WIDTH, 10)
        self.layers = nn.ParameterList(torch.randn(WIDTH, WIDTH) * _std(kind) for _ in range(DEPTH))
        nn.init.normal_(self.first.weight, std=1 / 8)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        y = self.first(x)
        for weight in self.layers:
            y = _layer(self.kind, y, weight)
        logits: Tensor = self.last(y)
        return logits


def _std(kind: str) -> float:
    return math.sqrt(2 / WIDTH / (DEPTH if kind == "scaled skip" else 1))


def _layer(kind: str, x: Tensor, weight: Tensor) -> Tensor:
    inner = F.layer_norm(x, (WIDTH,)) if kind == "skip with norm" else x
    branch = inner.relu() @ weight
    return branch if kind == "plain" else x + branch


def run(trial: Trial) -> Result:
    """Variances along the three nets, forward and backward, and two trainings."""
    seeds, chunks = trial.seeds(2, 5), trial.pick(1, 4)
    x, y = _digits()
    found = {kind: torch.cat([_energies(kind, x, trial.seed + n) for n in range(chunks * times)], 1).transpose(0, 1)
             for kind, times in KINDS.items()}  # fmt: skip
    at = list(range(0, DEPTH + 1, EVERY))
    law = {
        "scaled skip": [(1 + 1 / DEPTH) ** n for n in at], "skip with norm": [1.0 + n for n in at],
        "plain": [math.exp(-2.5 / WIDTH * n) for n in at],
    }  # fmt: skip
    claims = []
    for kind in ("scaled skip", "skip with norm"):
        mean, error = _mean(found[kind][:, 0] / found[kind][:, 0, :1])
        claims.append(
            Claim.curve(f"variance over the first, {kind}, layer", at, law[kind], mean, error, within=1 / WIDTH)
        )
    mean, error = _mean(found["scaled skip"][:, 1] / found["scaled skip"][:, 1, -1:])
    back = law["scaled skip"][::-1]
    claims.append(Claim.curve("gradient over the last, scaled skip, layer", at, back, mean, error, within=1 / WIDTH))
    logs = (found["plain"][:, 0, -1] / found["plain"][:, 0, 0]).log() / DEPTH
    claims.append(Claim.equal("plain: logarithm of the variance, a layer", -2.5 / WIDTH, *_number(logs), absolute=0.01))
    losses = {kind: torch.stack([_train(kind, x, y, seed) for seed in seeds]) for kind in list(KINDS)[:2]}
    claims.append(
        Claim.equal("loss of the plain net at the end", math.log(10), *_number(losses["plain"][:, -1]), within=0.01)
    )
    claims.append(
        Claim.below("loss of the scaled net at the end", math.log(10) / 2, *_number(losses["scaled skip"][:, -1]))
    )
    return Result(tuple(claims), (*_panels(at, law, found), _loss(losses)), seeds)


def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.data, dtype=torch.float32)
    return (x - x.mean()) / x.std(), torch.tensor(data.target)


def _along(kind: str, energies: Tensor) -> Tensor:
    """Energies with those of the input set to 1: as a factor, or as a term behind a norm."""
    first = energies[:, :1]
    return energies - first + 1 if kind == "skip with norm" else energies / first


def _mean(table: Tensor) -> tuple[list[float], list[float]]:
    return table.mean(0).tolist(), (table.std(0) / math.sqrt(len(table))).tolist()


def _number(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def _energies(kind: str, x: Tensor, seed: int) -> Tensor:
    """Mean squares along nets, and those of the gradient of a random direction; shape (2, draws, layers kept)."""
    torch.manual_seed(seed)
    dtype = torch.float64 if kind == "plain" else torch.float32
    rows = x[torch.randint(len(x), (DRAWS, SAMPLES))].to(dtype)
    kept = [(rows @ torch.randn(DRAWS, 64, WIDTH, dtype=dtype) / 8).requires_grad_()]
    y = kept[0]
    for n in range(DEPTH):
        y = _layer(kind, y, torch.randn(DRAWS, WIDTH, WIDTH, dtype=dtype) * _std(kind))
        if (n + 1) % EVERY == 0:
            kept.append(y)
    gradients = torch.autograd.grad(y, kept, torch.randn_like(y))
    return torch.stack([torch.stack([v.detach().square().mean((1, 2)) for v in part], 1) for part in (kept, gradients)])


def _train(kind: str, x: Tensor, y: Tensor, seed: int) -> Tensor:
    """The loss at every step."""
    torch.manual_seed(seed)
    net = Highway(kind)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9)
    losses = list[Tensor]()
    for _ in range(STEPS):
        rows = torch.randint(len(y), (BATCH,))
        loss = F.cross_entropy(net(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def _panels(at: list[int], law: dict[str, list[float]], found: dict[str, Tensor]) -> list[Panel]:
    panels = []
    for side, title in enumerate(("signal", "gradient")):
        series = []
        for kind in KINDS:
            table = found[kind][:, side]
            table = table / table[:, -1:] if side else _along(kind, table)
            typical = table.log().mean(0).exp() if kind == "plain" else table.mean(0)
            line = law[kind] if side == 0 else law[kind][::-1]
            if side == 0 or kind != "skip with norm":
                series.append(Series(kind, at, line, kind="law"))
            series.append(Series(kind, at, typical.tolist()))
        panels.append(Panel(title, "layer", "mean square, first (last) layer = 1", tuple(series), log_y=True))
    close = []
    for side, title in enumerate(("signal", "gradient")):
        table = found["scaled skip"][:, side]
        line = law["scaled skip"][:: -1 if side else 1]
        close += [Series(title, at, line, kind="law"), Series(title, at, *_mean(table / table[:, -side].unsqueeze(1)))]
    return [*panels, Panel("scaled skip alone", "layer", "mean square", tuple(close))]


def _loss(losses: dict[str, Tensor]) -> Panel:
    steps = range(1, STEPS + 1)
    series = [Series(kind, steps, *_mean(table)) for kind, table in losses.items()]
    series.append(Series("log 10", (1, STEPS), (math.log(10),) * 2, kind="reference"))
    return Panel("1000 layers train", "step", "loss", tuple(series))
