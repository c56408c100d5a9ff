"""Linear maps with weights: every output channel is a weighted sum of the input's channels."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tightrope.law import COMPONENTS
from tightrope.roles import Axes, Role
from tightrope.rules.registry import Call, Gradients, rule
from tightrope.rules.state import COVARIANCE_CHANNELS, DTYPE, State, state_shape


@rule("linear")
def linear(call: Call) -> State:
    """z = x W^T + b: mean W mu + b, each variance component W^2 v (channels uncorrelated given the weights)."""
    x, weight = call.input, call.state(1, "weight")
    assert weight is not None
    out = mapped(x, weight, call.axes[0])
    bias = call.state(2, "bias")
    return out if bias is None else out.plus(bias_state(bias, out))


@linear.gradient
def _(call: Call, upstream: State) -> Gradients:
    x, weight = call.input, call.state(1, "weight")
    number = call.id(0, "input")
    assert weight is not None and number is not None
    turned = weight.map(lambda f: f.transpose(-1, -2), Axes(weight.axes.dims[::-1]))
    found: Gradients = {number: mapped(upstream, turned, x.axes)}
    parameter, bias = call.id(1, "weight"), call.id(2, "bias")
    if parameter is not None:
        found[parameter] = outer(x, upstream, call.axes[0], weight)
    if bias is not None and bias in call.states:
        found[bias] = total(upstream, call.axes[0], call.states[bias])
    return found


def mapped(x: State, weight: State, axes: Axes) -> State:
    """The law of x W^T over the last dimension, for known or random weights."""
    n = x.shape[-1]
    w = weight.mean.expand(weight.shape)
    kappa = float(kurtosis(x))
    if weight.exact:
        full = x.map(lambda f: f.expand(*f.shape[:-1], n))
        square = w.square()
        parts = [f @ square.T if bool((f != 0).any()) else f[..., :1] * 0 for f in full.fields[1:]]
        known = float(x.mean.square().mean() / x.second_moment.mean().clamp(min=1e-300))
        width = x.width + (1 - known) ** 2 * max(kappa - 1, 0.0) / n
        z = State.from_fields(axes, (full.mean @ w.T, *parts), width=width, amplitude=x.amplitude, gain=x.gain)
        return correlated(x, z, w)
    return random_map(x, weight, axes, n, kappa)


def correlated(x: State, z: State, w: Tensor) -> State:
    """z = x W^T where the covariance of x between channels is known: C' = W C W^T."""
    held = x.covariance
    if held is None or not torch.allclose(held.diagonal(), x.variance.expand(x.shape).reshape(-1), rtol=1e-6):
        return z
    covariance = w @ held @ w.T
    if not bool((covariance.diagonal() >= 0).all()):
        return z  # the variance has faded below what rounding leaves of the covariance
    share = (covariance.diagonal() / z.variance.expand(z.shape).reshape(-1).clamp(min=1e-300)).reshape(z.shape)
    parts = {name: getattr(z, name) * share for name in COMPONENTS}
    # With weights and covariances known the samples alone are left to chance, and no draw of the weights.
    return replace(z, **parts, width=x.width, covariance=covariance if w.shape[0] <= COVARIANCE_CHANNELS else None)


def random_map(x: State, weight: State, axes: Axes, n: int, kappa: float) -> State:
    """The law of a sum over n inputs with independent random weights: E[z z'] = n E[w^2] E[x x'] at every level."""
    mean_w = float(weight.mean.mean())
    variance_w = float(weight.variance.mean()) + float(weight.mean.var(unbiased=False))
    sites = [d for d in x.dims(Role.SITE) if x.mean.shape[d] > 1 and d != len(x.shape) - 1]
    lasting = x.mean.mean(sites, keepdim=True) if sites else x.mean  # what a channel's mean is at all sites

    def average(field: Tensor) -> Tensor:
        return field.mean(-1, keepdim=True)

    spread = average(x.mean.square()) - average(x.mean).square()
    gain = n * (variance_w + mean_w**2)
    constant = n * variance_w * average(lasting.square()) + gain * average(x.constant)
    site = n * variance_w * average((x.mean - lasting).square()) + gain * average(x.site)
    return State(
        axes, n * mean_w * average(x.mean), constant + n * mean_w**2 * spread, gain * average(x.sample), site,
        gain * average(x.residual), x.width + max(kappa - 1, 0.0) / n,
    )  # fmt: skip


def kurtosis(x: State) -> Tensor:
    """E[x^4] / E[x^2]^2 over channels, each Gaussian about its own mean."""
    mean, variance = x.mean, x.variance
    fourth = mean**4 + 6 * mean.square() * variance + 3 * variance.square()
    second = x.second_moment.mean()
    return fourth.mean() / second.square().clamp(min=1e-300)


def bias_state(bias: State, like: State) -> State:
    """A bias as a state of the result: the same for all samples and sites."""
    if bias.exact:
        return State.of(like.axes, bias.mean)
    spread = bias.variance + (bias.mean - bias.mean.mean()).square()
    return State.of(like.axes, bias.mean.mean(), constant=spread.mean())


def outer(x: State, gradient: State, axes: Axes, weight: State) -> State:
    """The gradient of a weight: the sum over samples and sites of gradient times input.

    E[dW^2] sums E[x x'] E[g g'] over all pairs of positions; pairs that share a sample or a site are as correlated
    as their components say. Leaving the pairs out under-predicts by up to 81 %.
    """
    samples = axes.count(Role.SAMPLE)
    g, a = _rows(gradient, state_shape(axes)), _rows(x, x.shape)
    mean = samples * g[0].T @ a[0]

    def second(fields: list[Tensor], *parts: int) -> Tensor:
        return fields[0].square() + sum((fields[i] for i in parts), torch.zeros((), dtype=DTYPE))

    def pair(*parts: int) -> Tensor:
        """Sum over sites of the covariance of products that share these components."""
        return second(g, *parts).T @ second(a, *parts) - g[0].square().T @ a[0].square()

    own = pair(1, 2, 3, 4)
    same_sample = _across(g, a, (1, 2))
    same_site = pair(1, 3) * max(samples - 1, 0)
    other = _across(g, a, (1,)) * max(samples - 1, 0)
    variance = samples * (own + same_sample + same_site + other)
    return State.of(weight.axes, mean, residual=variance.clamp(min=0), width=x.width + gradient.width)


def _across(g: list[Tensor], a: list[Tensor], parts: tuple[int, ...]) -> Tensor:
    """Covariance of the products at two different sites that share these components, summed over all such pairs.

    What two sites share has an amplitude at each of them, so that every pair of components factors: the sum over all
    pairs is (sum_s p_s)^2 for the product p of amplitudes, less the pairs of a site with itself.
    """
    total = torch.zeros((), dtype=DTYPE)
    for i in (0, *parts):
        for j in (0, *parts):
            one, two = (f[n] for f, n in ((g, i), (a, j)))
            if (i, j) == (0, 0) or not (bool((one != 0).any()) and bool((two != 0).any())):
                continue
            signs = [-1.0 if n and float(f.sum()) < 0 else 1.0 for f, n in ((one, i), (two, j))]
            one, two = (f if n == 0 else f.abs().sqrt() for f, n in ((one, i), (two, j)))
            pairs = (one.T @ two).square() - one.square().T @ two.square()
            total = total + signs[0] * signs[1] * pairs
    return total


def _rows(x: State, shape: tuple[int, ...]) -> list[Tensor]:
    """Fields as (site, channel); channels that are all alike stay one."""
    width = max(f.shape[-1] for f in x.fields)
    return [f.expand(*shape[:-1], width).reshape(-1, width) for f in x.fields]


def total(gradient: State, axes: Axes, bias: State) -> State:
    """The gradient of a bias: the sum of the gradient over samples and sites."""
    from tightrope.rules.broadcast import summed

    if all(f.shape[-1] == 1 for f in gradient.fields):  # all channels are alike: one stands for them
        one = summed(gradient, axes.resize(-1, 1), list(range(len(axes.dims) - 1)), bias.axes.resize(-1, 1))
        return replace(one, axes=bias.axes)
    return summed(gradient, axes, list(range(len(axes.dims) - 1)), bias.axes)


__all__ = ["bias_state", "kurtosis", "linear", "mapped", "outer", "random_map", "total"]
