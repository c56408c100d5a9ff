"""`init-zoo`: one formula keeps the signal of every activation at its level, 2 / n is only the rectifier's.

Law         with weights of variance v the next pre-activation has E[z'²] = n v E[f(z)²]. So 1 / (n E[f(z)²]), z being
            standard normal, keeps E[z²] at 1 for any f: 2 / n for the rectifier (He), 1 / n for the identity (Xavier),
            2.54 / n for tanh, 3.41 / n for the sigmoid. Any other variance changes it by the factor n v E[f²]. It
            stays there where d log E[f²] / d log E[z²] is at most 1; GELU, SiLU, Mish, Hardswish, Softshrink and
            Tanhshrink are above, and need a bias or a normaliser to hold a level.
Setting     22 activations on layers of 256 units and standard normal inputs: the variance that `tightrope.initialize`
            (forward) solves for; E[z²] after five layers at the law's variance, of those 16 that stay; the factor of
            one layer at He's variance. Expectations are integrals over a normal variable. Then nets of eight layers
            with ReLU, tanh, GELU and the sigmoid learn digits from six initialisations.
Band        units differ in variance by 2 / n, which moves E[f²] by 1 / n or so: 2 % with the spread of 65 536 draws.
            Over five layers that is 2 / n each, and what a layer's draw does to the next as much again: 8 %.
Reading     points on the line at 1 are kept; He's would be there for the rectifiers alone. The right panel has six
            starts of the same nets: only the last is good for all four.
References  Glorot, Bengio (2010), Understanding the difficulty of training deep feedforward neural networks, AISTATS;
            He, Zhang, Ren, Sun (2015), Delving deep into rectifiers, ICCV; Klambauer et al. (2017), Self-normalizing
            neural networks, NeurIPS; Schoenholz et al. (2017), Deep information propagation, ICLR.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.initialize import initialize
from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial

PRINCIPLES = ("P02",)
WIDTH, DEPTH, BATCH = 256, 5, 32
STABLE = 1.005
"""Exponent up to which E[z²] stays: the rectifiers' is 1, to the rounding of a difference."""
Start = Callable[[nn.Sequential, Tensor], None]


class Sine(nn.Module):
    """sin(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


class Erf(nn.Module):
    """erf(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.erf(x)


ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ReLU6, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish,
    nn.Softplus, nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Softsign, nn.Hardtanh, nn.Hardsigmoid, nn.Softshrink,
    nn.Tanhshrink, Sine, Erf,
)  # fmt: skip
TAUGHT: tuple[Callable[[], nn.Module], ...] = (nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid)


def run(trial: Trial) -> Result:
    """Variances of 22 activations beside the law, and the losses of nets from six starts."""
    names = [act().__class__.__name__ for act in ACTIVATIONS]
    laws = [_second(act()) for act in ACTIVATIONS]
    one, none = [1.0] * len(names), [0.0] * len(names)
    drawn = [_solved(act) * WIDTH * law for act, law in zip(ACTIVATIONS, laws, strict=True)]
    he = [[_through(act, 2 / WIDTH, 1, seed) for seed in trial.seeds(8, 24)] for act in ACTIVATIONS]
    stays = [i for i, act in enumerate(ACTIVATIONS) if _exponent(act()) <= STABLE]
    kept = [[_through(ACTIVATIONS[i], 1 / (WIDTH * laws[i]), DEPTH, s) for s in trial.seeds(48, 128)] for i in stays]
    (he_mean, he_error), (mean, error) = _summary(he), _summary(kept)
    expected = [2 * law for law in laws]
    losses = _taught(trial)
    claims = [
        Claim.curve("n Var(w) E[f²] of the weights that are solved for", names, one, drawn, none, within=0.02),
        Claim.curve(
            f"E[z²] after {DEPTH} layers at that variance",
            [names[i] for i in stays],
            one[: len(stays)],
            mean,
            error,
            within=0.08,
        ),
        Claim.curve("E[z²] one layer on at He's 2 / n", names, expected, he_mean, he_error, within=0.02),
        Claim.equal("largest difference of two units of a layer, trained from zero", 0.0, _symmetry(), absolute=1e-12),
    ]
    for rule in FAIR[:-1]:
        worst = (losses[rule].max(0).values / losses["ours"].max(0).values).log10()  # over the activations, by seed
        text = f"log10 of the worst loss of four nets from {rule} over that from ours"
        claims.append(Claim.above(text, 0.0, float(worst.mean()), float(worst.std() / math.sqrt(len(worst)))))
    at = range(len(names))
    rules = list(losses)
    panels = (
        Panel(f"E[z²] after {DEPTH} layers, and one layer from He", "", "E[z²]", (
            Series("law's variance", stays, one[: len(stays)], kind="law"),
            Series("law's variance", stays, mean, error),
            Series("He, one layer", at, expected, kind="law"), Series("He, one layer", at, he_mean, he_error),
        ), log_y=True, ticks=tuple(names)),
        Panel("digits, eight layers", "", "training loss, last steps", tuple(
            Series(act().__class__.__name__, list(range(len(rules))), [float(losses[r][i].mean()) for r in rules])
            for i, act in enumerate(TAUGHT)
        ), log_y=True, ticks=tuple(rules)),
    )  # fmt: skip
    return Result(tuple(claims), panels, trial.seeds(48, 128))


def _second(act: nn.Module, scale: float = 1.0) -> float:
    """E[f(z)²] of a normal z of this standard deviation."""
    z = torch.linspace(-9, 9, 180_001, dtype=torch.float64)
    with torch.no_grad():
        value = act.double()(scale * z).square() * torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return float(torch.trapezoid(value, z))


def _stack(act: Callable[[], nn.Module], widths: list[int]) -> nn.Sequential:
    parts: list[nn.Module] = []
    for n, m in pairwise(widths):
        parts += [nn.Linear(n, m), act()]
    return nn.Sequential(*parts[:-1])


def _weights(model: nn.Sequential) -> list[nn.Linear]:
    return [m for m in model if isinstance(m, nn.Linear)]


def _exponent(act: nn.Module) -> float:
    """d log E[f²] / d log E[z²] at 1."""
    step = 1e-2
    return (math.log(_second(act, 1 + step)) - math.log(_second(act, 1 - step))) / (4 * step)


def _solved(act: Callable[[], nn.Module]) -> float:
    """Variance of the second layer's weights as they are solved for."""
    torch.manual_seed(0)
    model = _stack(act, [WIDTH] * 4)  # the last of them is a head, which starts smaller
    initialize(model, torch.randn(BATCH, WIDTH), criterion="forward")
    return float(_weights(model)[1].weight.detach().var())


@torch.no_grad()
def _through(act: Callable[[], nn.Module], variance: float, layers: int, seed: int) -> float:
    """E[z²] after so many layers of this variance, from standard normal pre-activations."""
    torch.manual_seed(seed)
    z, f = torch.randn(BATCH, WIDTH), act()
    for _ in range(layers):
        z = f(z) @ (torch.randn(WIDTH, WIDTH) * math.sqrt(variance))
    return float(z.square().mean())


def _summary(runs: list[list[float]]) -> tuple[list[float], list[float]]:
    values = torch.tensor(runs, dtype=torch.float64)
    return values.mean(1).tolist(), (values.std(1) / math.sqrt(values.shape[1])).tolist()


def _constant(std: float, mean: float = 0.0) -> Start:
    def start(model: nn.Sequential, x: Tensor) -> None:
        for layer in _weights(model):
            nn.init.normal_(layer.weight, mean, std)
            nn.init.zeros_(layer.bias)

    return start


def _scaled(gain: float, both: bool) -> Start:
    def start(model: nn.Sequential, x: Tensor) -> None:
        for layer in _weights(model):
            fans = layer.in_features + (layer.out_features if both else 0)
            nn.init.normal_(layer.weight, std=math.sqrt(gain / fans))
            nn.init.zeros_(layer.bias)

    return start


def _ours(model: nn.Sequential, x: Tensor) -> None:
    initialize(model, x)


FAIR = ("0.01", "Xavier", "He", "ours")
"""Starts that are compared, seed by seed."""
STARTS: dict[str, Start] = {
    "zero": _constant(0.0), "N(10, 5)": _constant(5.0, 10.0), "0.01": _constant(0.01), "Xavier": _scaled(2.0, True),
    "He": _scaled(2.0, False), "ours": _ours,
}  # fmt: skip


def _taught(trial: Trial) -> dict[str, Tensor]:
    """Mean loss of the last steps from each start; shape (activations, seeds)."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 8 - 1, torch.tensor(labels)
    found, seeds = dict[str, Tensor](), trial.seeds(3, 8)
    for name, start in STARTS.items():
        rows = [[_loss(act, start, x, y, seed) for seed in (seeds if name in FAIR else seeds[:1])] for act in TAUGHT]
        found[name] = torch.tensor(rows)
    return found


def _loss(act: Callable[[], nn.Module], start: Start, x: Tensor, y: Tensor, seed: int) -> float:
    torch.manual_seed(seed)
    model = _stack(act, [64] * 8 + [10])
    start(model, x[:64])
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    last = []
    steps = 60
    for step in range(steps):
        which = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[which]), y[which])
        loss.backward()
        optimizer.step()
        if step >= steps - 20:
            last.append(float(loss.detach()))
    mean = sum(last) / len(last)
    return mean if math.isfinite(mean) else 1e6


def _symmetry() -> float:
    """Units of a layer that start alike stay alike: the spread of their weights after training from zero."""
    torch.manual_seed(0)
    x, y = torch.randn(64, 8, dtype=torch.float64), torch.randint(3, (64,))
    model = _stack(nn.Sigmoid, [8, 16, 3]).double()
    for p in model.parameters():
        nn.init.zeros_(p)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for _ in range(200):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    weight = _weights(model)[0].weight.detach()
    return float((weight - weight[:1]).abs().max())
