"""`signal-cascade`: a stack multiplies the variance of its signal, and of its gradient, by one gain in every layer.

Law         Var(z) = n Var(w) E[a^2] in every layer. Between layers of ReLU E[a^2] = Var(z) / 2, so the variance is
            multiplied by g = n Var(w) / 2 in each, and so is that of the gradient on its way back: L layers make g^L,
            which is 1 at the variance of 2 / n alone. Of the draws of finite layers the typical one falls behind that
            mean: the logarithm of the variance moves by log g - 5 / (2 n) a layer.
Setting     stacks of 10, 50 and 100 layers of 256 ReLU on standard normal inputs, weights drawn at 0.5, 1 and 1.5 times
            the variance of 2 / n. The lines are the forecast of `tightrope predict`, the points medians over draws.
Band        the term in 1 / n is the first of a series, the next of its kind is a thousandth: 0.005 of a layer's
            logarithm, half a per cent of its gain.
Reading     below the critical variance signal and gradient vanish at one rate, above it both explode; the gradient's
            panel is read from the right.
References  He, Zhang, Ren, Sun (2015), Delving deep into rectifiers, ICCV; Schoenholz et al. (2017), Deep information
            propagation, ICLR; Hanin and Rolnick (2018), How to start training: the effect of initialization and
            architecture, NeurIPS.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial
from tightrope.predict import Forecast
from tightrope.step import predict

PRINCIPLES = ("P01",)
WIDTH, BATCH = 256, 8
"""Units of a layer, samples of a batch."""
SCALES = {"too small": 0.5, "He": 1.0, "too large": 1.5}
DEPTHS = (10, 50, 100)


def run(trial: Trial) -> Result:
    """The forecast's standard deviations along the stack, those measured, and the gain of a layer in each depth."""
    seeds = trial.seeds(7, 20)
    claims, signal, gradient = [], list[Series](), list[Series]()
    for name, scale in SCALES.items():
        law = math.log(scale) / 2 - 5 / (4 * WIDTH)
        gains = {depth: [_gains(*_measured(depth, scale, seed)) for seed in _draws(seeds, depth)] for depth in DEPTHS}
        for side, title in enumerate(("signal", "gradient")):
            means = [torch.tensor([pair[side] for pair in gains[depth]]) for depth in DEPTHS]
            errors = [float(m.std() / math.sqrt(len(m))) for m in means]
            text = f"log gain of the {title} a layer, {name}"
            claims.append(
                Claim.curve(text, [f"depth {d}" for d in DEPTHS], [law] * 3, [float(m.mean()) for m in means], errors,
                            absolute=0.005)
            )  # fmt: skip
        forecast = _forecast(scale)
        draws = [_measured(DEPTHS[-1], scale, seed) for seed in seeds]
        signal += _curves(name, forecast[0], torch.stack([draw[0] for draw in draws]))
        gradient += _curves(name, forecast[1], torch.stack([draw[1] for draw in draws]))
    panels = (
        Panel("signal", "layer", "std of the pre-activation", tuple(signal), log_y=True),
        Panel("gradient", "layer", "rms of the gradient, last layer = 1", tuple(gradient), log_y=True),
    )
    return Result(tuple(claims), panels, seeds)


def _draws(seeds: tuple[int, ...], depth: int) -> range:
    """Seeds of four times as many layers in all, whatever the depth."""
    return range(seeds[0], seeds[0] + len(seeds) * 4 * DEPTHS[-1] // depth)


def _stack(depth: int, scale: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(WIDTH, WIDTH, bias=False)
        nn.init.normal_(linear.weight, std=math.sqrt(scale * 2 / WIDTH))
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _measured(depth: int, scale: float, seed: int) -> tuple[Tensor, Tensor]:
    """rms over units of every layer's pre-activation and of its gradient, for one draw; shape (layers, samples)."""
    torch.manual_seed(seed)
    x, values = torch.randn(BATCH, WIDTH), list[Tensor]()
    for layer in _stack(depth, scale):
        x = layer(x)
        if isinstance(layer, nn.Linear):
            values.append(x)
    gradients = torch.autograd.grad(values[-1], values, torch.randn(BATCH, WIDTH))
    return torch.stack([_rms(v.detach()) for v in values]), torch.stack([_rms(g) for g in gradients])


def _rms(values: Tensor) -> Tensor:
    return values.square().mean(-1).sqrt()


def _gains(signal: Tensor, gradient: Tensor) -> tuple[float, float]:
    """The logarithm of a layer's gain, forward and backward; means over layers and samples."""
    layers = len(signal) - 1
    forward, back = (signal[-1] / signal[0]).log(), (gradient[0] / gradient[-1]).log()
    return float(forward.mean() / layers), float(back.mean() / layers)


def _forecast(scale: float) -> tuple[list[float], list[float]]:
    """Predicted standard deviation of every layer and of its gradient, the last one's 1."""
    forecast: Forecast = predict(_stack(DEPTHS[-1], scale), torch.randn(BATCH, WIDTH))
    outputs = [entry.outputs[0] for entry in forecast.tape.entries if entry.op == "linear"]
    last = forecast.gradients[outputs[-1]].rms
    return [forecast.laws[n].rms for n in outputs], [forecast.gradients[n].rms / last for n in outputs]


def _curves(name: str, law: list[float], measured: Tensor) -> tuple[Series, Series]:
    at = range(1, len(law) + 1)
    pooled = measured.square().mean(-1).sqrt()
    middle = pooled.median(0).values
    errors = 1.25 * middle * pooled.log().std(0) / math.sqrt(len(pooled))
    shown = slice(None, None, 5)
    points = Series(name, list(at)[shown], middle[shown].tolist(), errors[shown].tolist())
    return Series(name, list(at), law, kind="law"), points
