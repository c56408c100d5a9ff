"""`sweet-spot`: of pre-activations z ~ N(mu, sigma^2) a share that f alone decides lies where f still has a slope.

Law         the sweet spot of f is where |f'| is at least a tenth of its maximum: |z| < 2 artanh(sqrt(0.9)) = 3.64 for
            the sigmoid, half of that for tanh, z > 0 for ReLU, z > -log 10 for ELU. With z ~ N(mu, sigma^2) the share
            in it is the sum of Phi((b - mu) / sigma) - Phi((a - mu) / sigma) over its intervals (a, b); over the units
            of a layer, the mean of that.
Setting     eleven activations behind a linear layer of 64 units on normal inputs, sigma from 0.25 to 16; the slope of
            every value by autograd. Then nets of six layers of 256 units on scikit-learn's digits, each digit scaled to
            one length, with weights of 0.25, 1 and 4 times the scale that keeps E[f^2]; their law by
            `tightrope.predict`, unit by unit.
Band        exact for normal z, but for the samples. In the nets the forecast's standard deviation is off by up to 5 per
            cent, which moves a share by at most 0.24 of that for each of two edges: 0.025. A unit is normal over digits
            of one length; of digits of several lengths it is a mixture, whose centre and tails hold more.
Reading     dashes and lines are the law, points the measurement. Large weights push tanh and the sigmoid out of their
            spot on both sides, never ReLU, whose share is a half at any scale.
References  Glorot and Bengio (2010), Understanding the difficulty of training deep feedforward networks, AISTATS;
            Hendrycks and Gimpel (2016), Gaussian error linear units, arXiv 1606.08415.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial
from tightrope.step import predict

PRINCIPLES = ("P25",)
ACTIVATIONS: dict[str, nn.Module] = {
    "sigmoid": nn.Sigmoid(), "tanh": nn.Tanh(), "softsign": nn.Softsign(), "ReLU": nn.ReLU(),
    "leaky ReLU": nn.LeakyReLU(), "ELU": nn.ELU(), "GELU": nn.GELU(), "SiLU": nn.SiLU(), "Mish": nn.Mish(),
    "softplus": nn.Softplus(), "hardswish": nn.Hardswish(),
}  # fmt: skip
SHOWN = ("sigmoid", "tanh", "ReLU", "GELU", "SiLU")
SHARE = 0.1
SCALES = tuple(2.0**n for n in range(-2, 5))
GAINS = {"too small": 0.25, "kept": 1.0, "too large": 4.0}
WIDTH, LAYERS, DEEP = 64, 6, 256
EDGES = {
    "sigmoid": 2 * math.atanh(math.sqrt(0.9)),
    "tanh": math.atanh(math.sqrt(0.9)),
    "ELU": -math.log(10),
    "ReLU": 0.0,
}
"""In closed form: the upper one, or the only one."""
BAND = 0.025


def slope(f: nn.Module, z: Tensor) -> Tensor:
    """|f'| by autograd."""
    z = z.detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(f(z).sum(), z)
    return found.abs()


class Spot:
    """The sweet spot of a function: its intervals, found on a grid of a thousandth."""

    def __init__(self, f: nn.Module) -> None:
        z = torch.linspace(-60, 60, 120_001, dtype=torch.float64)
        steep = slope(f, z)
        self.f, self.level = f, SHARE * float(steep.max())
        inside = (steep >= self.level).double()
        turns = inside.diff()
        middle = (z[1:] + z[:-1]) / 2
        low, high = middle[turns > 0].tolist(), middle[turns < 0].tolist()
        self.low = ([-math.inf] if inside[0] else []) + low
        self.high = high + ([math.inf] if inside[-1] else [])

    def law(self, mean: Tensor, std: Tensor) -> float:
        """Share of normal values inside, over units."""
        total = torch.zeros(())
        for a, b in zip(self.low, self.high, strict=True):
            total = total + (torch.special.ndtr((b - mean) / std) - torch.special.ndtr((a - mean) / std)).mean()
        return float(total)

    def share(self, z: Tensor) -> float:
        """Share of values whose slope is at least a tenth of the largest."""
        return float((slope(self.f, z) >= self.level).float().mean())


def run(trial: Trial) -> Result:
    """Edges, shares over the scale of normal values, shares along nets."""
    seeds, samples = trial.seeds(4, 12), trial.pick(2048, 16384)
    spots = {name: Spot(f) for name, f in ACTIVATIONS.items()}
    edges = [max(spots[name].high) if math.isfinite(max(spots[name].high)) else spots[name].low[-1] for name in EDGES]
    claims = [Claim.curve("edge of the sweet spot", list(EDGES), list(EDGES.values()), edges, [0.0] * 4, absolute=1e-3)]
    laws = {name: [spot.law(torch.zeros(1), torch.tensor([s])) for s in SCALES] for name, spot in spots.items()}
    found = {name: _shares(spot, samples, seeds) for name, spot in spots.items()}
    one = SCALES.index(1.0)
    table = [[found[name][part][one] for name in spots] for part in (0, 1)]
    claims.append(Claim.curve("share at sigma = 1", list(spots), [laws[name][one] for name in spots], *table))
    for name in ("sigmoid", "tanh", "GELU"):
        claims.append(Claim.curve(f"share of {name}, sigma", SCALES, laws[name], *found[name]))
    nets = {name: {label: _net(spots[name], gain, seeds) for label, gain in GAINS.items()} for name in ("tanh", "SiLU")}
    for name, rows in nets.items():
        at = [f"{label}, layer {n + 1}" for label in rows for n in range(LAYERS)]
        parts = [[value for row in rows.values() for value in row[part]] for part in range(3)]
        claims.append(Claim.curve(f"share of {name} in nets", at, *parts, absolute=BAND))
    return Result(tuple(claims), _panels(laws, found, nets), seeds)


Curve = tuple[list[float], list[float]]
Net = tuple[list[float], list[float], list[float]]


def _shares(spot: Spot, samples: int, seeds: tuple[int, ...]) -> Curve:
    """Shares behind a linear layer at every scale, with their errors: over seeds, or of as many independent draws."""
    rows = []
    for seed in seeds:
        torch.manual_seed(seed)
        layer = nn.Linear(WIDTH, WIDTH, bias=False)
        weight = layer.weight.detach() / layer.weight.detach().norm(dim=1, keepdim=True)
        z = torch.randn(samples, WIDTH) @ weight.T
        rows.append([spot.share(scale * z) for scale in SCALES])
    table = torch.tensor(rows)
    mean, own = table.mean(0), table.std(0) / math.sqrt(len(seeds))
    least = (mean * (1 - mean) / (samples * WIDTH * len(seeds))).sqrt()
    return mean.tolist(), torch.maximum(own, least).tolist()


def _net(spot: Spot, gain: float, seeds: tuple[int, ...]) -> Net:
    """Predicted and measured share of each layer, and the standard error of the latter's difference."""
    from sklearn.datasets import load_digits

    data = torch.tensor(load_digits().data[:512], dtype=torch.float32)
    x = (data - data.mean(0)) / data.std(0).clamp(min=0.1)
    x = x / x.square().mean(1, keepdim=True).sqrt()
    z = torch.randn(100_000, dtype=torch.float64)
    kept = float(1 / spot.f(z).square().mean())
    rows = []
    for seed in seeds:
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for n in range(LAYERS):
            linear = nn.Linear(DEEP if n else x.shape[1], DEEP)
            nn.init.normal_(linear.weight, std=gain * math.sqrt((kept if n else 1.0) / linear.in_features))
            nn.init.zeros_(linear.bias)
            layers += [linear, spot.f]
        net = nn.Sequential(*layers)
        forecast = predict(net, x)
        outputs = [entry.outputs[0] for entry in forecast.tape.entries if entry.op == "linear"]
        states = [forecast.states[number] for number in outputs]
        told = [spot.law(state.mean, state.variance.clamp(min=1e-300).sqrt()) for state in states]
        y, seen = x, list[float]()
        with torch.no_grad():
            for layer in net:
                y = layer(y)
                if isinstance(layer, nn.Linear):
                    with torch.enable_grad():
                        seen.append(spot.share(y))
        rows.append([told, seen])
    table = torch.tensor(rows)
    error = (table[:, 1] - table[:, 0]).std(0) / math.sqrt(len(seeds))
    return table[:, 0].mean(0).tolist(), table[:, 1].mean(0).tolist(), error.tolist()


def _panels(
    laws: dict[str, list[float]], found: dict[str, Curve], nets: dict[str, dict[str, Net]]
) -> tuple[Panel, ...]:
    one = SCALES.index(1.0)
    at = range(len(laws))
    table = (
        Series("", at, [law[one] for law in laws.values()], kind="law"),
        Series("", at, [curve[0][one] for curve in found.values()], [curve[1][one] for curve in found.values()]),
    )
    panels = [Panel("z ~ N(0, 1)", "", "share in the sweet spot", table, ticks=tuple(laws))]
    curves = []
    for name in SHOWN:
        curves += [Series(name, SCALES, laws[name], kind="law"), Series(name, SCALES, *found[name])]
    panels.append(Panel("z ~ N(0, sigma^2)", "sigma", "share in the sweet spot", tuple(curves), log_x=True))
    steps = range(1, LAYERS + 1)
    for name, rows in nets.items():
        curves = []
        for label, (told, seen, error) in rows.items():
            curves += [Series(label, steps, told, kind="law"), Series(label, steps, seen, error)]
        panels.append(Panel(f"nets of {name} on digits", "layer", "share in the sweet spot", tuple(curves)))
    return tuple(panels)
