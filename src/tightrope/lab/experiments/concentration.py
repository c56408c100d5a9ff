"""`concentration`: random directions in d dimensions are orthogonal to within 1 / sqrt(d), and vectors equally long.

Law         the cosine of two independent directions has the mean 0 and the variance 1 / d exactly; its square has a
            Beta(1/2, (d - 1)/2) law, which gives every tail. The norm of a standard normal vector has the mean sqrt(2)
            Gamma((d + 1)/2) / Gamma(d/2), about sqrt(d), and a variance that approaches 1/2 whatever d. A layer of ReLU
            maps the cosine c to (sqrt(1 - c^2) + c (pi - arccos c)) / pi: directions that were orthogonal become alike
            with depth.
Setting     rows of `nn.Embedding` at initialisation with d = 2 to 4,096; norms of the same rows; two inputs with a
            given cosine through 20 layers of 1,024 ReLU with weights of variance 2 / n, without biases.
Band        cosines and norms: none. Layers: three errors over nets, and L / n after L layers of n units for the bias of
            the cosine, a ratio of means over units: 0.02.
Reading     lines are laws, points measurements. Beyond a few dozen dimensions unrelated vectors are almost orthogonal;
            a deep stack of rectifiers undoes that, and the samples of a batch become indistinguishable
            (`rank-collapse`).
References  Vershynin (2018), High-dimensional probability, Cambridge; Cho, Saul (2009), Kernel methods for deep
            learning, NeurIPS; Daniely, Frostig, Singer (2016), Toward deeper understanding of neural networks, NeurIPS.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial

PRINCIPLES = ("P17",)
DIMENSIONS = (2, 4, 16, 64, 256, 1024, 4096)
STARTS = (-0.5, 0.0, 0.5)
DEPTH, WIDTH = 20, 1024
TAIL = 0.1
"""Cosine whose frequency is compared."""


def run(trial: Trial) -> Result:
    """Cosines and norms over the dimension, and the cosine along a stack of rectifiers."""
    seeds = trial.seeds(16, 48)
    drawn = [[_rows(d, seed) for d in DIMENSIONS] for seed in seeds]
    square, squares = _mean([[made[0] for made in row] for row in drawn])
    tail, tails = _mean([[made[1] for made in row] for row in drawn])
    norm, norms = _mean([[made[2] for made in row] for row in drawn])
    spread, spreads = _mean([[made[3] for made in row] for row in drawn])
    beyond = [_beyond(d) for d in DIMENSIONS]
    lengths = [_length(d) for d in DIMENSIONS]
    widths = [d - length**2 for d, length in zip(DIMENSIONS, lengths, strict=True)]
    at = [f"d = {d}" for d in DIMENSIONS]
    few = DIMENSIONS.index(256) + 1  # beyond, no cosine is that large
    claims = [
        Claim.curve("variance of the cosine times d", at, [1.0] * len(at),
                    [v * d for v, d in zip(square, DIMENSIONS, strict=True)],
                    [e * d for e, d in zip(squares, DIMENSIONS, strict=True)]),
        Claim.curve(f"share of cosines beyond {TAIL}", at[:few], beyond[:few], tail[:few], tails[:few]),
        Claim.curve("mean norm of a normal vector", at, lengths, norm, norms),
        Claim.curve("variance of its norm", at, widths, spread, spreads),
    ]  # fmt: skip
    layers, curves = _stacks(seeds[: trial.pick(10, 40)])
    share = list(DIMENSIONS)
    root = Series("1 / sqrt(d)", share, [1 / math.sqrt(d) for d in DIMENSIONS], kind="law")
    stds = [math.sqrt(v) for v in square]
    panels = (
        Panel("cosine of two directions", "dimension d", "std",
              (root, Series("1 / sqrt(d)", share, stds, [e / (2 * s) for e, s in zip(squares, stds, strict=True)])),
              True, True),
        Panel("norm of a normal vector", "dimension d", "std of the norm",
              (Series("norm", share, [math.sqrt(w) for w in widths], kind="law"),
               Series("norm", share, [math.sqrt(v) for v in spread],
                      [e / (2 * math.sqrt(v)) for e, v in zip(spreads, spread, strict=True)])), True),
        Panel("two samples in a stack of ReLU", "layer", "cosine", tuple(curves)),
    )  # fmt: skip
    return Result((*claims, *layers), panels, seeds)


def _mean(values: list[list[float]]) -> tuple[list[float], list[float]]:
    found = torch.tensor(values, dtype=torch.float64)
    return found.mean(0).tolist(), (found.std(0) / math.sqrt(len(found))).tolist()


def _rows(d: int, seed: int) -> tuple[float, float, float, float]:
    """Mean squared cosine, share of cosines beyond the tail, mean norm and its variance, of independent pairs."""
    torch.manual_seed(seed)
    pairs = min(max(2_000_000 // d, 1_000), 100_000)
    rows = nn.Embedding(2 * pairs, d).weight.detach().double()
    cosine = cosine_similarity(rows[:pairs], rows[pairs:])
    norm = rows.norm(dim=1)
    return (
        float(cosine.square().mean()),
        float((cosine.abs() > TAIL).double().mean()),
        float(norm.mean()),
        float(norm.var()),
    )


def _beyond(d: int) -> float:
    """Probability that the cosine of two directions is beyond the tail."""
    from scipy.special import betainc

    return float(1 - betainc(0.5, (d - 1) / 2, TAIL**2))


def _length(d: int) -> float:
    return math.sqrt(2) * math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2))


def _map(c: float) -> float:
    """The cosine after a wide layer of ReLU."""
    return (math.sqrt(max(1 - c * c, 0.0)) + c * (math.pi - math.acos(c))) / math.pi


def _stacks(seeds: tuple[int, ...]) -> tuple[list[Claim], list[Series]]:
    claims, curves = [], list[Series]()
    drawn = torch.stack([_alike(seed) for seed in seeds]).double()
    layers = list(range(DEPTH + 1))
    for i, start in enumerate(STARTS):
        law = [start]
        for _ in range(DEPTH):
            law.append(min(_map(law[-1]), 1.0))
        mean, error = _mean(drawn[:, i].tolist())
        text, name = f"cosine of two samples that start at {start:g}", f"from {start:g}"
        at = [f"layer {layer}" for layer in layers]
        claims.append(Claim.curve(text, at, law, mean, error, absolute=DEPTH / WIDTH))
        curves += [Series(name, layers, law, kind="law"), Series(name, layers[::2], mean[::2], error[::2])]
    return claims, curves


@torch.no_grad()
def _alike(seed: int) -> Tensor:
    """Cosine of the activations of one sample and of each other one, layer by layer; (starts, layers)."""
    torch.manual_seed(seed)
    x = torch.linalg.qr(torch.randn(WIDTH, 2)).Q.T
    others = [start * x[0] + math.sqrt(1 - start**2) * x[1] for start in STARTS]
    batch = torch.stack([x[0], *others]) * math.sqrt(WIDTH)
    found = [cosine_similarity(batch[:1], batch[1:])]
    for _ in range(DEPTH):
        layer = nn.Linear(WIDTH, WIDTH, bias=False)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        batch = torch.relu(layer(batch))
        found.append(cosine_similarity(batch[:1], batch[1:]))
    return torch.stack(found, 1)
