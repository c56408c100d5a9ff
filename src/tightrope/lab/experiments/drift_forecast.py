"""`drift-forecast`: the weights below tell how far a layer's input has moved, and behind a norm they have no say.

Law         the law of a layer's input is a function of the weights below: the forecast for the weights of step t minus
            that for those of the start is the drift. Behind a batch norm and a rectifier it is a function of the norm's
            own gains and biases alone: its mean is that of gamma phi(beta / gamma) + beta Phi(beta / gamma) over units,
            its mean square that of (beta^2 + gamma^2) Phi + beta gamma phi, whatever the weights do.
Setting     five hidden layers of 64 ReLU with and without batch norm, trained by gradient descent with momentum, with
            the norm at five times the rate too; the drift is the statistic of the check `moving-target`: shift of the
            mean in its first standard deviations, and logarithm of the ratio of the standard deviations, on one batch
            of 512 from before the first step on.
Band        the forecast's standard deviations are off by up to 5 per cent, most of it alike at both steps: 0.05. A
            unit's law of excess kurtosis 1 moves the mean behind a rectifier by less, phi(0) / 24.
Reading     lines are the law, points measured, their bars the error of the difference. Without a norm the drift grows
            from layer to layer, and the last layer's input shrinks by almost a half while it is learnt. With it, what
            moves is what beta and gamma have learnt. Later on units are no longer normal: at five times the rate the
            law of normal ones misses a fifth of the last layer's stretch after 32 steps.
References  Ioffe and Szegedy (2015), Batch normalization, ICML; Santurkar, Tsipras, Ilyas and Madry (2018), How does
            batch normalization help optimization?, NeurIPS, who find the shift no harm in itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tightrope.check import study
from tightrope.checks.signal.moving_target import moves
from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial
from tightrope.law import Law
from tightrope.study import Study

PRINCIPLES = ("P11",)
INPUTS, WIDTH, LAYERS = 32, 64, 5
FAST = "batch norm, 5 times the rate"
FORMS = {"without a norm": (False, 0.02), "with batch norm": (True, 0.02), FAST: (True, 0.1)}
"""Whether there are norms, and the rate of descent."""
WAYS = ("shift of the mean", "logarithm of the std's ratio")
BAND = 0.05


def run(trial: Trial) -> Result:
    """Drifts along two trainings, by the forecast, by the norm's own numbers, and measured."""
    seeds, steps = trial.seeds(6, 12), trial.pick((3, 6, 12), (2, 4, 6, 8, 10, 12))
    found = {name: torch.stack([_train(*form, seed, steps) for seed in seeds]) for name, form in FORMS.items()}
    at = [f"step {s}, layer {n + 2}" for s in steps for n in range(LAYERS)]
    claims = []
    for name in ("without a norm", FAST):
        table = found[name]
        for way, text in enumerate(WAYS):
            claims.append(
                _claim(f"{text}, {name}, by the forecast", at, table[:, :, :, way, 1], table[:, :, :, way, 0])
            )
    held = found[FAST]
    for way, text in enumerate(WAYS):
        claims.append(_claim(f"{text}, by gamma and beta alone", at, held[:, :, :, way, 2], held[:, :, :, way, 0]))
    far = {name: table[..., 0].abs().amax((1, 2)) for name, table in found.items()}
    for way, text in enumerate(WAYS):
        more = (far["without a norm"][:, way] / far["with batch norm"][:, way]).log()
        error = float(more.std()) / math.sqrt(len(seeds))
        claims.append(Claim.above(f"{text}, largest: log of without a norm over with", 0.0, float(more.mean()), error))
    return Result(tuple(claims), _panels(steps, found), seeds)


def _claim(text: str, at: Sequence[str], law: Tensor, seen: Tensor) -> Claim:
    """The mean law beside the mean measurement, at the point that agrees worst; shapes (seeds, steps, layers)."""
    gap = (seen - law).flatten(1)
    error = gap.std(0) / math.sqrt(len(gap))
    told = law.flatten(1).mean(0)
    return Claim.curve(text, at, told.tolist(), (told + gap.mean(0)).tolist(), error.tolist(), absolute=BAND)


def _train(norm: bool, rate: float, seed: int, steps: Sequence[int]) -> Tensor:
    """Drift of every hidden layer's input; shape (steps, layers, 2 ways, measured | forecast | by gain and bias)."""
    torch.manual_seed(seed)
    net, teacher, batch = _net(norm), torch.randn(INPUTS, 1) / 5, torch.randn(512, INPUTS)

    def target(x: Tensor) -> Tensor:
        return 3 * torch.tanh(x @ teacher)

    def look() -> Study:
        return study(net, (batch, target(batch)), loss=nn.functional.mse_loss)

    first, start = look(), _told(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9)
    found = []
    for step in range(1, max(steps) + 1):
        x = torch.randn(128, INPUTS)
        loss = nn.functional.mse_loss(net(x), target(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in steps:
            found.append(_drifts(first, look(), start, _told(net)))
    return torch.stack(found)


def _net(norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n in range(LAYERS):
        linear = nn.Linear(WIDTH if n else INPUTS, WIDTH)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers += [linear, *([nn.BatchNorm1d(WIDTH)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 1))


def _told(net: nn.Sequential) -> list[Law]:
    """Laws behind each batch norm and rectifier by its gains and biases alone."""
    found = []
    for norm in (layer for layer in net if isinstance(layer, nn.BatchNorm1d)):
        gain, bias = norm.weight.detach().double().abs(), norm.bias.detach().double()
        share, density = torch.special.ndtr(bias / gain), torch.exp(-((bias / gain) ** 2) / 2) / math.sqrt(2 * math.pi)
        mean = float((gain * density + bias * share).mean())
        square = float(((bias**2 + gain**2) * share + bias * gain * density).mean())
        found.append(Law(mean, residual=square - mean**2))
    return found


def _drifts(first: Study, later: Study, start: list[Law], now: list[Law]) -> Tensor:
    rows = []
    for n, move in enumerate(moves(first, later)):
        module = move.entry.module
        before = next(entry for entry in first.tape.entries if entry.module == module and entry.op == move.entry.op)
        laws = first.forecast.laws[before.inputs[0]], later.forecast.laws[move.entry.inputs[0]]
        own = _between(start[n], now[n]) if start else (math.nan, math.nan)
        rows.append([list(row) for row in zip((move.shift, move.stretch), _between(*laws), own, strict=True)])
    return torch.tensor(rows)


def _between(old: Law, new: Law) -> tuple[float, float]:
    """Shift and stretch, as the check has them."""
    return (new.mean - old.mean) / old.std, math.log(new.std / old.std)


def _panels(steps: Sequence[int], found: dict[str, Tensor]) -> tuple[Panel, ...]:
    panels = []
    for way, text in enumerate(WAYS):
        over, along = list[Series](), list[Series]()
        for name, table in found.items():
            rows = table[:, :, -1, way]
            over += [Series(name, steps, rows[..., 1].mean(0).tolist(), kind="law"), _points(name, steps, rows)]
            rows, at = table[:, -1, :, way], range(2, LAYERS + 2)
            along += [Series(name, at, rows[..., 1].mean(0).tolist(), kind="law"), _points(name, at, rows)]
        panels += [
            Panel(f"{text}, last layer", "step", text, tuple(over)),
            Panel(f"{text}, step {steps[-1]}", "layer that reads it", text, tuple(along)),
        ]
    return tuple(panels)


def _points(name: str, at: Sequence[float], rows: Tensor) -> Series:
    mean, error = rows[..., 0].mean(0), (rows[..., 0] - rows[..., 1]).std(0) / math.sqrt(len(rows))
    return Series(name, at, mean.tolist(), error.tolist())
