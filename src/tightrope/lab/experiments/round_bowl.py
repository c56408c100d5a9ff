"""`round-bowl`: standardised data make the loss a round bowl, and gradient descent takes as many steps as it is long.

Law         the Hessian of a linear model's squared loss is E[x x'], of condition number k. At its best rate 2 / (l_max
            + l_min) gradient descent shrinks its error by (k - 1) / (k + 1) a step in both extreme directions, so a
            reduction by R takes log R / log((k + 1) / (k - 1)) steps. Features of scales s_j and means m_j have l_max
            >= max E x_j^2, l_min <= min s_j^2; standardised, their Hessian is the correlation matrix, and that of N
            independent samples of d independent features has the edges (1 +- sqrt(d / N))^2.
Setting     linear models on independent features whose scales go from 1 to 1, 3, 10 and 30, on scikit-learn's diabetes
            measurements and its wine, raw and through `nn.Standardize`; `tr.curvature` gives the Hessian's ends,
            gradient descent itself the steps to a thousandth of an error that lies in both extreme directions.
Band        a step more or less for whole numbers, or the 1e-6 that rounding leaves of the least eigenvalue at a
            condition number of 1e8; on random features the edges move by the order of N^(-2/3), 2 % of the condition
            number here.
Reading     all points lie on one line: raw and standardised data differ in the condition number alone.
References  Hestenes and Stiefel (1952), Methods of conjugate gradients for solving linear systems, J. Res. NBS 49, for
            the rate; Marchenko and Pastur (1967), Distribution of eigenvalues for some sets of random matrices, Mat.
            Sbornik 72; LeCun, Kanter, Solla (1991), Second order properties of error surfaces, NeurIPS.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tightrope.instruments import curvature
from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial
from tightrope.nn import Standardize

PRINCIPLES = ("P31",)
FEATURES, SAMPLES = 10, 2000
SCALES = (1.0, 3.0, 10.0, 30.0)
REDUCTION = 1000.0
Case = tuple[float, float, float]


def run(trial: Trial) -> Result:
    """Condition numbers by `tr.curvature`, and the steps that gradient descent takes."""
    seeds = trial.seeds(6, 20)
    raw = {scale: [_case(_drawn(scale, seed), False) for seed in seeds] for scale in SCALES}
    calm = {scale: [_case(_drawn(scale, seed), True) for seed in seeds] for scale in SCALES}
    real = {name: [_case(x, False), _case(x, True)] for name, x in _real().items()}
    everything = [
        *(c for cases in (*raw.values(), *calm.values()) for c in cases),
        *(c for p in real.values() for c in p),
    ]
    edges = ((1 + math.sqrt(FEATURES / SAMPLES)) / (1 - math.sqrt(FEATURES / SAMPLES))) ** 2
    found = torch.tensor([[k for k, _, _ in calm[scale]] for scale in SCALES], dtype=torch.float64)
    claims = [
        Claim.curve("steps to a thousandth of the error", [f"{k:.4g}" for k, _, _ in everything],
                    [law for _, law, _ in everything], [n for _, _, n in everything], [0.0] * len(everything),
                    within=1e-6, absolute=1.0),
        Claim.below("condition number of standardised independent features", edges * 1.02, float(found.max())),
        Claim.curve("condition number of the raw features over the square of their scales", SCALES[1:],
                    [1.0] * 3, [_over(raw[s], s)[0] for s in SCALES[1:]], [_over(raw[s], s)[1] for s in SCALES[1:]],
                    within=2 * math.sqrt(FEATURES / SAMPLES)),
        *(Claim.above(f"condition number of {name}, raw over standardised", 1.0, a[0] / b[0])
          for name, (a, b) in real.items()),
    ]  # fmt: skip
    grid = [10 ** (i / 10) for i in range(1, 86)]
    line = Series("law", grid, [_steps(k) for k in grid], kind="law")
    points = {
        "raw": [c[0] for c in raw.values()], "standardised": [c[0] for c in calm.values()],
        "real, raw": [pair[0] for pair in real.values()], "real, standardised": [pair[1] for pair in real.values()],
    }  # fmt: skip
    steps = [Series(name, [c[0] for c in cases], [c[2] for c in cases]) for name, cases in points.items()]
    numbers = [
        Series(name, SCALES, *_spread([[c[0] for c in cases[s]] for s in SCALES]))
        for name, cases in (("raw", raw), ("standardised", calm))
    ]
    laws = [Series("raw", SCALES, [max(s * s, edges) for s in SCALES], kind="law"),
            Series("standardised", SCALES, [edges] * len(SCALES), kind="law")]  # fmt: skip
    return Result(
        tuple(claims),
        (
            Panel("steps of gradient descent", "condition number", "steps to 1/1000", (line, *steps),
                  log_x=True, log_y=True),
            Panel("roundness of the bowl", "largest scale of a feature", "condition number", (*laws, *numbers),
                  log_x=True, log_y=True),
        ), seeds,
    )  # fmt: skip


def _spread(values: list[list[float]]) -> tuple[list[float], list[float]]:
    found = torch.tensor(values, dtype=torch.float64)
    return found.mean(1).tolist(), (found.std(1) / math.sqrt(found.shape[1])).tolist()


def _over(cases: list[Case], scale: float) -> tuple[float, float]:
    ratios = torch.tensor([k for k, _, _ in cases], dtype=torch.float64) / scale**2
    return float(ratios.mean()), float(ratios.std()) / math.sqrt(len(ratios))


def _drawn(scale: float, seed: int) -> Tensor:
    """Independent centred features; their scales are geometric from 1 to `scale`."""
    torch.manual_seed(seed)
    x = torch.randn(SAMPLES, FEATURES, dtype=torch.float64)
    return x * torch.logspace(0, math.log10(scale), FEATURES, dtype=torch.float64)


def _real() -> dict[str, Tensor]:
    from sklearn.datasets import load_diabetes, load_wine

    sets = {"diabetes": load_diabetes(scaled=False).data, "wine": load_wine().data}
    return {name: torch.tensor(data, dtype=torch.float64) for name, data in sets.items()}


def _steps(condition: float) -> float:
    return math.log(REDUCTION) / math.log((condition + 1) / (condition - 1))


def _case(x: Tensor, standardise: bool) -> Case:
    """Condition number by the instrument, steps by the law, and steps taken."""
    if standardise:
        layer = Standardize(x.shape[1])
        layer.fit(x)
        x = layer.eval()(x).double()
        x = x - x.mean(0)
    model = nn.Linear(x.shape[1], 1, bias=False).double()
    target = torch.zeros(len(x), 1, dtype=torch.float64)
    found = curvature(model, (x, target), loss=_half_squares)
    condition = found.condition
    return condition, _steps(condition), float(_descent(x, found.lambda_max, found.smallest))


def _half_squares(output: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(output, target) / 2


def _descent(x: Tensor, largest: float, smallest: float) -> int:
    """Steps of gradient descent on the model's weights until the error is a thousandth; every 1000 at a time."""
    hessian = x.T @ x / len(x)
    values, vectors = torch.linalg.eigh(hessian)
    error = vectors[:, 0] + vectors[:, -1]
    rate = 2 / (largest + smallest)
    goal, step = float(error.norm()) / REDUCTION, torch.eye(len(values), dtype=torch.float64) - rate * hessian
    count = 0
    for stride in (1 << k for k in range(30, -1, -1)):  # by halving: each power of the step is a matrix
        ahead = torch.linalg.matrix_power(step, stride) @ error
        if float(ahead.norm()) > goal:
            error, count = ahead, count + stride
    return count + 1
