"""`preconditioner`: normalising lowers the largest curvature, and gradient descent may take steps as much longer.

Law         gradient descent on a quadratic diverges beyond the rate 2 / l_max. Inputs with d features of mean m and
            variance 1 have the largest curvature 1 + d m^2 in the linear model's Hessian, up to the order of sqrt(d /
            N), and standardised ones Marchenko and Pastur's edge (1 + sqrt(d / N))^2, less what Tracy and Widom's law
            takes off. Behind a layer of ReLU every feature has a mean: batch norm takes it away layer by layer, and the
            largest curvature of a deep net falls.
Setting     linear models of 64 features and 4096 samples with means of 0 to 2; nets of 6 layers of 32 ReLU with and
            without batch norm on classes of such inputs, at initialisation. `tr.curvature` gives l_max; the largest
            stable rate is found by running gradient descent, by halving.
Band        linear: terms of the next order, d / N = 1.6 %. The rate of a run is found to 1/500; nets are no quadratics,
            and for them the claims are of pairs with the same start.
Reading     left: curvature before and after standardising; middle: the rate beyond which runs of gradient descent grow;
            right: means over nets of the logarithms of both.
References  Santurkar, Tsipras, Ilyas, Madry (2018), How does batch normalization help optimization?, NeurIPS; LeCun,
            Bottou, Orr, Müller (1998), Efficient backprop; Baik, Ben Arous, Péché (2005), Phase transition of the
            largest eigenvalue for nonnull complex sample covariance matrices, Annals of Probability 33; Johnstone
            (2001), On the distribution of the largest eigenvalue in principal components analysis, Annals of Statistics
            29.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tightrope.instruments import curvature
from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial

PRINCIPLES = ("P12",)
FEATURES, SAMPLES = 64, 4096
MEANS = (0.0, 0.25, 0.5, 1.0, 2.0)
WIDTH, DEPTH, NET_SAMPLES, RUN = 32, 6, 256, 30
TRACY_WIDOM = -1.2065
"""Mean of the largest eigenvalue's law about its edge."""
STEPS = 2**15
"""Of gradient descent on a linear model: a rate 1/1000 beyond the edge grows by e^65."""


def run(trial: Trial) -> Result:
    """Largest curvatures before and after, and the largest stable rates."""
    seeds = trial.seeds(3, 16)
    raw = {mean: torch.tensor([_linear(mean, False, seed) for seed in seeds]) for mean in MEANS}
    calm = {mean: torch.tensor([_linear(mean, True, seed) for seed in seeds]) for mean in MEANS}
    edge = _edge_law()
    law = [max(_spike(mean), edge) for mean in MEANS]
    rates = torch.cat([torch.stack([v[:, 1] * v[:, 0] / 2 for v in table.values()]).flatten() for table in (raw, calm)])
    nets = torch.tensor([[_net(norm, seed) for norm in (False, True)] for seed in seeds], dtype=torch.float64)
    fall = nets[:, 0].log() - nets[:, 1].log()
    claims = (
        Claim.curve("largest curvature, raw, mean", MEANS, law, *_of(raw, 0), within=FEATURES / SAMPLES),
        Claim.curve("largest curvature, standardised, mean before", MEANS, [edge] * len(MEANS), *_of(calm, 0),
                    within=FEATURES / SAMPLES),
        Claim.equal("largest stable rate over 2 / l_max, farthest from 1", 1.0,
                    float(rates[(rates - 1).abs().argmax()]), within=0.004),
        Claim.above("log of a net's largest curvature, plain less with batch norm", 0.0, *_paired(fall[:, 0])),
        Claim.above("log of a net's largest stable rate, with batch norm less plain", 0.0, *_paired(-fall[:, 1])),
    )  # fmt: skip
    curves = (
        Series("raw", MEANS, law, kind="law"), Series("raw", MEANS, *_of(raw, 0)),
        Series("standardised", MEANS, [edge] * len(MEANS), kind="law"), Series("standardised", MEANS, *_of(calm, 0)),
    )  # fmt: skip
    stable = (
        Series("raw", MEANS, [2 / v for v in law], kind="law"), Series("raw", MEANS, *_of(raw, 1)),
        Series("standardised", MEANS, [2 / edge] * len(MEANS), kind="law"),
        Series("standardised", MEANS, *_of(calm, 1)),
    )  # fmt: skip
    names = ("plain", "batch norm")
    deep = tuple(
        Series(name, [0.0, 1.0], nets[:, i].log().mean(0).exp().tolist(), _errors(nets[:, i]))
        for i, name in enumerate(names)
    )
    return Result(
        claims,
        (
            Panel("curvature of a linear model", "mean of the features", "largest eigenvalue", curves, log_y=True),
            Panel("largest stable rate of gradient descent", "mean of the features", "rate", stable, log_y=True),
            Panel("a net of 6 ReLU layers", "", "", deep, log_y=True,
                  ticks=("largest eigenvalue", "largest stable rate")),
        ), seeds,
    )  # fmt: skip


def _edge_law() -> float:
    """Mean of the largest eigenvalue of independent features: the edge of the law, and Tracy and Widom's mean."""
    n, d = math.sqrt(SAMPLES), math.sqrt(FEATURES)
    return float((n + d) ** 2 + TRACY_WIDOM * (n + d) * math.cbrt(1 / n + 1 / d)) / SAMPLES


def _spike(mean: float) -> float:
    """Largest eigenvalue of N samples of d features of variance 1 and this mean: a spike s makes s + s g / (s - 1)."""
    spike, ratio = 1 + FEATURES * mean**2, FEATURES / SAMPLES
    return spike * (1 + ratio / (spike - 1)) if spike > 1 + math.sqrt(ratio) else 0.0


def _of(table: dict[float, Tensor], column: int) -> tuple[list[float], list[float]]:
    found = torch.stack([values[:, column] for values in table.values()]).double()
    return found.mean(1).tolist(), (found.std(1) / math.sqrt(found.shape[1])).tolist()


def _errors(values: Tensor) -> list[float]:
    found: list[float] = (values.std(0) / math.sqrt(len(values))).tolist()
    return found


def _paired(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def _linear(mean: float, standardise: bool, seed: int) -> tuple[float, float]:
    """Largest curvature by the instrument, and largest rate at which gradient descent does not grow."""
    torch.manual_seed(seed)
    x = torch.randn(SAMPLES, FEATURES, dtype=torch.float64) + mean
    if standardise:
        x = (x - x.mean(0)) / x.std(0, correction=0)
    y = x @ torch.randn(FEATURES, 1, dtype=torch.float64)
    model = nn.Linear(FEATURES, 1, bias=False).double()
    largest = curvature(model, (x, y), loss=_half_squares, top=1).lambda_max
    hessian = x.T @ x / SAMPLES

    eye = torch.eye(FEATURES, dtype=torch.float64)
    error = torch.randn(FEATURES, dtype=torch.float64)

    def grows(rate: float) -> bool:
        """Whether so many steps, taken as the power of one, lead further away than the start."""
        return not float((torch.linalg.matrix_power(eye - rate * hessian, STEPS) @ error).norm()) < float(error.norm())

    return largest, _edge(grows, 1.0 / largest)


def _half_squares(output: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(output, target) / 2


def _edge(grows: Callable[[float], bool], start: float) -> float:
    """The rate between one that does not grow and one that does, by doubling and halving to 1/1000."""
    low, high = start, 2 * start
    while grows(low):
        low, high = low / 2, low
    while not grows(high):
        low, high = high, 2 * high
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if grows(middle) else (middle, high)
    return math.sqrt(low * high)


def _net(norm: bool, seed: int) -> tuple[float, float]:
    """Largest curvature of a deep net at its start, and the largest rate whose run ends below its start."""
    torch.manual_seed(seed)
    x = torch.randn(NET_SAMPLES, WIDTH) + 1.0
    y = (x[:, :4] - 1.0).argmax(1)
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for _ in range(DEPTH):
        linear = nn.Linear(WIDTH, WIDTH)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        layers += [linear, *([nn.BatchNorm1d(WIDTH)] if norm else []), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(WIDTH, 4))
    largest = curvature(model, (x, y), loss=F.cross_entropy, top=1, probes=1, tolerance=1e-2).lambda_max
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def grows(rate: float) -> bool:
        model.load_state_dict(state)
        optimizer = torch.optim.SGD(model.parameters(), rate)
        losses = []
        for _ in range(RUN):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return not losses[-1] < losses[0]

    low, high = 1e-3, 2e-3
    while not grows(high) and high < 1e3:
        low, high = high, 2 * high
    for _ in range(3):  # to a tenth
        middle = math.sqrt(low * high)
        low, high = (low, middle) if grows(middle) else (middle, high)
    return largest, math.sqrt(low * high)
