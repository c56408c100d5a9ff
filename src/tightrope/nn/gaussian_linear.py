"""A linear layer whose output is drawn: the building block of stacks of stochastic layers."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from tightrope.errors import InputError


class GaussianLinear(nn.Linear):
    """z' = W z + b + sigma eps, eps standard normal and new in each call, in training and at inference.

    The draw is reparameterised, so that gradients go through it to z, W, b and sigma. A stack of such layers is linear
    and Gaussian: `tightrope.stochastic.stack_law` has its exact law and that of its gradients.

    Args:
        in_features, out_features, bias: as in `nn.Linear`.
        scale: sigma at the start, one for each output; learnt as its logarithm.
        learn_scale: whether sigma is a parameter.

    Shape:
        input (..., in_features), output (..., out_features).

    Raises:
        InputError: the scale is not positive.

    References:
        Kingma, Welling (2014), Auto-encoding variational Bayes, ICLR; Rezende, Mohamed, Wierstra (2014), Stochastic
        backpropagation and approximate inference in deep generative models, ICML.
    """

    log_scale: Tensor

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, scale: float = 1.0, learn_scale: bool = True,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        if not 0 < scale < math.inf:
            raise InputError("make GaussianLinear", f"scale is {scale}", "Pass a positive standard deviation")
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(in_features, out_features, bias, **where)
        log_scale = torch.full((out_features,), math.log(scale), **where)
        if learn_scale:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def distribution(self, z: Tensor) -> Independent[Normal]:
        """The law of the output given the input."""
        return Independent(Normal(F.linear(z, self.weight, self.bias), self.log_scale.exp()), 1)

    def forward(self, z: Tensor) -> Tensor:
        """One draw for each row."""
        mean = F.linear(z, self.weight, self.bias)
        return mean + self.log_scale.exp() * torch.randn_like(mean)


__all__ = ["GaussianLinear"]
