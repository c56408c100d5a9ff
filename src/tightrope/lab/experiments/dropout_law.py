"""`dropout-law`: dropout keeps the mean, widens the law by a diagonal term, and misses the mean behind a curve.

Law         inverted dropout with rate p multiplies each unit by b / (1 - p). The mean stays; the covariance gains
            diag(E[x^2]) p / (1 - p), and a linear unit varies over masks by p / (1 - p) sum w^2 x^2. Least squares with
            dropout on its inputs has the expected loss of ridge regression with the penalty p / (1 - p) sum w_j^2
            E[x_j^2]. Behind a ReLU the mean over masks exceeds the net that is evaluated, by E relu(z) - relu(E z) with
            z normal: the Jensen gap.
Setting     handwritten digits: their covariance under masks; least squares for one digit against the others, over drawn
            masks, beside the ridge; a linear net and one with ReLU, 256 wide, whose gap `jensen_gap` measures over
            masks and predicts.
Band        mean, covariance and ridge: none, they are exact. The gap: sums of 256 masked terms are taken as normal, off
            by a skewness of about 1 / sqrt(256) of them: 6 %.
Reading     left: gap of the ReLU net over the rate, the law's line on points; the linear net stays at zero. Middle: the
            variance that masks add. Right: dropout fits the ridge's weights.
References  Srivastava et al. (2014), Dropout, JMLR 15; Wager, Wang, Liang (2013), Dropout training as adaptive
            regularization, NeurIPS; Wang, Manning (2013), Fast dropout training, ICML.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tightrope.instruments.jensen import jensen_gap
from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial

PRINCIPLES = ("P16",)
RATES = (0.1, 0.3, 0.5, 0.7)
WIDTH = 256


def run(trial: Trial) -> Result:
    """Covariance, ridge, and the gap of linear and ReLU nets."""
    seeds = trial.seeds(12, 24)
    x, y = _digits()
    covariance, widened = _covariance(x, seeds, trial.pick(20, 80))
    ridge, fitted = _ridge(x, y, trial.seeds(24, 48), trial.pick(30, 120))
    gaps, panel = _gaps(x, seeds[: trial.pick(10, 20)], trial.pick(256, 512))
    return Result((*covariance, *ridge, *gaps), (panel, widened, fitted), seeds)


def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.data, dtype=torch.float64)
    x = x[:, x.std(0) > 0.5]
    return x / x.square().mean().sqrt(), torch.tensor(data.target == 3, dtype=torch.float64)


def _mean(values: Tensor) -> tuple[list[float], list[float]]:
    values = values.double().reshape(len(values), -1)
    return values.mean(0).tolist(), (values.std(0) / math.sqrt(len(values))).tolist()


def _covariance(x: Tensor, seeds: tuple[int, ...], draws: int) -> tuple[list[Claim], Panel]:
    """Mean kept, trace of the covariance widened, its off-diagonal part kept; a linear unit over masks."""
    off, trace, mixed, unit, lines = [], [], [], [], []
    chance = torch.Generator().manual_seed(5)
    w = torch.randn(x.shape[1], generator=chance).double()
    centred = x - x.mean(0)
    total = centred.T @ centred / len(x)
    signs = total.sign().fill_diagonal_(0)
    side = (signs * total).sum()  # what units share with one another
    for p in RATES:
        layer, law = nn.Dropout(p), p / (1 - p)
        drawn = []
        for seed in seeds:
            torch.manual_seed(seed)
            masked = torch.stack([layer(x) for _ in range(draws)])
            flat = masked.flatten(0, 1) - x.mean(0)
            found = flat.T @ flat / len(flat)
            drawn.append([
                float(masked.mean() / x.mean()), float(found.trace()), float((signs * found).sum()),
                float((masked @ w).var(0).mean()),
            ])  # fmt: skip
        mean, error = _mean(torch.tensor(drawn))
        off.append((1.0, mean[0], error[0]))
        trace.append((float(total.trace() + law * x.square().mean(0).sum()), mean[1], error[1]))
        mixed.append((float(side), mean[2], error[2]))
        unit.append((law * float((x.square() @ w.square()).mean()), mean[3], error[3]))
        lines.append(p)
    names = {
        "mean of masked digits / mean of digits": off, "trace of their covariance": trace,
        "size of their covariances off the diagonal": mixed, "variance of a linear unit over masks": unit,
    }  # fmt: skip
    at = [f"p = {p}" for p in RATES]
    claims = [Claim.curve(name, at, *([row[i] for row in rows] for i in range(3))) for name, rows in names.items()]
    fine = [i / 40 for i in range(2, 31)]
    base, gain = float(total.trace()), float(x.square().mean(0).sum())
    curves = (
        Series("all units", fine, [base + p / (1 - p) * gain for p in fine], kind="law"),
        Series("all units", lines, [t[1] for t in trace], [t[2] for t in trace]),
        Series("without dropout", (0.05, 0.75), (base, base), kind="reference"),
    )
    return claims, Panel("variance of masked digits", "rate", "trace of the covariance", curves)


def _ridge(x: Tensor, y: Tensor, seeds: tuple[int, ...], draws: int) -> tuple[list[Claim], Panel]:
    """Least squares over so many masks of every digit beside the ridge that has dropout's penalty."""
    gram, cross, square = x.T @ x / len(x), x.T @ y / len(x), x.square().mean(0)
    claims, curves = [], list[Series]()
    for p in (0.2, 0.5):
        exact = torch.linalg.solve(gram + p / (1 - p) * square.diag(), cross)
        layer, found = nn.Dropout(p), []
        for seed in seeds:
            torch.manual_seed(seed)
            second, first = torch.zeros_like(gram), torch.zeros_like(cross)
            for _ in range(draws):
                masked = layer(x)
                second += masked.T @ masked / len(x)
                first += masked.T @ y / len(x)
            found.append(torch.linalg.solve(second / draws, first / draws))
        weights = torch.stack(found)
        length, error = _mean(weights @ exact / exact.square().sum())
        claims.append(Claim.equal(f"weights with dropout {p} along those of the ridge", 1.0, length[0], error[0]))
        mean, errors = _mean(weights)
        order = exact.argsort()[:: max(len(exact) // 14, 1)]
        shown = [exact[order].tolist(), [mean[i] for i in order], [errors[i] for i in order]]
        curves += [Series(f"p = {p}", shown[0], shown[0], kind="law"), Series(f"p = {p}", *shown)]
    return claims, Panel("dropout is a ridge", "weight of the ridge", "weight with dropout", tuple(curves))


def _gaps(x: Tensor, seeds: tuple[int, ...], draws: int) -> tuple[list[Claim], Panel]:
    """The Jensen gap over the rate: measured over masks, and predicted."""
    claims = list[Claim]()
    ratios, laws, means, errors, flat = [], [], [], [], []
    for p in RATES:
        rows, linear = [], []
        for seed in seeds:
            torch.manual_seed(seed)
            batch = x[torch.randperm(len(x))[:8]].float()
            enter, head = nn.Linear(x.shape[1], WIDTH), nn.Linear(WIDTH, 10)
            drop = nn.Dropout(p)
            net = nn.Sequential(enter, drop, nn.Linear(WIDTH, WIDTH), nn.ReLU(), head)
            bent = jensen_gap(net, batch[:2], draws=draws)
            straight = jensen_gap(nn.Sequential(enter, drop, head), batch, draws=draws)
            assert bent.predicted is not None
            along = (bent.measured * bent.predicted).sum() / bent.predicted.square().sum()
            rows.append([float(along), bent.law or 0.0, bent.gap])
            z = straight.measured / straight.standard_error
            linear.append(float(z.square().mean()))
        mean, error = _mean(torch.tensor(rows))
        ratios.append((mean[0], error[0]))
        laws.append(mean[1])
        means.append(mean[2])
        errors.append(error[2])
        flat.append(linear)
    at = [f"p = {p}" for p in RATES]
    claims.append(
        Claim.curve("gap of the ReLU net along its law", at, [1.0] * len(at), [r[0] for r in ratios],
                    [r[1] for r in ratios], within=1 / math.sqrt(WIDTH))
    )  # fmt: skip
    middle, spread = _mean(torch.tensor(flat).mean(0))
    # squared z of a mean over masks has the expectation 1 where there is no gap
    claims.append(Claim.equal("gap of the linear net, mean square in its errors", 1.0, middle[0], spread[0]))
    curves = [Series("ReLU net", RATES, laws, kind="law"), Series("ReLU net", RATES, means, errors)]
    curves.append(Series("linear net", RATES, [0.0] * len(RATES), kind="reference"))
    return claims, Panel("gap to the net that is evaluated", "rate", "rms of the outputs", tuple(curves))
