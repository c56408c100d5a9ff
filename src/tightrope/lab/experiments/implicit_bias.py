"""`implicit-bias`: gradient descent on separable data turns to the largest margin, at a rate of one over log t.

Law         on data that a linear classifier separates, gradient descent on the mean logistic loss never stops. With the
            step s, n samples z_i turned to their own side, and w* = sum a_i z_i the separator of largest margin with
            z_i'w* = 1 on the support: w(t) -> w* log t + r, where (s / n) exp(-r'z_i) = a_i on the support. So the
            weights grow as |w*| log t, and their angle to w* falls as |part of r across w*| / (|w*| log t). What
            is left of the start goes as t^-u, u being the smallest eigenvalue of sum a_i z_i z_i'. Steps along the
            gradient over the loss get there at a power of t.
Setting     four samples in two dimensions, two of which hold the margin, which fixes r: a set that is symmetric about
            w* and one that is not. Ten random samples in five dimensions are run with plain and normalised steps.
            Margins and angles are those of `tightrope.margin`; scikit-learn's LinearSVC is asked as well.
Band        t^-u of the angle, 3.0 % at 3000 steps with u = 0.439; the exponent of what is left of it to a tenth, the
            size of its next term. The symmetric set has nothing across w*: (log t) / t, 0.001. LinearSVC stops at its
            tolerance, 0.01 degrees.
Reading     the angle is still halving when the loss is long below anything that is measured: slow training is not done
            training. Normalised steps, points of another colour, leave the law behind.
References  Soudry, Hoffer, Nacson, Gunasekar, Srebro (2018), The implicit bias of gradient descent on separable data,
            JMLR 19; Nacson et al. (2019), Convergence of gradient descent on separable data, AISTATS.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tightrope.instruments import margin
from tightrope.instruments.margin import Margin
from tightrope.instruments.separator import separator
from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial

PRINCIPLES = ("P30",)
Numbers = NDArray[np.float64]
STEP = 0.5
SYMMETRIC = np.array([[0.5, 1.5], [1.5, 0.5], [3.0, 1.0], [1.0, 3.5]])
ASKEW = np.array([[0.5, 2.0], [3.0, 0.3], [4.0, 4.0], [5.0, 3.0]])
"""Samples on their own side: the first two hold the margin, the others have a product of 2 or more with w*."""


def run(trial: Trial) -> Result:
    """Angles and norms of gradient descent beside the law, with plain and with normalised steps."""
    last = trial.pick(30_000, 300_000)
    times = [10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000, 300_000]
    times = [t for t in times if t <= last]
    late = [t for t in times if t >= 3000]
    walks = {name: _descent(rows, times) for name, rows in (("symmetric", SYMMETRIC), ("askew", ASKEW))}
    best, rest = _limit(ASKEW)
    told = {t: best * math.log(t) + rest for t in times}
    law = {t: _degrees(w, best) for t, w in told.items()}
    found = {t: _reading(w, ASKEW).angle for t, w in walks["askew"].items()}
    off = [abs(found[t] / law[t] - 1) for t in (late[0], late[-1])]
    left, exponent = math.log(off[0] / off[1]) / math.log(late[-1] / late[0]), _exponent(ASKEW)
    zero = [0.0] * len(late)
    at = [f"step {t}" for t in late]
    grown, norms = ([float(np.linalg.norm(w[t])) for t in late] for w in (told, walks["askew"]))
    centre, offset = _limit(SYMMETRIC)
    along = float((walks["symmetric"][late[-1]] - centre * math.log(late[-1])).mean())
    plain, fast, ratios = _random(trial)
    claims = (
        Claim.curve("angle to the largest margin, degrees", at, [law[t] for t in late], [found[t] for t in late], zero,
                    within=3000**-exponent),
        Claim.curve("norm of the weights", at, grown, norms, zero, within=3000**-exponent),
        Claim.equal("exponent of what the angle is off", exponent, left, within=0.1),
        Claim.equal("w - w* log t of the symmetric set, mean component", float(offset.mean()), along, absolute=0.001),
        Claim.above("log10 of the angle of plain over normalised steps, random samples", 0.5,
                    float(ratios.mean()), float(ratios.std() / math.sqrt(len(ratios)))),
        Claim.below("degrees between scikit-learn's LinearSVC and the separator", 0.01, _other()),
    )  # fmt: skip
    angle = (
        Series("two dimensions", times, [law[t] for t in times], kind="law"),
        Series("two dimensions", times, [found[t] for t in times]),
        _points("five, plain steps", plain),
        _points("five, normalised", fast),
    )  # fmt: skip
    size = (
        Series("two dimensions", times, [float(np.linalg.norm(told[t])) for t in times], kind="law"),
        Series("two dimensions", times, [float(np.linalg.norm(w)) for w in walks["askew"].values()]),
    )
    panels = (
        Panel("angle to the largest margin", "step", "degrees", angle, log_x=True, log_y=True),
        Panel("norm of the weights", "step", "|w|", size, log_x=True),
    )
    return Result(claims, panels, trial.seeds(8, 24))


def _limit(rows: Numbers) -> tuple[Numbers, Numbers]:
    """w* and r of a set whose support spans the plane."""
    found = separator(rows)
    held = rows[list(found.support)]
    share = np.linalg.solve(held.T, found.weight)
    return found.weight, np.linalg.solve(held, -np.log(share * len(rows) / STEP))


def _exponent(rows: Numbers) -> float:
    """Of time, in what is left of the start."""
    found = separator(rows)
    held = rows[list(found.support)]
    share = np.linalg.solve(held.T, found.weight)
    return float(np.linalg.eigvalsh((held.T * share) @ held)[0])


def _descent(rows: Numbers, times: list[int], *, normalised: bool = False) -> dict[int, Numbers]:
    """The weights at some steps of gradient descent from zero."""
    w, found = np.zeros(rows.shape[1]), {}
    for t in range(1, times[-1] + 1):
        side = rows @ w
        slope = (1 / (1 + np.exp(side))) @ rows / len(rows)
        w = w + STEP * (slope / np.logaddexp(0, -side).mean() if normalised else slope)
        if t in times:
            found[t] = w.copy()
    return found


def _reading(w: Numbers, rows: Numbers) -> Margin:
    """The instrument on a linear model with these weights; the samples' mirror images are the other class."""
    model = nn.Linear(len(w), 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.as_tensor(w)[None])
    x = torch.as_tensor(np.concatenate([rows, -rows]))
    return margin(model, (x, torch.arange(len(x)) < len(rows)))


def _degrees(a: Numbers, b: Numbers) -> float:
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    return math.degrees(2 * math.atan2(float(np.linalg.norm(a - b)), float(np.linalg.norm(a + b))))


def _samples(seed: int) -> Numbers:
    chance = np.random.default_rng(seed)
    rows: Numbers = chance.normal(size=(10, 5))
    side = rows[:, :1]
    return np.concatenate([np.abs(side) + 0.2, rows[:, 1:]], 1)


def _random(trial: Trial) -> tuple[dict[int, Numbers], dict[int, Numbers], Numbers]:
    """Angles on random samples, plain and normalised, and the logarithm of their ratio at the last step."""
    times = [10, 100, 1000, trial.pick(3000, 10_000)]
    seeds = trial.seeds(8, 24)
    found = []
    for normalised in (False, True):
        rows = [_samples(seed) for seed in seeds]
        walks = [_descent(r, times, normalised=normalised) for r in rows]
        found.append({t: np.array([_reading(w[t], r).angle for w, r in zip(walks, rows, strict=True)]) for t in times})
    plain, fast = found
    return plain, fast, np.log10(plain[times[-1]] / fast[times[-1]])


def _points(name: str, angles: dict[int, Numbers]) -> Series:
    errors = [float(v.std(ddof=1) / math.sqrt(len(v))) for v in angles.values()]
    return Series(name, list(angles), [float(v.mean()) for v in angles.values()], errors)


def _other() -> float:
    """The angle between the separator and that of scikit-learn, which has no intercept either."""
    from sklearn.svm import LinearSVC

    rows = _samples(0)
    x, y = np.concatenate([rows, -rows]), np.repeat([1, -1], len(rows))
    made: Any = LinearSVC(fit_intercept=False, C=1e6, loss="hinge", max_iter=1_000_000, tol=1e-8, random_state=0)
    return _degrees(made.fit(x, y).coef_[0], separator(rows).weight)
