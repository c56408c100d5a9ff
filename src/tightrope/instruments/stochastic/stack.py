"""The exact law of a stack of linear layers with Gaussian noise, and of the gradients through it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tightrope.errors import InputError
from tightrope.nn import GaussianLinear

ASKED = "give the law of a stochastic stack"


@dataclass(frozen=True)
class Moments:
    """Mean and variance of every number of a random tensor; both have its shape."""

    mean: Tensor
    variance: Tensor


@dataclass(frozen=True, eq=False)
class StackLaw:
    """The law of z_l = W_l z_(l-1) + b_l + sigma_l eps_l, l = 1 ... L, in double precision.

    Attributes:
        names: of the layers.
        means, covariances: of z_0 (the input) to z_L; shapes (n,) and (n, n).
        objective: mean and variance of |z_L - t|^2 / 2; None without a target.
        gradients: mean and variance of the pathwise gradient of that in every parameter, for a single draw.
        signals: the same of its gradient in z_0 to z_L.
    """

    names: tuple[str, ...]
    means: tuple[Tensor, ...] = field(repr=False)
    covariances: tuple[Tensor, ...] = field(repr=False)
    objective: Moments | None = None
    gradients: dict[str, Moments] = field(default_factory=dict, repr=False)
    signals: tuple[Moments, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        head = f"  {'layer':<14}{'width':>6}{'E z^2':>11}{'Var z':>11}"
        lines = ["exact law of a linear-Gaussian stack", head + (f"{'Var dz':>11}" if self.signals else "")]
        for i, (mean, covariance) in enumerate(zip(self.means, self.covariances, strict=True)):
            variance = float(covariance.diagonal().mean())
            row = f"  {('input', *self.names)[i]:<14}{len(mean):>6}"
            row += f"{variance + float(mean.square().mean()):>11.4g}{variance:>11.4g}"
            lines.append(row + (f"{float(self.signals[i].variance.mean()):>11.4g}" if self.signals else ""))
        if self.objective is not None:
            spread = math.sqrt(float(self.objective.variance))
            lines.append(f"  |z - t|^2 / 2 is {float(self.objective.mean):.4g} on average, a draw spreads {spread:.4g}")
            lines.append(f"  {'gradient of a draw':<20}{'|mean|^2':>11}{'variance':>11}")
            for name, law in self.gradients.items():
                lines.append(f"  {name:<20}{float(law.mean.square().sum()):>11.4g}{float(law.variance.sum()):>11.4g}")
        return "\n".join(lines)


def stack_law(
    stack: nn.Module | Iterable[nn.Module], mean: Tensor, covariance: Tensor | None = None, *,
    target: Tensor | None = None,
) -> StackLaw:  # fmt: skip
    """Mean and covariance of every layer of a linear-Gaussian stack, and the law of its gradients, in closed form.

    Means go through W m + b, covariances through W S W' + diag(sigma^2). With a target t, the pathwise gradient of
    |z_L - t|^2 / 2 in z_l is d_l = A_l' (z_L - t), A_l the product of the weights above; in the parameters it is
    d_l z_(l-1)', d_l, and d_l sigma_l eps_l for log sigma. Each is a number or a product of two that are jointly
    Gaussian, whose variance is, by Isserlis, V(x) V(y) + C(x, y)^2 + E(x)^2 V(y) + E(y)^2 V(x) + 2 E(x) E(y) C(x, y).

    Args:
        stack: an `nn.Sequential` or several of `GaussianLinear`, `nn.Linear` and `nn.Identity`, in order.
        mean: of the input, shape (n,).
        covariance: of the input, shape (n, n); None for an input that is fixed.
        target: t, shape (width of the last layer,).

    Raises:
        InputError: a layer is none of these, or shapes do not fit.

    References:
        Isserlis (1918), On a formula for the product-moment coefficient, Biometrika 12; Rezende, Mohamed, Wierstra
        (2014), Stochastic backpropagation and approximate inference in deep generative models, ICML.
    """
    layers = _layers(stack)
    if mean.dim() != 1 or len(mean) != layers[0][1].in_features:
        found = f"the input's mean has shape {tuple(mean.shape)}, the first layer takes {layers[0][1].in_features}"
        raise InputError(ASKED, found, "Pass the mean of one input")
    m = mean.detach().double()
    s = torch.zeros(len(m), len(m), dtype=m.dtype) if covariance is None else covariance.detach().double()
    if s.shape != (len(m), len(m)):
        raise InputError(ASKED, f"the covariance has shape {tuple(s.shape)}", f"Pass one of {len(m)} x {len(m)}")
    means, covariances = [m], [s.to(m.device)]
    for _, layer in layers:
        w = layer.weight.detach().double()
        if w.shape[1] != len(means[-1]):
            raise InputError(ASKED, f"a layer takes {w.shape[1]} numbers and gets {len(means[-1])}", "Pass a chain")
        bias = 0.0 if layer.bias is None else layer.bias.detach().double()
        means.append(w @ means[-1] + bias)
        covariances.append(w @ covariances[-1] @ w.T + _noise(layer).diag())
    names = tuple(name for name, _ in layers)
    law = StackLaw(names, tuple(means), tuple(covariances))
    return law if target is None else _with_gradients(law, layers, target.detach().double())


def _layers(stack: nn.Module | Iterable[nn.Module]) -> list[tuple[str, nn.Linear]]:
    if isinstance(stack, nn.Sequential):
        found = [(name, part) for name, part in stack.named_modules() if not isinstance(part, nn.Sequential)]
    else:
        several = [stack] if isinstance(stack, nn.Module) else list(stack)
        found = [(str(i), part) for i, part in enumerate(several)]
    made = []
    for name, part in found:
        if type(part) not in (nn.Linear, GaussianLinear, nn.Identity):
            what = f"layer {name} is a {type(part).__name__}"
            raise InputError(ASKED, what, "Pass GaussianLinear, nn.Linear and nn.Identity; measure others")
        if isinstance(part, nn.Linear):
            made.append((name, part))
    if not made:
        raise InputError(ASKED, "the stack has no linear layer", "Pass GaussianLinear or nn.Linear")
    return made


def _noise(layer: nn.Linear) -> Tensor:
    """Variance of the noise of each output."""
    if isinstance(layer, GaussianLinear):
        return (2 * layer.log_scale.detach().double()).exp()
    return torch.zeros(layer.out_features, dtype=torch.float64, device=layer.weight.device)


def _with_gradients(law: StackLaw, layers: list[tuple[str, nn.Linear]], target: Tensor) -> StackLaw:
    last, spread = law.means[-1], law.covariances[-1]
    if target.shape != last.shape:
        raise InputError(ASKED, f"the target has shape {tuple(target.shape)}", f"Pass one of {tuple(last.shape)}")
    off = last - target
    value = Moments(
        (off.square().sum() + spread.trace()) / 2, spread.square().sum() / 2 + off @ spread @ off
    )  # fmt: skip
    above = torch.eye(len(last), dtype=last.dtype, device=last.device)
    signals = [Moments(off, spread.diagonal())]
    gradients: dict[str, Moments] = {}
    for i in range(len(layers), 0, -1):
        name, layer = layers[i - 1]
        w, noise = layer.weight.detach().double(), _noise(layer)
        mean, variance = above.T @ off, (above.T @ spread @ above).diagonal()
        below = law.means[i - 1], law.covariances[i - 1]
        made = {}
        with_input = above.T @ above @ w @ below[1]  # covariance of d_l with z_(l-1)
        made["weight"] = _product(
            mean[:, None], variance[:, None], below[0][None, :], below[1].diagonal()[None, :], with_input
        )
        if layer.bias is not None:
            made["bias"] = Moments(mean, variance)
        if isinstance(layer, GaussianLinear) and isinstance(layer.log_scale, nn.Parameter):
            own = (above.T @ above).diagonal() * noise
            made["log_scale"] = _product(mean, variance, torch.zeros_like(mean), noise, own)
        gradients = {**{f"{name}.{key}": moments for key, moments in made.items()}, **gradients}
        above = above @ w
        signals.append(Moments(above.T @ off, (above.T @ spread @ above).diagonal()))
    return StackLaw(law.names, law.means, law.covariances, value, gradients, tuple(reversed(signals)))


def _product(mx: Tensor, vx: Tensor, my: Tensor, vy: Tensor, c: Tensor) -> Moments:
    """Of x y, jointly Gaussian with covariance c."""
    return Moments(mx * my + c, vx * vy + c.square() + mx.square() * vy + my.square() * vx + 2 * mx * my * c)


__all__ = ["Moments", "StackLaw", "stack_law"]
