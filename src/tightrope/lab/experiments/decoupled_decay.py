"""`decoupled-decay`: before a normaliser weight decay sets how fast weights turn; inside Adam it is not decay at all.

Law         a normaliser after w makes the loss blind to |w|: L(c w) = L(w), and the gradient is across w and shrinks as
            1 / |w|. Noise makes |w| grow, decay makes it shrink, until both balance; from then on weights turn by a
            fixed angle a step: sqrt(2 lr d) with SGD, sqrt(2 lr d / (1 + m)) with momentum m, and with AdamW
            sqrt(2 lr d (1 - b) / (1 + b)). The balance has |w|^4 = lr g² / (2 d), the same over 1 - m, and
            |w|² = lr C / (2 d), with g the gradient's norm at |w| = 1 and C coordinates. L2 in Adam's gradient is
            divided by its scale s: coordinates decay at lr d / s, and their variance is lr s / (2 d) in place of
            AdamW's lr / (2 d).
Setting     torch's optimizers on 32 weights of 256 coordinates whose gradient is noise across w over |w|, lr 0.1 or
            0.001, decay such that lr d = 0.001; a linear layer before batch norm; for the last law, coordinates with
            gradients of scale 1 and 10.
Band        terms of lr d and 1 / C, and of Adam's estimate of the scale, 1 - b2 = 0.003: 1 % together. L2 in Adam
            adds d w to what the scale is taken of: 2 %.
Reading     decay there is no regulariser of size: lr d is the learning rate that counts. Doubling either speeds up all
            turning. L2 in Adam spares what has large gradients; decoupled decay does not see them.
References  Van Laarhoven (2017), L2 regularization versus batch and weight normalization; Wan et al. (2021), Spherical
            motion dynamics, NeurIPS; Kosson, Messmer, Jaggi (2024), Rotational equilibrium, ICML; Loshchilov, Hutter
            (2019), Decoupled weight decay regularization, ICLR.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial

PRINCIPLES = ("P14",)
ROWS, SIZE = 32, 256
RATE, SLOW, PRODUCT = 0.1, 1e-3, 1e-3
"""Rate of SGD, of Adam, and rate times decay."""
MOMENTUM, BETA, SECOND = 0.9, 0.9, 0.997
Maker = Callable[[list[Tensor]], torch.optim.Optimizer]
DECAY = PRODUCT / RATE
ACROSS = SIZE - 1
"""Squared norm of the gradient at |w| = 1: unit noise without its part along w."""


def run(trial: Trial) -> Result:
    """Angles a step and norms of three optimizers, the gradient's scale, and L2 in Adam beside AdamW."""
    steps = trial.pick(5000, 30_000)
    half = PRODUCT * 2
    laws: dict[str, tuple[Maker, float, float]] = {
        "SGD": (lambda w: torch.optim.SGD(w, RATE, weight_decay=DECAY), math.sqrt(half),
                (RATE * ACROSS / (2 * DECAY)) ** 0.25),
        "momentum": (lambda w: torch.optim.SGD(w, RATE, MOMENTUM, weight_decay=DECAY), math.sqrt(half / (1 + MOMENTUM)),
                     (RATE * ACROSS / (2 * DECAY * (1 - MOMENTUM))) ** 0.25),
        "AdamW": (lambda w: torch.optim.AdamW(w, SLOW, (BETA, SECOND), weight_decay=PRODUCT / SLOW),
                  math.sqrt(half * (1 - BETA) / (1 + BETA)), math.sqrt(SLOW * SIZE / (2 * PRODUCT / SLOW))),
    }  # fmt: skip
    claims, norms, angles = [], list[Series](), list[Series]()
    for name, (maker, angle, norm) in laws.items():
        start = 1.3 if name == "SGD" else 0.8
        turned, sizes = _turning(maker, start * norm, steps, trial.seed)
        late = slice(len(sizes) * 2 // 3, None)
        pairs = (("angle a step", angle, turned[late]), ("norm", norm, sizes[late]))
        for text, law, found in pairs:
            rows = found.mean(0)
            error = float(rows.std() / math.sqrt(ROWS))
            claims.append(Claim.equal(f"{text}, {name}", law, float(rows.mean()), error, within=0.01))
        shown = range(0, len(sizes), max(len(sizes) // 20, 1))
        x = [10 * i for i in shown]
        norms += [
            Series(name, x, [1.0] * len(x), kind="law"),
            Series(name, x, [float(sizes[i].mean()) / norm for i in shown]),
        ]
        angles += [
            Series(name, x, [angle] * len(x), kind="law"),
            Series(name, x, [float(turned[i].mean()) for i in shown]),
        ]
    claims += [_invariance(), *_coordinates(trial)]
    panels = (
        Panel("weights come to one norm", "step", "norm over that of the law", tuple(norms)),
        Panel("and turn by one angle", "step", "radians a step", tuple(angles), log_y=True),
    )
    return Result(tuple(claims), panels, (trial.seed,))


def _turning(maker: Maker, norm: float, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    """Angle of a step and norm of each weight, every tenth step; shape (looks, weights)."""
    torch.manual_seed(seed)
    w = F.normalize(torch.randn(ROWS, SIZE, dtype=torch.float64), dim=1) * norm
    w.requires_grad_()
    optimizer = maker([w])
    angles, norms = [], []
    for step in range(steps):
        with torch.no_grad():
            size = w.norm(dim=1, keepdim=True)
            noise = torch.randn_like(w)
            w.grad = (noise - (noise * w).sum(1, keepdim=True) * w / size**2) / size
            before = w.detach().clone()
        optimizer.step()
        if step % 10 == 0:
            with torch.no_grad():
                a, b = F.normalize(before, dim=1), F.normalize(w, dim=1)
                angles.append(2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1)))
                norms.append(size[:, 0])
    return torch.stack(angles), torch.stack(norms)


def _invariance() -> Claim:
    """The gradient behind a normaliser falls as the weight's norm grows."""
    x, y = torch.randn(64, 20, dtype=torch.float64), torch.randn(64, 8, dtype=torch.float64)
    weight = torch.randn(8, 20, dtype=torch.float64)
    sizes = []
    for scale in (1.0, 7.0):
        w = (scale * weight).requires_grad_()
        z = F.linear(x, w)
        loss = F.mse_loss(torch.relu((z - z.mean(0)) / z.std(0, correction=0)), y)
        sizes.append(float(torch.autograd.grad(loss, w)[0].norm()))
    return Claim.equal(
        "gradient before a normaliser with seven times the weights", 1 / 7, sizes[1] / sizes[0], within=1e-9
    )


def _coordinates(trial: Trial) -> tuple[Claim, Claim]:
    """Variance of coordinates with gradients ten times as large over that of the others."""
    claims = []
    makers: tuple[tuple[str, float, type[torch.optim.Adam]], ...] = (
        ("L2 in Adam", 10.0, torch.optim.Adam), ("AdamW", 1.0, torch.optim.AdamW),
    )  # fmt: skip
    rate, decay, count = 5e-3, 0.2, 5000
    for name, law, kind in makers:
        torch.manual_seed(trial.seed)
        w = torch.zeros(2, count, requires_grad=True)
        scale = torch.tensor([[1.0], [10.0]])
        # L2 of ten units: the decay of the large coordinates is a tenth of it, and has its time too
        optimizer = kind([w], rate, (BETA, SECOND), weight_decay=decay * (10 if kind is torch.optim.Adam else 1))
        squares = []
        for step in range(trial.pick(4501, 20_001)):
            w.grad = scale * torch.randn_like(w)
            optimizer.step()
            if step > 3000 and step % 500 == 0:
                squares.append(w.detach().double().square())
        # over time and within 25 groups of coordinates, which are independent
        small, large = torch.stack(squares).mean(0).view(2, 25, -1).mean(2)
        ratio = float(large.mean() / small.mean())
        error = ratio * float((large / large.mean() - small / small.mean()).std()) / 5
        claims.append(Claim.equal(f"variance where gradients are 10 times as large, over the others', {name}", law,
                                  ratio, error, within=0.02))  # fmt: skip
    return claims[0], claims[1]
