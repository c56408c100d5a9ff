"""Batch norm for sequences: each time step has statistics of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tightrope.errors import InputError

LEAST = 2
"""Sequences that a step's statistics need: those of one are that sequence, and leave nothing of it."""


class TimeStepBatchNorm(nn.Module):
    """Batch norm over the samples of each time step, with one gain and bias for all steps.

    The law of a sequence's states drifts with time, so statistics that are pooled over time fit none of its steps. Here
    step t has its own mean and variance over the batch, in training and, as running statistics, at inference. Steps
    from the last slot on share one, so sequences of any length can be trained and evaluated. A step that training
    never reached takes the statistics of the last one that it did.

    With `lengths`, what lies behind the end of a sequence is left out of the statistics and comes out as zero. A step
    that fewer than two sequences of the batch reach is normalised by the running statistics.

    Args:
        features: number of features C.
        steps: number of slots T; steps from T on (counted from 1) share the last one.
        eps: added to the variance.
        momentum: of the running statistics; None for the average over all batches.
        affine: whether there are a learnt gain and bias for each feature.
        batch_first: whether the input is (N, T, C) or (T, N, C).

    Shape:
        input (N, T, C) or (T, N, C), lengths (N,), output of the input's shape.

    Raises:
        InputError: the input has another shape, or a length is not in 1 to T.

    References:
        Cooijmans, Ballas, Laurent, Gulcehre, Courville (2017), Recurrent batch normalization, ICLR;
        Laurent, Pereyra, Brakel, Zhang, Bengio (2016), Batch normalized recurrent neural networks, ICASSP.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self, features: int, steps: int, *, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True,
        batch_first: bool = True, device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if steps < 1:
            raise InputError("make TimeStepBatchNorm", f"steps is {steps}", "Pass the usual length of a sequence")
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.features, self.steps, self.eps, self.momentum = features, steps, eps, momentum
        self.batch_first = batch_first
        self.register_parameter("weight", nn.Parameter(torch.ones(features, **where)) if affine else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(features, **where)) if affine else None)
        self.register_buffer("running_mean", torch.zeros(steps, features, **where))
        self.register_buffer("running_var", torch.ones(steps, features, **where))
        self.register_buffer("num_batches_tracked", torch.zeros(steps, dtype=torch.long, device=device))

    @classmethod
    def from_batch_norm(cls, norm: nn.BatchNorm1d, steps: int, *, batch_first: bool = True) -> TimeStepBatchNorm:
        """The layer that takes a batch norm's place: every step starts from its statistics.

        Raises:
            InputError: the batch norm has no running statistics.
        """
        if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
            raise InputError("make TimeStepBatchNorm", "the batch norm has no running statistics", "Make a new layer")
        made = cls(
            norm.num_features, steps, eps=norm.eps, momentum=norm.momentum, affine=norm.affine, batch_first=batch_first,
            device=norm.running_mean.device, dtype=norm.running_mean.dtype,
        )  # fmt: skip
        made.train(norm.training)
        with torch.no_grad():
            made.running_mean.copy_(norm.running_mean)
            made.running_var.copy_(norm.running_var)
            made.num_batches_tracked.fill_(int(norm.num_batches_tracked))
            if made.weight is not None and made.bias is not None:
                made.weight.copy_(norm.weight)
                made.bias.copy_(norm.bias)
        return made

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Normalised sequences, of the input's shape and dtype."""
        if x.dim() != 3 or x.shape[2] != self.features:
            found = f"an input of shape {tuple(x.shape)}"
            raise InputError(f"normalise sequences of {self.features} features", found, "Pass three dimensions, C last")
        time = 1 if self.batch_first else 0
        there = None if lengths is None else self._there(lengths, x, time)
        kind = x.dtype
        x = x.float() if kind in (torch.float16, torch.bfloat16) else x
        mean, variance = self._batch(x, there, time) if self.training else self._running(x.shape[time])
        mean, variance = mean.unsqueeze(1 - time), variance.unsqueeze(1 - time)
        y = (x - mean) / (variance + self.eps).sqrt()
        if self.weight is not None and self.bias is not None:
            y = y * self.weight + self.bias
        y = y.to(kind)
        return y if there is None else y.masked_fill(~there, 0.0)

    def _there(self, lengths: Tensor, x: Tensor, time: int) -> Tensor:
        """Which positions hold a sequence; the input's shape with one feature."""
        lengths = lengths.to(x.device)
        n, t = x.shape[1 - time], x.shape[time]
        if lengths.shape != (n,) or (not lengths.is_meta and (int(lengths.min()) < 1 or int(lengths.max()) > t)):
            found = f"lengths are {lengths.tolist() if n < 9 and not lengths.is_meta else tuple(lengths.shape)}"
            raise InputError(f"normalise {n} sequences of {t} steps", found, f"Pass one length from 1 to {t} for each")
        there = torch.arange(t, device=x.device).unsqueeze(1) < lengths.unsqueeze(0)
        return (there.t() if time else there).unsqueeze(2)

    def _running(self, length: int) -> tuple[Tensor, Tensor]:
        """The running statistics that stand for each step of a sequence; shape (T, C) each."""
        slot = torch.arange(length, device=self.running_mean.device).clamp(max=self.steps - 1)
        if not self.num_batches_tracked.is_meta:
            with torch._C.DisableTorchFunction():
                known = self.num_batches_tracked > 0
                places = torch.where(known, torch.arange(self.steps, device=known.device), 0)
                slot = places.cummax(0).values[slot]
        return self.running_mean[slot], self.running_var[slot]

    def _batch(self, x: Tensor, there: Tensor | None, time: int) -> tuple[Tensor, Tensor]:
        """Statistics of this batch for each step, where it has enough sequences; they move the running ones."""
        over = 1 - time
        if there is None and x.shape[time] <= self.steps:
            mean, variance = x.mean(over), x.var(over, unbiased=False)
            count = torch.full((x.shape[time],), x.shape[over], device=x.device)
        else:
            part = torch.ones_like(x[..., :1]) if there is None else there.to(x.dtype)
            count = self._pooled(part.sum(over))
            mean = self._pooled((x * part).sum(over)) / count.clamp(min=1)
            square = ((x - mean.unsqueeze(over)) * part).square()
            variance = self._pooled(square.sum(over)) / count.clamp(min=1)
            count = count.squeeze(1)
        known, spread = (None, None) if there is None and x.shape[over] >= LEAST else self._running(x.shape[time])
        self._remember(mean, variance, count)
        if known is None or spread is None:
            return mean, variance
        enough = (count >= LEAST).unsqueeze(1)
        return torch.where(enough, mean, known), torch.where(enough, variance, spread)

    def _pooled(self, total: Tensor) -> Tensor:
        """Sums of each step, those that share the last slot added up; shape (T, ...)."""
        extra = total.shape[0] - self.steps
        if extra <= 0:
            return total
        own, shared = total[: self.steps - 1], total[self.steps - 1 :].sum(0, keepdim=True)
        return torch.cat([own, shared.expand(extra + 1, -1)])

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics of the steps that had enough sequences."""
        if mean.is_meta:
            return
        with torch._C.DisableTorchFunction():  # statistics are no part of the step that a recorder watches
            mean, variance, count = mean[: self.steps], variance[: self.steps], count[: self.steps].to(mean.dtype)
            moved = (count >= LEAST).nonzero().squeeze(1)
            self.num_batches_tracked[moved] += 1
            tracked = self.num_batches_tracked[moved].to(mean.dtype).unsqueeze(1)
            step = 1 / tracked if self.momentum is None else torch.full_like(tracked, self.momentum)
            unbiased = variance * (count / (count - 1).clamp(min=1)).unsqueeze(1)
            for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
                running[moved] = torch.lerp(running[moved], new[moved].to(running), step.to(running))

    def extra_repr(self) -> str:
        """Features, slots, and how many of them training has reached."""
        tracked = self.num_batches_tracked
        reached = "?" if tracked.is_meta else int((tracked > 0).sum())
        return f"{self.features}, steps={self.steps} ({reached} reached), eps={self.eps:g}, momentum={self.momentum}"


__all__ = ["TimeStepBatchNorm"]
