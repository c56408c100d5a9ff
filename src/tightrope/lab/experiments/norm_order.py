"""`norm-order`: batch norm before a rectifier keeps a fixed share of its units active, behind it that share drifts.

Law         before the rectifier z ~ N(beta, gamma^2), whatever the layer below does: the share Phi(beta / |gamma|) is
            active, half of them at the start. Behind it, a pre-activation of mean c standard deviations leaves Phi(c)
            active, and the normalised law is that of a censored normal: an atom of 1 - Phi(c) at its smallest value
            -m_1 / s, and the skewness (m_3 - 3 m_1 m_2 + 2 m_1^3) / s^3, with m_j = E[max(c + xi, 0)^j].
Setting     64 linear units on normal inputs whose bias is moved by c, through BatchNorm1d and ReLU in both orders; then
            nets of four such layers, trained on scikit-learn's digits, from biases of -1 and of 1.
Band        exact for normal pre-activations, but that N samples stand for their law: what is a ratio of moments is off
            by the kurtosis over N, 1 per cent at most, and a share by the square root of 1 / N for a unit, a thousandth
            for all. A trained unit sums 64 inputs that are not normal; by the first term of
            Edgeworth's series, its skewness of up to 1 over 6 times phi(0), the share of a unit is off by 0.07.
Reading     the share in the last panel is the mean over four layers; the lines are Phi(beta / |gamma|) of the gains and
            biases as they train. Norm first, the start does not matter.
References  Ioffe and Szegedy (2015), Batch normalization, ICML, section 3.2; Tobin (1958), Estimation of relationships
            for limited dependent variables, Econometrica 26, for the censored normal.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial

PRINCIPLES = ("P13",)
SHIFTS = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
"""Means of the pre-activation in its standard deviations."""
OFFSETS = (0.0, 1.0)
"""Biases of the normaliser before the rectifier."""
WIDTH, LAYERS, STARTS, RATE = 64, 4, (-1.0, 1.0), 0.05
SKEW = 0.07


def run(trial: Trial) -> Result:
    """Shares of active units in both orders over the mean below, the law behind the rectifier, and a training."""
    seeds, samples = trial.seeds(6, 12), trial.pick(8192, 32768)
    before = {beta: [_shares(samples, seed, beta) for seed in seeds] for beta in OFFSETS}
    behind = [_behind(samples, seed) for seed in seeds]
    claims = []
    for beta, rows in before.items():
        law = [_phi(beta)] * len(SHIFTS)
        claims.append(
            Claim.curve(f"active, norm first, beta = {beta:g}, mean below", SHIFTS, law, *_summary(rows), absolute=1e-3)
        )
    texts = ("active, rectifier first", "smallest value behind the norm", "skewness behind the norm")
    laws = [list(column) for column in zip(*(censored(c) for c in SHIFTS), strict=True)]
    found = [_summary([[values[part] for values in row] for row in behind]) for part in range(3)]
    for text, law, measured in zip(texts, laws, found, strict=True):
        claims.append(Claim.curve(f"{text}, mean below", SHIFTS, law, *measured, within=0.01, absolute=1e-3))
    trained = [_train(seed, trial.pick(40, 150)) for seed in seeds]
    claims += _trainings(trained)
    return Result(tuple(claims), (*_panels(before, laws, found), _course(trained)), seeds)


def _phi(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))


def censored(c: float) -> tuple[float, float, float]:
    """Share above zero of max(c + xi, 0), and smallest value and skewness of what normalising makes of it."""
    share, density = _phi(c), math.exp(-c * c / 2) / math.sqrt(2 * math.pi)
    first, second = c * share + density, (c * c + 1) * share + c * density
    third = (c**3 + 3 * c) * share + (c * c + 2) * density
    std = math.sqrt(second - first**2)
    return share, -first / std, (third - 3 * first * second + 2 * first**3) / std**3


def _summary(rows: list[list[float]]) -> tuple[list[float], list[float]]:
    """Mean and standard error over seeds."""
    table = torch.tensor(rows)
    return table.mean(0).tolist(), (table.std(0) / math.sqrt(len(rows))).tolist()


def _below(samples: int, shift: float) -> Tensor:
    """Pre-activations of standard deviation 1 and of a mean."""
    layer = nn.Linear(WIDTH, WIDTH)
    with torch.no_grad():
        layer.weight /= layer.weight.norm(dim=1, keepdim=True)
        layer.bias.fill_(shift)
        made: Tensor = layer(torch.randn(samples, WIDTH))
    return made


def _shares(samples: int, seed: int, beta: float) -> list[float]:
    torch.manual_seed(seed)
    norm, found = nn.BatchNorm1d(WIDTH), []
    nn.init.constant_(norm.bias, beta)
    for shift in SHIFTS:
        found.append(float((norm(_below(samples, shift)).relu() > 0).float().mean()))
    return found


def _behind(samples: int, seed: int) -> list[tuple[float, float, float]]:
    torch.manual_seed(seed)
    norm, found = nn.BatchNorm1d(WIDTH, eps=1e-12), []
    for shift in SHIFTS:
        active = _below(samples, shift).relu()
        y = norm(active).detach()
        found.append((float((active > 0).float().mean()), float(y.amin(0).mean()), float(y.pow(3).mean())))
    return found


Course = dict[tuple[bool, float], Tensor]
"""Share of active units, and what gains and biases say of it; shape (steps, 2), by order and start."""


def _train(seed: int, steps: int) -> Course:
    from sklearn.datasets import load_digits

    data = load_digits(return_X_y=True)
    x, y = torch.tensor(data[0], dtype=torch.float32) / 16, torch.tensor(data[1])
    found = {}
    for first, start in ((f, s) for f in (True, False) for s in STARTS):
        torch.manual_seed(seed)
        net, course = _net(first, start), list[tuple[float, float]]()
        optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9)
        for _ in range(steps):
            rows = torch.randint(len(y), (128,))
            z, active, told = x[rows], list[float](), list[float]()
            for layer in net:
                z = layer(z)
                if isinstance(layer, nn.ReLU):
                    active.append(float((z > 0).float().mean()))
                elif isinstance(layer, nn.BatchNorm1d):
                    told.append(float(torch.special.ndtr(layer.bias / layer.weight.abs()).mean()))
            course.append((sum(active) / LAYERS, sum(told) / LAYERS))
            optimizer.zero_grad()
            F.cross_entropy(z, y[rows]).backward()
            optimizer.step()
        found[first, start] = torch.tensor(course)
    return found


def _net(first: bool, start: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(LAYERS):
        linear = nn.Linear(WIDTH, WIDTH)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.constant_(linear.bias, start)
        norm = nn.BatchNorm1d(WIDTH)
        layers += [linear, norm, nn.ReLU()] if first else [linear, nn.ReLU(), norm]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10))


def _trainings(trained: list[Course]) -> list[Claim]:
    """Active at the end by the normaliser's own numbers; and how far each order strays from the half."""
    root = math.sqrt(len(trained))
    claims = []
    for start in STARTS:
        last = torch.stack([row[True, start][-1] for row in trained])
        law, gap = float(last[:, 1].mean()), last[:, 0] - last[:, 1]
        text = f"active after training, norm first, biases from {start:g}, by gain and bias"
        claims.append(Claim.equal(text, law, law + float(gap.mean()), float(gap.std()) / root, absolute=SKEW))
    away = torch.tensor(
        [
            [sum(float((row[f, s][:, 0] - 0.5).abs().mean()) for s in STARTS) / 2 for f in (True, False)]
            for row in trained
        ]
    )
    more = away[:, 1] - away[:, 0]
    text = "distance from a half in training, rectifier first minus norm first"
    return [*claims, Claim.above(text, 0.0, float(more.mean()), float(more.std()) / root)]


def _panels(
    before: dict[float, list[list[float]]], laws: list[list[float]], found: list[tuple[list[float], list[float]]]
) -> list[Panel]:
    shares = []
    for beta, rows in before.items():
        name = f"norm first, beta {beta:g}"
        shares += [Series(name, SHIFTS, [_phi(beta)] * len(SHIFTS), kind="law"), Series(name, SHIFTS, *_summary(rows))]
    name = "rectifier first"
    shares += [Series(name, SHIFTS, laws[0], kind="law"), Series(name, SHIFTS, *found[0])]
    skews = []
    for name, part in (("smallest value", 1), ("skewness", 2)):
        skews += [Series(name, SHIFTS, laws[part], kind="law"), Series(name, SHIFTS, *found[part])]
    text = "mean of the pre-activation, in standard deviations"
    return [
        Panel("active units", text, "share above zero", tuple(shares)),
        Panel("the normalised law, rectifier first", text, "of the values behind the norm", tuple(skews)),
    ]


def _course(trained: list[Course]) -> Panel:
    series = []
    for first, start in trained[0]:
        name = f"{'norm' if first else 'rectifier'} first, from {start:g}"
        table = torch.stack([row[first, start] for row in trained])
        steps = list(range(0, table.shape[1], max(1, table.shape[1] // 20)))
        mean, error = table[..., 0].mean(0)[steps], table[..., 0].std(0)[steps] / math.sqrt(len(trained))
        if first:
            series.append(Series(name, steps, table[..., 1].mean(0)[steps].tolist(), kind="law"))
        series.append(Series(name, steps, mean.tolist(), error.tolist()))
    return Panel("while a net trains", "step", "share above zero", tuple(series))
