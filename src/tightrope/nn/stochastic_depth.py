"""Drop whole residual branches at random in training, and scale them at inference."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from tightrope.errors import InputError

MODES = ("row", "batch")
CONVENTIONS = ("inference", "training")


class StochasticDepth(nn.Module):
    """Keeps a residual branch F(x) with probability p = 1 - drop; stands between the branch and the sum.

    The mean of x + b F(x) over the Bernoulli gate b is x + p F(x). With `scale="inference"`, the convention of the
    paper, training computes x + b F(x) and inference x + p F(x). With `scale="training"`, the convention of
    `torchvision.ops.StochasticDepth` and of `DropPath` in timm, training computes x + (b / p) F(x) and inference
    x + F(x). Weights trained under one convention belong to it: their branches differ by the factor p.

    Args:
        drop: probability that a branch is dropped, from 0 to 1.
        mode: "row" draws a gate for each sample, "batch" one for the whole batch.
        scale: when the branch is scaled; see above.

    Shape:
        input (N, ...), output of the same shape.

    Example:
        >>> layer = StochasticDepth(0.25).eval()
        >>> layer(torch.ones(2, 2))
        tensor([[0.7500, 0.7500],
                [0.7500, 0.7500]])

    References:
        Huang, Sun, Liu, Sedra, Weinberger (2016), Deep networks with stochastic depth, ECCV.
    """

    def __init__(
        self, drop: float, mode: str = "row", *, scale: Literal["inference", "training"] = "inference"
    ) -> None:
        super().__init__()
        if not 0.0 <= drop <= 1.0:
            raise InputError("make StochasticDepth", f"drop is {drop}", "Pass a probability from 0 to 1")
        if mode not in MODES:
            raise InputError("make StochasticDepth", f"mode is {mode!r}", f"Choose one of {MODES}")
        if scale not in CONVENTIONS:
            raise InputError("make StochasticDepth", f"scale is {scale!r}", f"Choose one of {CONVENTIONS}")
        self.drop = drop
        self.mode = mode
        self.scale: str = scale

    def forward(self, x: Tensor) -> Tensor:
        """The branch, dropped or scaled."""
        keep = 1.0 - self.drop
        inverted = self.scale == "training"
        if self.drop == 0.0:
            return x
        if not self.training:
            return x if inverted else x * keep
        shape = [1] * x.dim()
        if self.mode == "row":
            shape[0] = x.size(0)
        gate = torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(keep)
        if inverted and keep > 0.0:
            gate = gate / keep
        return x * gate

    def extra_repr(self) -> str:
        """Drop probability, mode and convention."""
        return f"drop={self.drop:g}, mode={self.mode}, scale={self.scale}"


__all__ = ["StochasticDepth"]
