"""`lipschitz`: no slope exceeds a certified bound, and a bounded slope trades fit for robustness.

Law         every slope that is found is at most the Lipschitz constant K, and K at most LipSDP's bound, which is at
            most the product of spectral norms and largest slopes; a convolution's norm is that on its input's size, and
            the norm of its reshaped kernel may be smaller than K. Of two classes that lie d apart a logit of slope at
            most K has a mean logistic loss of no less than log(1 + e^(-K d / 2)), and where it is that, an attack of
            length r > d / 2 makes it log(1 + e^(K (r - d / 2))): more slope fits better and breaks worse.
Setting     nets with one hidden layer of 8 ReLU, of which all 256 patterns of units are gone through; deeper and
            convolutional nets of random shape against a search; nets of two points trained with their product bound as
            a cap.
Band        inequalities have none; 1e-9 of the bound is left for rounding. How near to its floor training brings the
            loss is no law; the loss under attack is compared between caps.
Reading     right panel: loss on the data falls with the slope, loss under attack rises; the lines are the closed forms.
References  Szegedy et al. (2014), Intriguing properties of neural networks, ICLR; Fazlyab et al. (2019), Efficient and
            accurate estimation of Lipschitz constants for deep neural networks, NeurIPS; Anil, Lucas, Grosse (2019),
            Sorting out Lipschitz function approximation, ICML; Béthune et al. (2022), Pay attention to your loss:
            understanding misconceptions about Lipschitz neural networks, NeurIPS.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tightrope.instruments.robustness import lipschitz_bound
from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial

PRINCIPLES = ("P22",)
UNITS, INPUTS = 8, 8
CAPS = (0.25, 0.5, 1.0, 2.0, 4.0)
APART, RADIUS = 2.0, 1.5
"""Distance of the two classes, and length of the attack."""


def run(trial: Trial) -> Result:
    """The order of all bounds in random nets, and the trade-off of a capped slope."""
    nets, seeds = trial.pick(30, 200), trial.seeds(3, 12)
    rows = sorted((_known(seed) for seed in range(trial.seed, trial.seed + nets)), key=lambda row: row[1])
    lower, truth, sdp, product = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    others = [_searched(seed) for seed in range(trial.seed, trial.seed + nets)]
    kernel, conv = _convolution()
    fits = {cap: [_fitted(cap, seed) for seed in seeds] for cap in CAPS}
    clean = [torch.tensor([fit[0] for fit in fits[cap]], dtype=torch.float64) for cap in CAPS]
    attacked = [torch.tensor([fit[1] for fit in fits[cap]], dtype=torch.float64) for cap in CAPS]
    floor = [math.log1p(math.exp(-cap * APART / 2)) for cap in CAPS]
    broken = [math.log1p(math.exp(cap * (RADIUS - APART / 2))) for cap in CAPS]
    change = attacked[-1] - attacked[1]
    claims = (
        Claim.below(f"slope that a search finds over the constant, largest of {nets}", 1.0 + 1e-9,
                    float((lower / truth).max())),
        Claim.above(f"LipSDP over the constant, least of {nets}", 1.0, float((sdp / truth).min())),
        Claim.below(f"LipSDP over the product bound, largest of {nets}", 1.0 + 1e-6, float((sdp / product).max())),
        Claim.below(f"lower over upper bound, deep and convolutional nets, largest of {nets}", 1.0, max(others)),
        Claim.above("slope of a convolution over the norm of its reshaped kernel", 1.0, conv / kernel),
        Claim.above("loss over its floor at a capped slope, the least", 1.0 - 1e-9,
                    min(float(c.min()) / f for c, f in zip(clean, floor, strict=True))),
        Claim.above("loss under attack, slope of at most 4 less slope of at most 1/2", 0.0,
                    float(change.mean()), float(change.std()) / math.sqrt(len(change))),
    )  # fmt: skip
    order = list(range(1, nets + 1))
    shown = slice(None, None, max(nets // 30, 1))
    bounds = [
        Series(name, order[shown], values.tolist()[shown])
        for name, values in (("search", lower), ("LipSDP", sdp), ("product", product))
    ]
    bounds.insert(0, Series("constant", order, truth.tolist(), kind="law"))
    trade = [
        Series("data", CAPS, floor, kind="reference"), Series("data", CAPS, *_means(clean)),
        Series("attack", CAPS, broken, kind="reference"), Series("attack", CAPS, *_means(attacked)),
    ]  # fmt: skip
    return Result(
        claims,
        (
            Panel("one hidden layer, all patterns known", "net, in the order of its constant", "slope", tuple(bounds)),
            Panel("two classes under a cap on the slope", "largest slope", "logistic loss", tuple(trade),
                  log_x=True, log_y=True),
        ), seeds,
    )  # fmt: skip


def _means(values: list[Tensor]) -> tuple[list[float], list[float]]:
    return [float(v.mean()) for v in values], [float(v.std()) / math.sqrt(len(v)) for v in values]


def _known(seed: int) -> tuple[float, float, float, float]:
    """Lower bound, constant over all patterns, LipSDP and product of a net whose patterns are all met."""
    torch.manual_seed(seed)
    into, out = nn.Linear(INPUTS, UNITS).double(), nn.Linear(UNITS, 3).double()
    model, first, second = nn.Sequential(into, nn.ReLU(), out), into.weight.detach(), out.weight.detach()
    patterns = torch.tensor(list(itertools.product((0.0, 1.0), repeat=UNITS)), dtype=torch.float64)
    truth = float(torch.linalg.matrix_norm((second * patterns[:, None]) @ first, 2).max())
    found = lipschitz_bound(model, torch.randn(64, INPUTS).double(), sdp=True, rounds=4, seed=seed)
    return found.lower, truth, found.sdp or math.nan, found.product or math.nan


def _searched(seed: int) -> float:
    """Lower over upper bound of a deep or convolutional net."""
    torch.manual_seed(seed)
    if seed % 2:
        model = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.GELU(), nn.AvgPool2d(2), nn.Conv2d(4, 6, 3, stride=2, padding=1),
            nn.ReLU(), nn.Flatten(), nn.LazyLinear(3),
        )  # fmt: skip
        x = torch.randn(16, 2, 8, 8)
        model(x)
    else:
        widths = [6, *(int(w) for w in torch.randint(2, 20, (3,)))]
        layers = [m for a, b in itertools.pairwise(widths) for m in (nn.Linear(a, b), nn.Tanh())]
        model, x = nn.Sequential(*layers, nn.Linear(widths[-1], 2)), torch.randn(16, 6)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2.0)
    found = lipschitz_bound(model, x, rounds=3, seed=seed)
    return found.lower / found.upper if found.upper else math.inf


def _convolution() -> tuple[float, float]:
    """Norm of the reshaped kernel of ones, and a slope of the convolution that it makes."""
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.constant_(layer.weight, 1.0)
    reshaped = float(torch.linalg.matrix_norm(layer.weight.detach().reshape(1, 9), 2))
    return reshaped, lipschitz_bound(layer, torch.randn(2, 1, 24, 24), rounds=0).lower


def _fitted(cap: float, seed: int) -> tuple[float, float]:
    """Loss on the data and under attack of a net whose certified bound is `cap`."""
    torch.manual_seed(seed)
    along = F.normalize(torch.randn(4, dtype=torch.float64), dim=0)
    x = torch.stack([-along, along]) * APART / 2
    sign = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    into, out = nn.Linear(4, 16).double(), nn.Linear(16, 1).double()
    model = nn.Sequential(into, nn.LeakyReLU(0.5), out)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)

    def logit(at: Tensor) -> Tensor:
        scale = torch.linalg.matrix_norm(into.weight, 2) * torch.linalg.matrix_norm(out.weight, 2)
        made: Tensor = model(at)[:, 0] * cap / scale
        return made

    for _ in range(400):
        optimizer.zero_grad()
        F.softplus(-sign * logit(x)).mean().backward()
        optimizer.step()
    moved = x.clone()
    for _ in range(20):
        at = moved.clone().requires_grad_()
        (slope,) = torch.autograd.grad(F.softplus(-sign * logit(at)).sum(), at)
        moved = x + RADIUS * F.normalize(moved - x + 0.3 * F.normalize(slope, dim=1), dim=1)
    with torch.no_grad():
        return float(F.softplus(-sign * logit(x)).mean()), float(F.softplus(-sign * logit(moved)).mean())
