"""Whether predicted variances are the spread of the errors: coverage of intervals, and the probability transform."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tightrope.errors import InputError
from tightrope.instruments.calibration import LEAST
from tightrope.instruments.estimate import Estimate, positive
from tightrope.instruments.null import RESAMPLES, SURE, Measure

ASKED = "measure the coverage"
LEVELS = (0.5, 0.8, 0.9, 0.95, 0.99)
CELLS = 20
"""Cells of the probability transform."""


@dataclass(frozen=True)
class Level:
    """How many targets a central interval of the predicted normal law holds.

    Attributes:
        nominal: share that it should hold.
        covered: share that it holds.
        error: standard deviation of `covered` if it should.
    """

    nominal: float
    covered: float
    error: float


@dataclass(frozen=True, eq=False)
class Coverage:
    """Calibration of predicted means and variances, taken as normal laws, on targets that they were not fitted to.

    Attributes:
        levels: coverage of the central intervals of 50, 80, 90, 95 and 99 %.
        pit: mean distance of the distribution of the probability transform from the uniform one, beside its null.
        scale: by what standard deviations are to be multiplied: rms of the standardised errors.
        bias, bias_error: mean of the standardised errors.
        nll: mean negative log likelihood in nats.
        transform: histogram of the probability transform, shares of 20 cells.
        samples: how many.
    """

    levels: tuple[Level, ...]
    pit: Measure
    scale: Estimate
    bias: float
    bias_error: float
    nll: float
    transform: tuple[float, ...]
    samples: int

    @property
    def verdict(self) -> str | None:
        """What is surely wrong, in a sentence; None where chance may explain it, or it is less than a per cent."""
        level = next(level for level in self.levels if level.nominal == 0.9)
        off = level.covered - level.nominal
        if self.pit.p > SURE or max(abs(off), self.pit.excess) < LEAST:
            return None
        if abs(off) > max(2.58 * level.error, LEAST):
            name = "overconfident" if off < 0 else "underconfident"
            return (
                f"{name}: intervals of 90 % hold {100 * level.covered:.3g} % of the targets; standard deviations "
                f"are to be multiplied by {self.scale}"
            )
        return f"miscalibrated: the targets are not as the predicted normal laws spread them (p {self.pit.p:.3f})"

    def __str__(self) -> str:
        lines = [
            f"Coverage of {self.samples} predicted normal laws",
            f"  {'scale':<12} {self.scale}",
            f"  {'bias':<12} {self.bias:+.3g} ± {self.bias_error:.2g} standard deviations",
            f"  {'transform':<12} {self.pit}",
            f"  {'likelihood':<12} {self.nll:.4f} nats",
            *(f"  {f'{100 * x.nominal:g} %':<12} {100 * x.covered:.1f} ± {100 * x.error:.1f} %" for x in self.levels),
        ]
        return "\n".join([*lines, *([f"  {self.verdict}"] if self.verdict else [])])


def coverage(mean: Any, variance: Any, targets: Any, *, seed: int = 0) -> Coverage:
    """How predicted means and variances fit the targets, taken as normal laws.

    The probability transform Phi((y - mean) / std) is uniform if they are right, whatever the means and variances.

    Args:
        mean, variance, targets: of one shape; `tr.uncertainty` gives `.mean` and `.total.value`.
        seed: of the draws under the null.

    Raises:
        InputError: shapes differ, something is not finite, or a variance is not positive.

    References:
        Dawid (1984), Statistical theory: the prequential approach, JRSS A 147; Kuleshov, Fenner, Ermon (2018),
        Accurate uncertainties for deep learning using calibrated regression, ICML.
    """
    mu, var, y = (torch.as_tensor(x).detach().cpu().double() for x in (mean, variance, targets))
    _refuse(mu, var, y)
    z = ((y - mu) / var.sqrt()).flatten()
    n, square = len(z), z.square()
    u = torch.special.ndtr(z)
    cells = torch.bincount((u * CELLS).long().clamp(max=CELLS - 1), minlength=CELLS).double()
    drawn = torch.tensor(np.random.default_rng(seed).multinomial(n, np.full(CELLS, 1 / CELLS), RESAMPLES))
    levels = []
    for nominal in LEVELS:
        held = float((u - 0.5).abs().le(nominal / 2).double().mean())
        levels.append(Level(nominal, held, math.sqrt(nominal * (1 - nominal) / n)))
    second = float(square.mean())
    spread = float(square.var()) / n if n > 1 else math.inf
    # sqrt: d rms = d(mean square) / (2 rms)
    scale = positive(math.sqrt(second), spread / (4 * second) if second > 0 else 0.0, 1.96)
    error = float(z.std()) / math.sqrt(n) if n > 1 else math.inf
    return Coverage(
        tuple(levels), Measure.of(float(_apart(cells[None])), _apart(drawn.double())), scale, float(z.mean()), error,
        float((square + var.flatten().log() + math.log(2 * math.pi)).mean() / 2), tuple((cells / n).tolist()), n,
    )  # fmt: skip


def _apart(cells: Tensor) -> Tensor:
    """Mean distance of the cumulative shares from those of the uniform law; (draws, cells) -> (draws,)."""
    below = cells.cumsum(1)[:, :-1] / cells.sum(1, keepdim=True)
    even = torch.arange(1, CELLS, dtype=torch.float64) / CELLS
    return (below - even).abs().mean(1)


def _refuse(mean: Tensor, variance: Tensor, targets: Tensor) -> None:
    if not mean.shape == variance.shape == targets.shape:
        found = f"shapes are {tuple(mean.shape)}, {tuple(variance.shape)} and {tuple(targets.shape)}"
        raise InputError(ASKED, found, "Pass a mean and a variance for each target")
    if mean.numel() == 0:
        raise InputError(ASKED, "there is no target", "Pass at least one")
    if not all(bool(x.isfinite().all()) for x in (mean, variance, targets)):
        raise InputError(ASKED, "means, variances or targets are not finite", "Look for where they come from")
    if float(variance.min()) <= 0:
        found = f"{int((variance <= 0).sum())} of {variance.numel()} variances are not positive"
        raise InputError(ASKED, found, "Pass variances, no logarithms of them")


__all__ = ["Coverage", "coverage"]
