"""`jacobian-law`: the Jacobian's norm is a random variable over data and weights, and attacks succeed as it is large.

Law         of a stack of L ReLU layers with variance 2/n and a single output with variance 1/n the squared norm of the
            gradient in the input has the mean 1 at every depth and width: each layer halves it and doubles it. A
            trained net's answer turns at a distance of no less than margin / G, where G is the largest norm of the
            margin's gradient on the way, so whatever lowers the norm at equal margins protects; a penalty on the norm
            does.
Setting     drawn stacks of 1, 4 and 10 layers of 64 units; nets 64-64-10 with tanh on scikit-learn's digits, trained by
            Adam with and without a penalty on the squared Jacobian norm, the same starts and batches; `tr.robustness`
            measures norms and attacks.
Band        the mean is exact; the law of the distance is an inequality. The two trainings are compared by pairs.
Reading     the left panel: the law of the norm over test samples; the right one: the share that projected gradient
            ascent turns by radius, dashed the share whose margin over slope is below the radius.
References  Pennington, Schoenholz, Ganguli (2017), Resurrecting the sigmoid in deep learning through dynamical
            isometry, NeurIPS; Hanin (2018), Which neural net architectures give rise to exploding and vanishing
            gradients?, NeurIPS; Hoffman, Roberts, Yaida (2019), Robust learning with Jacobian regularization,
            arXiv:1908.02729; Novak et al. (2018), Sensitivity and generalization in neural networks, ICLR.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tightrope.instruments.robustness import attack, jacobian_norms
from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial

PRINCIPLES = ("P21",)
DEPTHS, WIDTH = (1, 4, 10), 64
PENALTY = 0.02
RADII = (0.1, 0.2, 0.3, 0.5, 0.8)
MIDDLE = 2
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
POINTS = 32
"""Of the way to a turned sample, where the margin's gradient is taken."""


def run(trial: Trial) -> Result:
    """The mean of the squared norm by depth, and norms and attacks of nets with and without a penalty."""
    seeds = trial.seeds(3, 12)
    claims = [_mean(trial)]
    plain, calm = ([_trained(penalty, seed) for seed in seeds] for penalty in (0.0, PENALTY))
    names = ("plain", "penalty")
    medians = [[float(net.norms.median()) for net in nets] for nets in (plain, calm)]
    turned = [torch.tensor([net.turned for net in nets]) for nets in (plain, calm)]
    fall = torch.tensor(medians[0]).log() - torch.tensor(medians[1]).log()
    claims += [
        Claim.above("log of the median norm, plain less with penalty", 0.0, *_paired(fall)),
        Claim.above(f"share turned at {RADII[MIDDLE]:g}, plain less with penalty", 0.0,
                    *_paired((turned[0] - turned[1])[:, MIDDLE])),
        Claim.above(
            "distance of a turned sample times the largest slope on the way, over its margin; the least",
            1.0, min(net.ratio for net in (*plain, *calm)),
        ),
        Claim.above("rank correlation of slope over margin with being turned", 0.0,
                    *_paired(torch.tensor([net.rank for net in plain]))),
    ]  # fmt: skip
    laws = [
        Series(name, LEVELS, torch.stack([n.norms.quantile(_levels()) for n in nets]).mean(0).tolist(),
               _errors(torch.stack([n.norms.quantile(_levels()) for n in nets])))
        for name, nets in zip(names, (plain, calm), strict=True)
    ]  # fmt: skip
    falls = [Series(name, RADII, t.mean(0).tolist(), _errors(t)) for name, t in zip(names, turned, strict=True)]
    falls += [
        Series(name, RADII, torch.tensor([net.straight for net in nets]).mean(0).tolist(), kind="reference")
        for name, nets in zip(names, (plain, calm), strict=True)
    ]
    return Result(
        tuple(claims),
        (
            Panel("Jacobian norm over test samples", "quantile", "norm", tuple(laws), log_y=True),
            Panel("share that an attack turns", "radius, L2", "share of the right ones", tuple(falls)),
        ), seeds,
    )  # fmt: skip


def _levels() -> Tensor:
    return torch.tensor(LEVELS, dtype=torch.float64)


def _errors(values: Tensor) -> list[float]:
    found: list[float] = (values.double().std(0) / math.sqrt(len(values))).tolist()
    return found


def _paired(values: Tensor) -> tuple[float, float]:
    return float(values.double().mean()), float(values.double().std()) / math.sqrt(len(values))


def _mean(trial: Trial) -> Claim:
    """The squared norm of drawn stacks, one sample each."""
    parts = trial.pick(30, 100)
    means, errors = list[float](), list[float]()
    for depth in DEPTHS:
        torch.manual_seed(trial.seed)
        found = torch.cat([_squares(depth) for _ in range(parts)]).double()
        means.append(float(found.mean()))
        errors.append(float(found.std()) / math.sqrt(len(found)))
    return Claim.curve("mean squared norm of a drawn stack", [f"depth {d}" for d in DEPTHS], [1.0] * 3, means, errors)


def _squares(depth: int) -> Tensor:
    """Squared norm of the gradient of a hundred drawn stacks, at one sample each."""
    x = torch.randn(100, 1, WIDTH, requires_grad=True)
    y = x
    for _ in range(depth):
        y = torch.relu(y @ torch.randn(100, WIDTH, WIDTH) * math.sqrt(2 / WIDTH))
    out = y @ torch.randn(100, WIDTH, 1) / math.sqrt(WIDTH)
    return torch.autograd.grad(out.sum(), x)[0].square().sum((1, 2))


class _Net:
    """What was measured of one trained net on test samples.

    Attributes:
        norms: Jacobian norm of each sample.
        turned, straight: share of the right samples that an attack of each radius turns, and that it would turn if
            the margin fell as it does at the sample.
        ratio: least distance of a turned sample times the largest slope of the margin on the way, over the margin.
        rank: Spearman's correlation of slope over margin with being turned by the middle radius.
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        self.norms = jacobian_norms(model, x).values
        found = [attack(model, (x, y), eps=radius, norm="2", steps=10) for radius in RADII]
        self.turned = [a.flipped.value for a in found]
        last = found[-1]
        moved = torch.isfinite(last.distances) & (last.distances > 0)
        slope = torch.stack([
            _slopes(model, x[moved] + t * (last.perturbed[moved] - x[moved]), y[moved])
            for t in torch.linspace(0, 1, POINTS)
        ]).amax(0)  # fmt: skip
        ratios = last.distances[moved] * slope / last.margins[moved]
        self.ratio = float(ratios.min()) if len(ratios) else math.inf
        right = last.margins > 0
        steep = (_slopes(model, x, y) / last.margins)[right]
        self.straight = [float((steep > 1 / radius).double().mean()) for radius in RADII]
        self.rank = _spearman(steep, (found[MIDDLE].distances[right] < math.inf).double())


def _slopes(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Norm of the gradient of the true logit less the largest other one; shape (samples,)."""
    at = x.clone().requires_grad_()
    scores = model(at)
    rows = torch.stack(
        [torch.autograd.grad(scores[:, k].sum(), at, retain_graph=True)[0] for k in range(scores.shape[1])], 1
    )
    own = rows[torch.arange(len(y)), y]
    other = scores.detach().scatter(1, y[:, None], -math.inf).argmax(1)
    norms: Tensor = (own - rows[torch.arange(len(y)), other]).norm(dim=1)
    return norms.double()


def _spearman(a: Tensor, b: Tensor) -> float:
    def ranks(v: Tensor) -> Tensor:
        _, where, counts = v.unique(return_inverse=True, return_counts=True)
        ends = counts.cumsum(0).double()
        middle: Tensor = ends - (counts - 1) / 2
        return middle[where]

    return float(torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1])


def _trained(penalty: float, seed: int) -> _Net:
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.data, dtype=torch.float32) / 16
    y = torch.tensor(data.target)
    torch.manual_seed(seed)
    order = torch.randperm(len(x))
    x, y = x[order], y[order]
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(400):
        rows = torch.arange(step * 64, (step + 1) * 64) % 1200
        inputs = x[rows].requires_grad_()
        scores = model(inputs)
        loss = F.cross_entropy(scores, y[rows])
        if penalty:
            along = torch.randn_like(scores)  # E ||J' v||^2 is the squared norm
            (slope,) = torch.autograd.grad((scores * along).sum(), inputs, create_graph=True)
            loss = loss + penalty * slope.square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return _Net(model, x[1200:1500], y[1200:1500])
