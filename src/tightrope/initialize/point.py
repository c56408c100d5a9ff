"""Where on its activation a layer should work: mean and variance of z from the activation's own expectations.

For z ~ N(m, v) behind weights that see centred data (their bias takes the mean away), one layer of gain g maps

    signal     v' = g Var f(z)                 gradient   energy * g E[f'(z)^2]

Both keep their size only if v E[f'^2] = Var f, and by Poincare's inequality v E[f'^2] >= Var f, with equality for
straight f alone. What is above,

    curve = v E[f'(z)^2] / Var f(z) - 1,

is also how much faster than linearly two similar samples part (the slope at 1 of the map of correlations, less 1).
Over L layers in series it compounds to (1 + curve)^L. A bounded product leaves signal, gradient and the angles between
samples of order 1 at once, at any depth; so each layer gets the (m, v) at which its activation has the curve that it
can afford. A ReLU gets a positive mean, tanh a smaller variance.

References:
    Schoenholz et al., Deep information propagation (2017), for the map of correlations and its slope. Martens et al.,
    Rapid training of deep neural networks without skip connections or normalization layers using Deep Kernel
    Shaping (2021), for the slope as a budget that the depth shares; it changes the activation, here only bias and
    scale move.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tightrope.checks.layers import evaluate
from tightrope.tape.tape import Entry

BUDGET = 1.5
"""What (1 + curve) may compound to between two joins: that of a single ReLU at mean 0 (1.47)."""
MEANS = 4.0
"""Largest mean, in units of the largest standard deviation."""
SMALLEST = 2.0**-5
"""Smallest standard deviation; the largest is 1."""
LOUD = 8.0
"""How many times louder than the others a sample may be that must not grow on its way."""
STEP, NODES, SPAN = 2.0**0.125, 801, 7.0


@dataclass(frozen=True)
class Point:
    """Where an activation works.

    Attributes:
        mean, variance: of its argument.
        curve: v E[f'^2] / Var f - 1 there.
    """

    mean: float
    variance: float
    curve: float


def working_point(entry: Entry, depth: int, biased: bool) -> Point | None:
    """The point at which an activation has the curve that one of `depth` layers in series can afford.

    Where f is steeper far out than near m, a sample louder than the others grows from layer to layer, so Var f / v may
    not rise with v by more than the same factor. Among the points that are left it is the one where the activation's
    own mean is smallest beside its spread (a mean of what weights read couples their gradients) and v is largest.
    None where no point is as straight as that.

    Args:
        entry: the elementwise call.
        depth: activations in series, this one included.
        biased: whether a bias can set the mean; else it is 0.
    """
    afford = BUDGET ** (1.0 / max(depth, 1)) - 1.0
    count = round(-math.log(SMALLEST / LOUD) / math.log(STEP)) + 1
    spreads = LOUD * STEP ** -torch.arange(count, dtype=torch.float64)
    means = torch.linspace(-MEANS, MEANS, 129, dtype=torch.float64) if biased else torch.zeros(1, dtype=torch.float64)
    try:
        curve, lean, gain = _table(entry, means, spreads)
    except (RuntimeError, TypeError):
        return None
    stable = gain.cummax(-1).values <= (1.0 + afford) * gain
    good = (curve <= afford) & stable & (spreads <= 1.0)
    if not bool(good.any()):
        return None
    # Of each mean the widest spread that is straight enough; of these the one that leans least.
    first = good.to(torch.int8).argmax(-1)
    rows = torch.arange(len(means))
    cost = torch.where(good.any(-1), lean[rows, first] - torch.log(spreads[first]), torch.inf)
    best = int(cost.argmin())
    return Point(float(means[best]), float(spreads[first[best]].square()), float(curve[best, first[best]]))


def _table(entry: Entry, means: Tensor, spreads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Curve, E[f]^2 / Var f and Var f / v, each (means, spreads)."""
    xi = torch.linspace(-SPAN, SPAN, NODES, dtype=torch.float64)
    weights = torch.exp(-xi.square() / 2)
    weights = weights / weights.sum()
    with torch.enable_grad():
        z = (means[:, None, None] + spreads[None, :, None] * xi).requires_grad_(True)
        values = evaluate(entry, z)
        (slope,) = torch.autograd.grad(values.sum(), z)
    values = values.detach()
    mean = (values * weights).sum(-1, keepdim=True)
    variance = ((values - mean).square() * weights).sum(-1)
    energy = (slope.square() * weights).sum(-1) * spreads.square()
    flat = variance <= 1e-12 * spreads.square()
    curve = torch.where(flat, torch.inf, energy / variance.clamp(min=1e-300) - 1.0)
    return curve, mean.squeeze(-1).square() / variance.clamp(min=1e-300), variance / spreads.square()


__all__ = ["BUDGET", "Point", "working_point"]
