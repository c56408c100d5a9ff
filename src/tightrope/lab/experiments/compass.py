"""`compass`: one trained model tells on which side of the validation curve's bottom it stands, and how steep it is.

Law         at a minimum w of the training objective F(w, h), dE_val/dh = -∇E_val' H^-1 d²F/dw dh with H its Hessian:
            the slope of the curve that training again at other h would trace. Below 0 the model overfits, above 0 it
            underfits, and the curve's bottom is where it is 0.
Setting     weight decay of softmax regression and of a net of 6 tanh units, 20 features of which 4 matter, 120 training
            samples of three classes. Lines are `tightrope.compass` at one minimum each; points are differences of E_val
            between two minima found by training again, 1 % of the decay apart. The 95 % interval of the slope on
            validation sets of 200 is held against the slope on 6 000 other samples.
Band        a difference over a width w has a bias of w² / 24 times the slope's second derivative: below 0.1 % of the
            steepest slope unless that derivative is 200 times as large. The bottom of the curve is read off both in
            the same way, to 0.02 in the logarithm. The larger set is itself 1 / 30 of the variance off, which takes
            0.4 % off the coverage.
Reading     the points of the right panel are those of training again, the line never did; it crosses zero under the
            bottom of the left panel's curve.
References  Larsen et al. (1996), Design and regularization of neural networks: the optimal use of a validation set,
            IEEE NNSP; Bengio (2000), Gradient-based optimization of hyperparameters, Neural Computation 12; Lorraine,
            Vicol, Duvenaud (2020), Optimizing millions of hyperparameters by implicit differentiation, AISTATS.
"""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.instruments import compass
from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial

PRINCIPLES = ("P29",)
FEATURES, CLASSES, TRAIN, VALIDATION, FRESH = 20, 3, 120, 200, 6_000
NEWTON = 20
"""Newton steps at most."""
WIDTH = 0.01
"""Distance of two decays whose losses are compared, in the logarithm."""
Data = tuple[Tensor, Tensor]


def run(trial: Trial) -> Result:
    """Slopes with and without training again, the bottom of both curves, and the error over validation sets."""
    points = trial.pick(6, 12)
    claims, losses, slopes = [], list[Series](), list[Series]()
    train, val, _ = _data(trial.seed)
    for name, model, low, high in (("softmax regression", _linear(), -3.5, 0.0), ("6 tanh units", _net(), -2.5, -0.7)):
        decays = [10 ** (low + (high - low) * i / (points - 1)) for i in range(points)]
        told, found, curve = [], [], []
        for decay in decays:  # from the weakest decay up, each from the last minimum
            model = _trained(model, train, decay)
            reading = compass(
                model, train=train, val=val, loss=F.cross_entropy, hyperparameters={"weight_decay": decay}
            )
            told.append(reading.derivatives["weight_decay"] * decay)
            ends = [_loss(_trained(model, train, decay * math.exp(s * WIDTH / 2)), val) for s in (-1, 1)]
            found.append((ends[1] - ends[0]) / WIDTH)
            curve.append(reading.validation)
        at, none = [f"decay {d:.2g}" for d in decays], [0.0] * points
        worst = 1e-3 * max(map(abs, found))
        claims.append(Claim.curve(f"slope in log decay, {name}", at, told, found, none, absolute=worst))
        bottoms = [_crossing([math.log(d) for d in decays], values) for values in (told, found)]
        claims.append(Claim.equal(f"log decay of the bottom, {name}", *bottoms, absolute=0.02))
        losses.append(Series(name, decays, curve))
        slopes += [Series(name, decays, told, kind="law"), Series(name, decays, found)]
    claims.append(_coverage(trial))
    panels = (
        Panel("the validation curve", "weight decay", "validation loss", tuple(losses), log_x=True),
        Panel("its slope", "weight decay", "dE_val / dlog(weight decay)", tuple(slopes), log_x=True),
    )
    return Result(tuple(claims), panels, trial.seeds(3, 20))


def _data(seed: int) -> tuple[Data, Data, Data]:
    """Training, validation and fresh samples; a third of the labels' evidence is noise."""
    torch.manual_seed(seed)
    weight = torch.randn(FEATURES, CLASSES, dtype=torch.float64)
    weight[4:] = 0
    x = torch.randn(TRAIN + VALIDATION + FRESH, FEATURES, dtype=torch.float64)
    score = x @ weight + 1.5 * torch.randn(len(x), CLASSES, dtype=torch.float64)
    y = score.argmax(1)
    ends = (0, TRAIN, TRAIN + VALIDATION, len(x))
    first, second, third = ((x[a:b], y[a:b]) for a, b in pairwise(ends))
    return first, second, third


def _linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(FEATURES, CLASSES).double()


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 6), nn.Tanh(), nn.Linear(6, CLASSES)).double()


def _trained(model: nn.Module, train: Data, decay: float) -> nn.Module:
    """The minimum next to a model's weights: L-BFGS, then Newton steps to the last digits."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=250, tolerance_grad=1e-5, tolerance_change=0, history_size=20,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = _objective(model, train, decay)
        loss.backward()
        return loss

    optimizer.step(closure)
    parameters = list(model.parameters())
    for _ in range(NEWTON):
        slopes = torch.autograd.grad(_objective(model, train, decay), parameters, create_graph=True)
        slope = torch.cat([s.reshape(-1) for s in slopes])
        if float(slope.detach().norm()) < 1e-11:
            break
        rows = [torch.autograd.grad(s, parameters, retain_graph=True) for s in slope]
        bend, turn = torch.linalg.eigh(torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows]))
        _descend(model, train, decay, turn @ ((turn.T @ slope.detach()) / bend.abs().clamp(min=1e-8)))
    return model


@torch.no_grad()
def _descend(model: nn.Module, train: Data, decay: float, step: Tensor) -> None:
    """Down a step, or as much of it as lowers the objective: no saddle is walked to."""
    parameters = list(model.parameters())
    before, start = [p.clone() for p in parameters], float(_objective(model, train, decay))
    for halving in range(12):
        for p, old, part in zip(parameters, before, step.split([p.numel() for p in parameters]), strict=True):
            p.copy_(old - part.view_as(p) / 2**halving)
        if float(_objective(model, train, decay)) <= start + 1e-14:
            return


def _objective(model: nn.Module, train: Data, decay: float) -> Tensor:
    norm = torch.stack([p.square().sum() for p in model.parameters()]).sum()
    return F.cross_entropy(model(train[0]), train[1]) + decay / 2 * norm


@torch.no_grad()
def _loss(model: nn.Module, data: Data) -> float:
    return float(F.cross_entropy(model(data[0]), data[1]))


def _crossing(at: list[float], slopes: list[float]) -> float:
    """Where the slopes cross zero from below."""
    for i in range(len(at) - 1):
        if slopes[i] < 0 <= slopes[i + 1]:
            return at[i] + (at[i + 1] - at[i]) * slopes[i] / (slopes[i] - slopes[i + 1])
    return math.nan


def _coverage(trial: Trial) -> Claim:
    """How often the interval of a small validation set holds the slope on a large one."""
    held = []
    for seed in trial.seeds(3, 20):
        train, _, fresh = _data(1000 + seed)
        model = _trained(_linear(), train, 0.02)
        parts = [fresh, *zip(fresh[0].split(VALIDATION), fresh[1].split(VALIDATION), strict=True)]
        told = [
            compass(model, train=train, val=part, loss=F.cross_entropy, hyperparameters={"weight_decay": 0.02})
            for part in parts
        ]
        true, *others = (reading.headings["weight_decay"] for reading in told)
        held += [h.low <= true.derivative <= h.high for h in others]
    share = sum(held) / len(held)
    error = math.sqrt(0.95 * 0.05 / len(held))
    text = f"share of 95 % intervals from {VALIDATION} samples that hold the slope"
    return Claim.equal(text, 0.95, share, error, absolute=0.01)
