"""Standardise the features of the data, inside the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn

from tightrope.errors import InputError

LIMIT = 8.0
"""How far, in units of its scale, a feature may lie from its mean on the data it was fitted on."""


class Standardize(nn.Module):
    """(x - mean) / scale for every feature, with statistics of the training data that travel with the model.

    The statistics are fitted in one pass over the data, merge exactly, and stand in the `state_dict`. They are
    not learnt and do not change between training and evaluation. The scale of a feature is its standard deviation,
    but never so small that a value of the fitted data would lie further than `LIMIT` scales from the mean: a
    feature that hardly ever moves is not blown up. A feature that never moved is centred and given the median
    scale of the others.

    Args:
        features: number of features; None to learn it from the first batch.
        dim: dimension of the features: -1 for tables, sequences and tokens, 1 for images (N, C, H, W).
        learn: number of samples that training passes still add to the statistics; 0 after `fit`.
        impute: take NaN and infinity as missing: they do not count, and come out as the feature's mean, 0. Without
            it they raise.

    Shape:
        input (N, ...), output of the same shape.

    Example:
        >>> table = torch.tensor([[0.0, 100.0], [2.0, 300.0]])
        >>> Standardize().fit([table])(table)
        tensor([[-1., -1.],
                [ 1.,  1.]])

    References:
        Chan, Golub, LeVeque (1983), Algorithms for computing the sample variance, Am. Stat. 37, for the merging;
        LeCun et al. (1998), Efficient BackProp, section 4.3, for the reason.
    """

    count: Tensor
    mean: Tensor
    scale: Tensor
    squares: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, features: int | None = None, *, dim: int = -1, learn: int = 0, impute: bool = False) -> None:
        super().__init__()
        self.dim = dim
        self.learn = learn
        self.impute = impute
        width = features or 0
        self.register_buffer("count", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(width, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("low", torch.full((width,), torch.inf, dtype=torch.float64))
        self.register_buffer("high", torch.full((width,), -torch.inf, dtype=torch.float64))

    @property
    def fitted(self) -> bool:
        """Whether the statistics rest on any data."""
        return self.count.numel() > 0 and self.count.max().item() > 0

    @property
    def variance(self) -> Tensor:
        """Variance of each feature over the fitted data; shape (features,)."""
        return self.squares / self.count.clamp(min=1)

    def _rescale(self) -> None:
        """Bring `scale`, what each feature is divided by, up to date."""
        reach = torch.maximum(self.high - self.mean, self.mean - self.low) / LIMIT
        found = torch.maximum(self.variance.sqrt(), reach).nan_to_num(0.0, 0.0, 0.0)
        moved = found > 1e-9 * self.mean.abs()
        usual = found[moved].median() if bool(moved.any()) else self.count.new_ones(())
        self.scale.copy_(torch.where(moved, found, usual))

    @torch.no_grad()
    def fit(self, data: Any) -> Standardize:
        """Forget what was fitted and fit on a tensor, a batch, or a loader of batches.

        Of a batch that is a tuple, list or mapping the first floating-point tensor is taken.

        Raises:
            InputError: the data hold no floating-point tensor, or none of its numbers is finite.
        """
        self._resize(0)
        batches = [data] if isinstance(data, (Tensor, Mapping)) or not isinstance(data, Iterable) else data
        for batch in batches:
            self.update(_tensor(batch))
        if not self.fitted:
            raise InputError("fit Standardize", "the loader is empty", "Pass a loader with at least one batch")
        self.learn = 0
        return self

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Add a batch to the statistics.

        Raises:
            InputError: it holds a non-finite number without `impute`, or another number of features.
        """
        with torch._C.DisableTorchFunction():  # statistics are no part of the step that a recorder watches
            self._update(x.detach())

    def _update(self, x: Tensor) -> None:
        rows = x.movedim(self.dim, -1)
        rows = rows.reshape(-1, rows.shape[-1]).double()
        there = torch.isfinite(rows)
        if not self.impute and not bool(there.all()):
            raise InputError("fit Standardize", "the data hold NaN or infinity", "Clean them, or pass impute=True")
        if self.mean.numel() == 0:
            self._resize(rows.shape[1])
        if rows.shape[1] != self.mean.numel():
            found = f"{rows.shape[1]} features after {self.mean.numel()}"
            raise InputError("fit Standardize", found, "Set dim= to the features' dimension")
        count = there.sum(0).double()
        known = torch.where(there, rows, torch.zeros_like(rows))
        mean = known.sum(0) / count.clamp(min=1)
        squares = torch.where(there, rows - mean, torch.zeros_like(rows)).square().sum(0)
        low = rows.masked_fill(~there, torch.inf).amin(0)
        high = rows.masked_fill(~there, -torch.inf).amax(0)
        self._join(count, mean, squares, low, high)

    @torch.no_grad()
    def merge(self, other: Standardize) -> Standardize:
        """Add what another one was fitted on, as if both data sets had been one."""
        if self.mean.numel() == 0:
            self._resize(other.mean.numel())
        self._join(other.count, other.mean, other.squares, other.low, other.high)
        return self

    @torch.no_grad()
    def merge_ranks(self, group: distributed.ProcessGroup | None = None) -> Standardize:
        """Merge what every process of a group was fitted on: all then hold the same statistics, those of all data.

        Each process calls it once after `fit` on its own share; a process whose share was empty may skip the fit.

        Args:
            group: of processes; None for all of them.

        Raises:
            InputError: no process group is initialised, or the processes saw different numbers of features.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            found = "no process group is initialised"
            raise InputError("merge Standardize over ranks", found, "Call torch.distributed.init_process_group first")
        parts = [self.count, self.mean, self.squares, self.low, self.high]
        gathered: list[Any] = [None] * distributed.get_world_size(group)
        distributed.all_gather_object(gathered, [part.cpu() for part in parts], group=group)
        self._resize(0)
        for shares in gathered:  # in the order of the ranks, so that all arrive at the same bits
            if shares[0].numel():
                if self.mean.numel() == 0:
                    self._resize(shares[0].numel())
                self._join(*(share.to(self.mean.device) for share in shares))
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Standardised features, of the input's shape and dtype."""
        if self.training and self.learn and (not self.fitted or self.count.max().item() < self.learn):
            self.update(x)
        if not self.fitted:
            raise InputError("standardise", "nothing was fitted yet", "Call fit(loader) with the training data first")
        shape = [1] * x.ndim
        shape[self.dim] = -1
        mean, scale = self.mean.reshape(shape), self.scale.reshape(shape)
        kind = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        if self.impute:
            x = torch.where(torch.isfinite(x), x, mean)
        return ((x - mean) / scale).to(kind)

    def extra_repr(self) -> str:
        """Features, dimension and the number of values fitted on."""
        return f"{self.mean.numel()}, dim={self.dim}, fitted on {int(self.count.max()) if self.fitted else 0}"

    def _join(self, count: Tensor, mean: Tensor, squares: Tensor, low: Tensor, high: Tensor) -> None:
        if mean.numel() != self.mean.numel():
            raise InputError("merge Standardize", f"{mean.numel()} features with {self.mean.numel()}", "Fit both alike")
        total = self.count + count
        shift = mean - self.mean
        self.squares += squares + shift.square() * self.count * count / total.clamp(min=1)
        self.mean += shift * count / total.clamp(min=1)
        self.low.copy_(torch.minimum(self.low, low))
        self.high.copy_(torch.maximum(self.high, high))
        self.count.copy_(total)
        self._rescale()

    def _resize(self, width: int) -> None:
        """Start again with this number of features."""
        for name, start in (
            ("count", 0.0),
            ("mean", 0.0),
            ("scale", 1.0),
            ("squares", 0.0),
            ("low", torch.inf),
            ("high", -torch.inf),
        ):
            old: Tensor = getattr(self, name)
            setattr(self, name, torch.full((width,), start, dtype=torch.float64, device=old.device))

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        stored = state.get(f"{prefix}mean")
        if stored is not None and stored.numel() != self.mean.numel():
            self._resize(stored.numel())
        super()._load_from_state_dict(state, prefix, *rest)


def _tensor(batch: Any) -> Tensor:
    """The data of a batch: its first floating-point tensor."""
    parts = (
        list(batch.values()) if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else [batch]
    )
    for part in parts:
        if isinstance(part, Tensor) and (part.is_floating_point() or part.dtype == torch.uint8):
            return part
    raise InputError("fit Standardize", f"a {type(batch).__name__} holds no floating-point tensor", "Pass it")


__all__ = ["Standardize"]
