"""The closed form of linear-Gaussian stacks against draws through the layers, and against autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import tightrope as tr
from tightrope.errors import InputError
from tightrope.nn import GaussianLinear

DRAWS = 40_000


def stack() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        GaussianLinear(3, 5, scale=0.7), nn.Linear(5, 4, bias=False), nn.Identity(),
        GaussianLinear(4, 2, scale=0.4), GaussianLinear(2, 3, bias=False, scale=1.3, learn_scale=False),
    ).double()  # fmt: skip


@pytest.mark.parametrize("random_input", [False, True])
def test_against_draws(random_input: bool) -> None:
    """Means and variances of every number of every layer and gradient, z-scores over 40,000 draws."""
    net, mean, target = stack(), torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.3, 1.0, -1.0]).double()
    root = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.7, 0.0], [0.0, -0.3, 0.2]]).double()
    covariance = root @ root.T if random_input else None
    law = tr.stochastic.stack_law(net, mean, covariance, target=target)
    x = mean.expand(DRAWS, 3) + (torch.randn(DRAWS, 3).double() @ root.T if random_input else 0.0)
    z, means = x, [x]
    with torch.no_grad():
        for part in net:
            z = part(z)
            means += [] if isinstance(part, nn.Identity) else [z]
    for drawn, m, c in zip(means, law.means, law.covariances, strict=True):
        near(drawn, m, c.diagonal())
        assert torch.allclose(drawn.T.cov(), c, atol=0.05 * float(c.abs().max()) + 1e-9)
    assert law.objective is not None
    near((z - target).square().sum(1) / 2, law.objective.mean, law.objective.variance)

    def objective(parameters: dict[str, Tensor], one: Tensor) -> Tensor:
        made: Tensor = functional_call(net, parameters, (one,))
        return (made - target).square().sum() / 2

    found = vmap(grad(objective), in_dims=(None, 0), randomness="different")(dict(net.named_parameters()), x)
    assert set(found) == set(law.gradients)
    for name, gradients in found.items():
        near(gradients, law.gradients[name].mean, law.gradients[name].variance)
    at_input = vmap(grad(objective, argnums=1), in_dims=(None, 0), randomness="different")(
        dict(net.named_parameters()), x
    )
    near(at_input, law.signals[0].mean, law.signals[0].variance)


def near(drawn: Tensor, mean: Tensor, variance: Tensor) -> None:
    """Mean and variance within five of their standard errors."""
    off = drawn - drawn.mean(0)
    error = (off.square().mean(0) / len(drawn)).sqrt()
    assert bool(((drawn.mean(0) - mean).abs() <= 5 * error + 1e-9).all())
    spread = ((off.pow(4).mean(0) - off.square().mean(0).square()) / len(drawn)).sqrt()
    assert bool(((off.square().mean(0) - variance).abs() <= 5 * spread + 1e-9).all())


def test_the_pathwise_variance_is_the_estimators() -> None:
    """One layer, seen by both instruments."""
    layer = GaussianLinear(2, 3, scale=0.5).double()
    x, target = torch.tensor([1.0, 2.0]).double(), torch.ones(3).double()
    law = tr.stochastic.stack_law(layer, x, target=target).gradients
    found = tr.stochastic.compare_estimators(
        lambda z: (z - target).square().sum() / 2, layer.distribution(x), parameters=layer, draws=20_000
    )["pathwise"]
    for name, moments in law.items():
        short = name.removeprefix("0.")
        assert bool((found.mean[short] - moments.mean).abs().le(5 * found.error[short]).all())
        assert torch.allclose(found.variance[short], moments.variance, rtol=0.1, atol=1e-9)


def test_the_layer() -> None:
    layer = GaussianLinear(4, 2, scale=0.5)
    x = torch.randn(7, 4)
    torch.manual_seed(0)
    y = layer(x)
    torch.manual_seed(0)
    assert torch.equal(y, nn.functional.linear(x, layer.weight, layer.bias) + 0.5 * torch.randn(7, 2))
    assert set(dict(layer.named_parameters())) == {"weight", "bias", "log_scale"}
    assert layer.distribution(x).log_prob(y).shape == (7,)
    forecast = tr.predict(nn.Sequential(GaussianLinear(64, 64, scale=2.0), nn.Linear(64, 8)), torch.randn(128, 64))
    assert not forecast.unknown and not forecast.simulated


def test_says_what_it_found() -> None:
    text = str(tr.stochastic.stack_law(stack(), torch.zeros(3), target=torch.zeros(3)))
    assert "exact law" in text and "3.weight" in text


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: tr.stochastic.stack_law(nn.ReLU(), torch.zeros(3)), "layer 0 is a ReLU"),
        (lambda: tr.stochastic.stack_law([], torch.zeros(3)), "no linear layer"),
        (lambda: tr.stochastic.stack_law(stack(), torch.zeros(2)), "shape"),
        (lambda: tr.stochastic.stack_law(stack(), torch.zeros(3), torch.ones(3)), "covariance"),
        (lambda: tr.stochastic.stack_law(stack(), torch.zeros(3), target=torch.ones(2)), "target"),
        (lambda: tr.stochastic.stack_law([nn.Linear(3, 2), nn.Linear(3, 2)], torch.zeros(3)), "takes 3"),
        (lambda: GaussianLinear(2, 2, scale=0.0), "scale is 0"),
    ],
)
def test_says_what_is_wrong(act: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        act()
