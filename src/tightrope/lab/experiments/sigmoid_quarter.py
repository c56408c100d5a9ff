"""`sigmoid-quarter`: a sigmoid layer passes at most a quarter of its weights' norm of a gradient, and less on average.

Law         f' = f (1 - f) <= 1/4, with equality at zero alone, so L layers pass at most 4^-L prod ||W|| of a gradient.
            The average is smaller: the mean square of a gradient is multiplied by n Var(w) E[f'(z)^2] in every layer,
            and z is normal with variance n Var(w) E[f(z)^2]. At Xavier's variance of 1/n that is a factor of 0.236 of
            the gradient a layer, at sixteen times the variance one of 0.63: larger weights saturate more units, and the
            gain grows only as the fourth root of their variance.
Setting     stacks of 12 layers of 256 sigmoid units without bias on standard normal inputs; variances of 1/4 to 256
            times Xavier's. The line is the recursion of z's variance by quadrature, the points are gradients of drawn
            stacks, and the bound is made of the spectral norms of the drawn weights.
Band        z is normal, and its neighbours are independent, up to terms of the order 1/n: L/n = 5 % of the logarithm of
            the mean square over all layers, 0.4 % a layer.
Reading     sigmoid needs a hundred times Xavier's variance to pass a gradient on, and then by few units that are not
            saturated; ReLU beside it passes all at twice Xavier's variance.
References  Hochreiter (1998), The vanishing gradient problem during learning recurrent neural nets and problem
            solutions, Int. J. Uncertainty, Fuzziness and Knowledge-Based Systems 6; Glorot and Bengio (2010),
            Understanding the difficulty of training deep feedforward neural networks, AISTATS.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial

PRINCIPLES = ("P24",)
WIDTH, DEPTH, BATCH = 256, 12, 8
SCALES = (0.25, 1.0, 4.0, 16.0, 64.0, 256.0)
"""Variance of a weight in units of 1/n."""


def run(trial: Trial) -> Result:
    """Gains of the gradient by depth and by the weights' scale, beside the law and the bound."""
    seeds = trial.seeds(16, 96)
    law = {scale: _law(scale) for scale in SCALES}
    found = {scale: [_stack(scale, seed) for seed in seeds] for scale in SCALES}
    gains = {scale: torch.stack([gain for gain, _ in found[scale]]) for scale in SCALES}
    claims = [
        Claim.below("largest slope of sigmoid", 0.25, float(_slope(torch.linspace(-9, 9, 20001).double()).max())),
        Claim.equal("slope of sigmoid at zero", 0.25, float(_slope(torch.zeros(1).double()))),
        _whole(law, gains),
        Claim.below(
            "a drawn stack's gain over its bound, the largest",
            1.0, max(float((gain[-1] / bound[-1]).max()) for pairs in found.values() for gain, bound in pairs),
        ),
    ]  # fmt: skip
    mean = gains[1.0].square().mean((0, 2))
    per = float((mean[-2] / mean[1]).log()) / (2 * (DEPTH - 3))  # the first layer's input is no sigmoid's output
    spread = (gains[1.0][:, -2].square().mean(1) / gains[1.0][:, 1].square().mean(1)).log()
    error = float(spread.std()) / math.sqrt(len(seeds)) / (2 * (DEPTH - 3))
    claims.append(Claim.equal("gain of a layer, Xavier's variance", law[1.0][1] / law[1.0][0], math.exp(per),
                              math.exp(per) * error, within=0.004))  # fmt: skip
    return Result(tuple(claims), _panels(law, found, gains), seeds)


def _slope(z: Tensor) -> Tensor:
    z = z.requires_grad_()
    (slope,) = torch.autograd.grad(torch.sigmoid(z).sum(), z)
    return slope


def _law(scale: float) -> list[float]:
    """rms of a gradient of unit rms behind 1 .. DEPTH layers, counted from the output; by quadrature."""
    nodes = np.linspace(-9, 9, 4001)  # fine enough for slopes that are narrow beside a wide z
    weights = np.exp(-(nodes**2) / 2)
    weights = weights / weights.sum()
    variance, gains = scale, list[float]()
    for _ in range(DEPTH):
        f = 1 / (1 + np.exp(-math.sqrt(variance) * nodes))
        gains.append(scale * float(weights @ (f * (1 - f)) ** 2))
        variance = scale * float(weights @ f**2)
    return [math.sqrt(g) for g in np.cumprod(gains[::-1])]


def _stack(scale: float, seed: int) -> tuple[Tensor, Tensor]:
    """Gain of a gradient behind 1 .. DEPTH layers, and what bounds it; shapes (layers, samples) and (layers, 1)."""
    torch.manual_seed(seed)
    weights = [torch.randn(WIDTH, WIDTH, dtype=torch.float64) * math.sqrt(scale / WIDTH) for _ in range(DEPTH)]
    x = torch.randn(BATCH, WIDTH, dtype=torch.float64, requires_grad=True)
    values = [x]
    for weight in weights:
        values.append(torch.sigmoid(values[-1] @ weight.T))
    start = torch.randn(BATCH, WIDTH, dtype=torch.float64)
    gradients = torch.autograd.grad(values[-1], values[:-1], start)[::-1]
    norms = torch.tensor([float(torch.linalg.matrix_norm(w, 2)) / 4 for w in weights[::-1]]).cumprod(0)
    return torch.stack([g.norm(dim=1) / start.norm(dim=1) for g in gradients]), norms[:, None]


def _whole(law: dict[float, list[float]], gains: dict[float, Tensor]) -> Claim:
    """The logarithm of the mean square behind all layers, for every scale."""
    predicted, measured, errors = list[float](), list[float](), list[float]()
    for scale in SCALES:
        squares = gains[scale][:, -1].square().mean(1)
        predicted.append(2 * math.log(law[scale][-1]))
        measured.append(float(squares.mean().log()))
        errors.append(float(squares.std() / squares.mean()) / math.sqrt(len(squares)))
    at = [f"variance {scale:g}/n" for scale in SCALES]
    return Claim.curve("log mean square behind 12 layers", at, predicted, measured, errors, absolute=DEPTH / WIDTH)


def _panels(
    law: dict[float, list[float]], found: dict[float, list[tuple[Tensor, Tensor]]], gains: dict[float, Tensor]
) -> tuple[Panel, Panel]:
    layers = list(range(1, DEPTH + 1))
    depth = list[Series]()
    for scale in (1.0, 16.0, 256.0):
        name = f"variance {scale:g}/n"
        middle, errors = _mean(gains[scale])
        depth += [Series(name, layers, law[scale], kind="law"), Series(name, layers, middle, errors)]
    bound = torch.stack([b[:, 0] for _, b in found[1.0]]).mean(0).tolist()
    depth.append(Series("bound at 1/n", layers, bound, kind="reference"))
    ends = [_mean(gains[scale]) for scale in SCALES]
    per = [math.exp(math.log(law[scale][-1]) / DEPTH) for scale in SCALES]
    measured = [math.exp(math.log(m[-1]) / DEPTH) for m, _ in ends]
    relu = [math.sqrt(scale / 2) for scale in SCALES if scale <= 4]
    return (
        Panel("gradient through sigmoid layers", "layers behind the output", "rms, output = 1", tuple(depth),
              log_y=True),
        Panel(
            "gain of one layer", "variance of a weight times n", "gain",
            (
                Series("sigmoid", SCALES, per, kind="law"), Series("sigmoid", SCALES, measured),
                Series("ReLU", SCALES[: len(relu)], relu, kind="reference"),
            ), log_x=True, log_y=True,
        ),
    )  # fmt: skip


def _mean(gains: Tensor) -> tuple[list[float], list[float]]:
    squares = gains.square().mean(2)
    root = squares.mean(0).sqrt()
    return root.tolist(), (squares.std(0) / math.sqrt(len(squares)) / (2 * root)).tolist()
