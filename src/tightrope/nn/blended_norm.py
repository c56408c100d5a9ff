"""Normalise by a mixture of batch and layer statistics that trusts the batch as far as it is large."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from tightrope.errors import InputError

PSEUDO = 8.0
"""Values that the layer statistic counts for at first: the batch variance of m values has a relative error of
sqrt(2 / m), and the variances of channels at initialisation differ from their layer's by about a half: 2 / 0.5^2."""
Norm = nn.modules.batchnorm._BatchNorm


class BlendedNorm(nn.Module):
    """Batch norm and layer norm in one, mixed by a learnt gate that leans to batch norm as the batch grows.

    A channel k has the batch statistics of its m values (all samples and sites) and the statistics of the sample n
    over all channels and sites. Both the mean and the variance are mixed,

        mean[n, k] = w[k] batch_mean[k] + (1 - w[k]) layer_mean[n],      w[k] = m / (m + c[k]),

    where c[k] > 0 is learnt: it says how many values of the batch the layer statistic is worth. The weight is that of a
    mean of m observations beside a prior of c pseudo-observations; it goes to 1, batch norm, for large batches, and to
    0, layer norm, for c far above m.

    At inference the running statistics stand for those of the batch, and m is the running mean of what training had,
    so that the weights are those that the net was trained with.

    Args:
        features: number of channels C.
        eps: added to the variance.
        momentum: of the running statistics; None for the average over all batches.
        affine: whether there are a learnt gain and bias for each channel.
        pseudo: where c starts.

    Shape:
        input (N, C) or (N, C, ...), output of the same shape.

    Raises:
        InputError: the second dimension is not C.

    References:
        Luo, Ren, Peng, Zhang, Li (2019), Differentiable learning-to-normalize via switchable normalization, ICLR, for
        mixing the statistics; Efron, Morris (1973), Stein's estimation rule and its competitors, JASA 68, for the
        weight; Ioffe, Szegedy (2015) and Ba, Kiros, Hinton (2016) for the two ends.
    """

    weight: Tensor | None
    bias: Tensor | None
    log_pseudo: Tensor
    running_mean: Tensor
    running_var: Tensor
    values: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self, features: int, *, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True,
        pseudo: float = PSEUDO, device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if pseudo <= 0:
            raise InputError("make BlendedNorm", f"pseudo is {pseudo}", "Pass a positive number of values")
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.features, self.eps, self.momentum = features, eps, momentum
        self.register_parameter("weight", nn.Parameter(torch.ones(features, **where)) if affine else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(features, **where)) if affine else None)
        self.log_pseudo = nn.Parameter(torch.full((features,), math.log(pseudo), **where))
        self.register_buffer("running_mean", torch.zeros(features, **where))
        self.register_buffer("running_var", torch.ones(features, **where))
        self.register_buffer("values", torch.zeros((), **where))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long, device=device))

    @classmethod
    def from_batch_norm(cls, norm: nn.Module, *, pseudo: float = PSEUDO) -> BlendedNorm:
        """The layer that takes a batch norm's place, with copies of its weights and statistics.

        Until it is trained it computes what the batch norm computes at inference.

        Raises:
            InputError: it is no batch norm.
        """
        if not isinstance(norm, Norm) or norm.num_features == 0:
            raise InputError(
                "make BlendedNorm", f"it was given a {type(norm).__name__}", "Pass a batch norm that has run"
            )
        held = norm.weight if norm.weight is not None else norm.running_mean
        made = cls(norm.num_features, eps=norm.eps, momentum=norm.momentum, affine=norm.affine, pseudo=pseudo)
        made = made if held is None else made.to(held.device, held.dtype)
        made.train(norm.training)
        made.load_state_dict(copy.deepcopy(norm.state_dict()))
        for mine, theirs in ((made.weight, norm.weight), (made.bias, norm.bias)):
            if mine is not None:
                mine.requires_grad_(theirs.requires_grad)
        return made

    def share(self, values: Tensor | float) -> Tensor:
        """Weight w of the batch statistics of each channel when they rest on so many values; shape (C,)."""
        return 1 / (1 + self.log_pseudo.exp() / values)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised channels, of the input's shape and dtype."""
        if x.dim() < 2 or x.shape[1] != self.features:
            found = f"an input of shape {tuple(x.shape)}"
            raise InputError(f"normalise {self.features} channels", found, "Pass (N, C) or (N, C, ...)")
        kind = x.dtype
        x = x.float() if kind in (torch.float16, torch.bfloat16) else x
        over = [0, *range(2, x.dim())]
        mean = x.mean(over)
        variance = x.var(over, unbiased=False)
        if self.training:
            values = float(x.numel() // max(x.shape[1], 1))
            self._remember(mean, variance, int(values))
            share = self.share(values)
        else:
            mean, variance, share = self.running_mean, self.running_var, self.share(self.values)
        shape = [1, -1] + [1] * (x.dim() - 2)
        within = list(range(1, x.dim()))
        own, spread = x.mean(within, keepdim=True), x.var(within, unbiased=False, keepdim=True)
        share = share.view(shape)
        centre = share * mean.view(shape) + (1 - share) * own
        scale = share * variance.view(shape) + (1 - share) * spread
        y = (x - centre) / (scale + self.eps).sqrt()
        if self.weight is not None and self.bias is not None:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(kind)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, m: int) -> None:
        """Move the running statistics; a single value's variance is its square about the running mean."""
        if mean.is_meta:
            return
        with torch._C.DisableTorchFunction():  # statistics are no part of the step that a recorder watches
            first = int(self.num_batches_tracked) == 0 or not math.isfinite(float(self.values)) or self.values == 0
            self.num_batches_tracked += 1
            step = self.momentum if self.momentum is not None else 1.0 / int(self.num_batches_tracked)
            spread = variance * m / (m - 1) if m > 1 else (mean - self.running_mean).square()
            self.running_mean.lerp_(mean.to(self.running_mean), step)
            self.running_var.lerp_(spread.to(self.running_var), step)
            if first:
                self.values.fill_(m)
            else:
                self.values.lerp_(torch.full_like(self.values, m), step)

    def extra_repr(self) -> str:
        """Channels, and what the layer statistics are worth."""
        worth = self.log_pseudo.detach()
        mean = "?" if worth.is_meta else f"{float(worth.exp().mean()):.3g}"
        return f"{self.features}, eps={self.eps:g}, momentum={self.momentum}, layer worth {mean} values"

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
        """A batch norm's state is taken too: its statistics rest on many batches, so that the weight is 1."""
        if f"{prefix}log_pseudo" not in state and f"{prefix}running_mean" in state:
            state[f"{prefix}log_pseudo"] = self.log_pseudo.detach().clone()
            state[f"{prefix}values"] = torch.full_like(self.values, math.inf)
        super()._load_from_state_dict(state, prefix, *rest)


__all__ = ["BlendedNorm"]
