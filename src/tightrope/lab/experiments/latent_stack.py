"""`latent-stack`: laws go through stacked stochastic layers in closed form, and so do the reparameterised gradients'.

Law         z_l = W_l z_(l-1) + b_l + s_l eps_l has the covariance S_l = W_l S_(l-1) W_l' + diag(s_l^2). The
            reparameterised gradient of |z_L - t|^2 / 2 in z_l is A_l' (z_L - t), A_l the product of the weights above
            l, of covariance A_l' S_L A_l; those in W_l and log s_l are products of two jointly Gaussian numbers x y,
            of variance V(x) V(y) + C^2 + E(x)^2 V(y) + E(y)^2 V(x) + 2 E(x) E(y) C.
Setting     twelve `GaussianLinear` layers of 8 units with s = 0.3, orthogonal weights scaled by 0.8, 1 and 1.25, a
            fixed input and a fixed target. The law is `tr.stochastic.stack_law`; the points are draws through the
            layers and torch's own gradients of each draw, in 32 groups with seeds of their own.
Band        the laws are exact; only the error of the groups' mean is allowed for. Points of one stack share its
            draws, so that each quantity is judged by one number, the mean ratio over layers and stacks. For
            orthogonal weights the variance of the last latent is s^2 (1 + g^2 + ... + g^22), without any instrument.
Reading     each layer adds its noise and the weights pass on what came before, so that a stack settles at s^2 / (1 -
            g^2) when its weights shrink by g. A deep latent's gradient is as noisy as everything drawn above it and
            below: the noise of the whole stack comes back to every layer.
References  Rezende, Mohamed, Wierstra (2014), Stochastic backpropagation and approximate inference in deep generative
            models, ICML; Isserlis (1918), On a formula for the product-moment coefficient, Biometrika 12.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from tightrope.instruments.stochastic import StackLaw, stack_law
from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial
from tightrope.nn import GaussianLinear

PRINCIPLES = ("P20",)
WIDTH, DEPTH, GROUPS = 8, 12, 32
GAINS = (0.8, 1.0, 1.25)
SCALE = 0.3
QUANTITIES = ("variance of z", "variance of dz", "variance of dW", "variance of d log s")


def run(trial: Trial) -> Result:
    """The four variances along stacks of three gains."""
    draws = trial.pick(600, 5000)
    seeds = tuple(range(trial.seed, trial.seed + GROUPS))
    curves, ratios = [list[Series]() for _ in QUANTITIES], [list[Tensor]() for _ in QUANTITIES]
    ends = list[Tensor]()
    layers = list(range(1, DEPTH + 1))
    for gain in GAINS:
        stack, x, target = _stack(gain, trial.seed)
        law = _laws(stack_law(stack, x, target=target))
        groups = [_drawn(stack, x, target, draws, seed) for seed in seeds]
        for i in range(len(QUANTITIES)):
            values = torch.tensor([group[i] for group in groups], dtype=torch.float64)
            ends += [values[:, -1]] if i == 0 else []
            means, errors = values.mean(0).tolist(), (values.std(0) / math.sqrt(GROUPS)).tolist()
            ratios[i].append((values / torch.tensor(law[i], dtype=torch.float64)).mean(1))
            name = f"weights x {gain}"
            curves[i] += [Series(name, layers, law[i], kind="law"), Series(name, layers, means, errors)]
    claims = [_averaged(f"{what}, measured over predicted, 36 points", 1.0, torch.stack(found).mean(0))
              for what, found in zip(QUANTITIES, ratios, strict=True)]  # fmt: skip
    for gain, values in zip(GAINS, ends, strict=True):
        squares = [gain ** (2 * i) for i in range(DEPTH)]
        claims.append(_averaged(f"variance of the last latent, weights x {gain}", SCALE**2 * sum(squares), values))
    titles = ("latents", "gradient in the latents", "gradient in the weights", "gradient in log s")
    panels = tuple(
        Panel(title, "layer", "mean variance", tuple(series), log_y=True)
        for title, series in zip(titles, curves, strict=True)
    )
    return Result(tuple(claims), panels, seeds)


def _averaged(text: str, law: float, values: Tensor) -> Claim:
    """The mean over groups with its standard error."""
    return Claim.equal(text, law, float(values.mean()), float(values.std()) / math.sqrt(len(values)))


def _stack(gain: float, seed: int) -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(seed)
    layers = [GaussianLinear(WIDTH, WIDTH, scale=SCALE, dtype=torch.float64) for _ in range(DEPTH)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers), torch.randn(WIDTH).double(), torch.randn(WIDTH).double()


def _laws(law: StackLaw) -> list[list[float]]:
    """Means over the units, or the weights, of each layer."""
    return [
        [float(c.diagonal().mean()) for c in law.covariances[1:]],
        [float(moments.variance.mean()) for moments in law.signals[1:]],
        [float(law.gradients[f"{name}.weight"].variance.mean()) for name in law.names],
        [float(law.gradients[f"{name}.log_scale"].variance.mean()) for name in law.names],
    ]


def _drawn(stack: nn.Sequential, x: Tensor, target: Tensor, draws: int, seed: int) -> list[list[float]]:
    """The same of draws, with torch's gradients; variances about the mean of the group."""
    torch.manual_seed(10_000 + seed)
    z, latents = x.expand(draws, WIDTH), list[Tensor]()
    for layer in stack:
        z = layer(z)
        latents.append(z)
    signals = torch.autograd.grad((z - target).square().sum() / 2, latents)

    def objective(parameters: dict[str, Tensor]) -> Tensor:
        made: Tensor = functional_call(stack, parameters, (x,))
        return (made - target).square().sum() / 2

    held = {name: p.detach().expand(draws, *p.shape) for name, p in stack.named_parameters()}
    gradients = vmap(grad(objective), randomness="different")(held)
    names = [name for name, _ in stack.named_children()]
    return [
        _variances(latents), _variances(signals), _variances([gradients[f"{n}.weight"] for n in names]),
        _variances([gradients[f"{n}.log_scale"] for n in names]),
    ]  # fmt: skip


def _variances(drawn: Sequence[Tensor]) -> list[float]:
    return [float(values.detach().var(0).mean()) for values in drawn]
