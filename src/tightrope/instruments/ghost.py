"""Squared norms of the gradients of single samples, taken on the way of one backward pass.

The gradient of one sample with respect to a weight matrix is the sum over its sites t of d_t a_t^T, with input a and
gradient d of the output. Its squared norm is |a|^2 |d|^2 for one site and sum_st (a_s . a_t)(d_s . d_t) for several: no
gradient of a sample is made. Where it is small beside that sum over sites it is made, and the gradient of the batch is
the sum of those, so that nothing is computed twice.

References: Goodfellow (2015), Efficient per-example gradient computations, arXiv 1510.01799; Li et al. (2022), Large
language models can be strong differentially private learners, ICLR (several sites, ghost clipping); Rochette, Manoel,
Tramel (2019), Efficient per-example gradient computations in convolutional neural networks, arXiv 1912.06015.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from tightrope.tape.names import COMPOSITES
from tightrope.tape.recorder import entered

LARGEST = 1 << 24
"""Most numbers of a part of the samples' gradients that is made at once."""
KEPT = 1 << 27
"""Most numbers of a parameter's gradients for all samples that are kept, where it is used more than once."""


class Unsupported(Exception):
    """A parameter is used in a way without a ghost norm."""


class Coupled(Exception):
    """The loss is no sum over samples, so that no sample has a gradient of its own."""


class Still(TorchFunctionMode):
    """Runs calls without dropout, so that a sample's gradient can be compared between batches."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in COMPOSITES:
            with entered(self):
                return function(*args, **kwargs)
        return self.call(function, args, kwargs)

    def call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One call that is no composite."""
        if function in DROPOUTS:
            return args[0] if args else kwargs["input"]
        if function is F.scaled_dot_product_attention:
            args, kwargs = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args, {**kwargs}
            kwargs.pop("dropout_p", None)
        return function(*args, **kwargs)


class Ghost(Still):
    """Collects squared norms of the gradients of single samples while a backward pass runs.

    Attributes:
        squared: of each sample, over all parameters; shape (samples,), double precision. Complete after `finish`.

    Args:
        parameters: those that are differentiated.
        samples: number of samples, the first dimension of what the layers see or its leading factor.
        rules: how calls with parameters are made, by function.
        still: without dropout.
    """

    def __init__(
        self, parameters: Iterable[Tensor], samples: int, rules: Mapping[Any, Callable[..., Tensor]], *,
        still: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        parameters, self.rules = list(parameters), rules
        self.samples, self.still = samples, still
        self.tracked = {id(p): p for p in parameters}
        self.squared = torch.zeros(samples, dtype=torch.float64, device=parameters[0].device)
        self.uses: Counter[int] = Counter()
        self.kept: dict[int, Tensor] = {}
        self.time_major = False

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is F.multi_head_attention_forward:  # its body has the time first
            self.time_major = True
            try:
                return super().__torch_function__(function, types, args, kwargs)
            finally:
                self.time_major = False
        return super().__torch_function__(function, types, args, kwargs)

    def call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Rules make calls with parameters; any other call that a gradient passes through is refused."""
        held = [t for t in tree_flatten((args, kwargs))[0] if id(t) in self.tracked]
        rule = self.rules.get(function)
        if rule is not None and (held or function is F.batch_norm):
            return rule(self, *args, **kwargs)
        made = super().call(function, args, kwargs) if self.still else function(*args, **kwargs)
        if held and any(isinstance(t, Tensor) and t.requires_grad for t in tree_flatten(made)[0]):
            raise Unsupported(f"{getattr(function, '__name__', function)} of a parameter")
        return made

    def uses_of(self, *parameters: Tensor | None) -> None:
        """Note that a call reads these parameters."""
        self.uses.update(id(p) for p in parameters if p is not None and id(p) in self.tracked)

    def rows(self, x: Tensor, features: int = 1) -> Tensor:
        """(samples, sites, features...) of a tensor whose last dimensions are features."""
        own = x.shape[x.dim() - features :]
        if self.time_major:
            return x.reshape(-1, self.samples, *own).transpose(0, 1)
        return x.reshape(self.samples, -1, *own)

    def check(self, x: Tensor, features: int = 1) -> None:
        """Refuse a tensor whose leading dimensions do not hold the samples."""
        lead = 1
        for size in x.shape[: x.dim() - features]:
            lead *= size
        if x.dim() <= features or lead % self.samples or (not self.time_major and x.shape[0] % self.samples):
            raise Unsupported(f"a tensor of shape {tuple(x.shape)} in a batch of {self.samples}")

    def add(self, key: int, squared: Callable[[], Tensor], each: Callable[[], Tensor]) -> None:
        """A use of a parameter: its samples' squared norms, or, where it has several uses, their gradients."""
        if self.uses[key] < 2:
            self.squared += squared()
            return
        if self.samples * self.tracked[key].numel() > KEPT:
            raise Unsupported("a large parameter used more than once")
        part = each().flatten(1)
        self.kept[key] = self.kept[key] + part if key in self.kept else part

    def finish(self) -> Tensor:
        """The squared norms, parameters with several uses included."""
        for part in self.kept.values():
            self.squared += square(part)
        self.kept.clear()
        return self.squared


def square(x: Tensor) -> Tensor:
    """Squared norm of each sample, double precision."""
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norms.double().square()


def outer(d: Tensor, a: Tensor, groups: int = 1) -> tuple[Tensor, Tensor | None]:
    """Squared norms of sum_t d_t a_t^T per sample, and the sum of these matrices where they were made.

    Args:
        d, a: shape (samples * groups, sites, rows) and (samples * groups, sites, columns).
        groups: independent matrices a sample.

    Returns:
        Shape (samples,), and (groups, rows, columns) or None.
    """
    total, sites, rows = d.shape
    columns, samples = a.shape[2], total // groups
    if sites == 1 and groups == 1:
        return square(d) * square(a), None
    if 2 * sites * (rows + columns) < rows * columns:  # then sites < columns / 2: products fit where the inputs do
        both = torch.bmm(d, d.transpose(1, 2)).mul_(torch.bmm(a, a.transpose(1, 2)))
        return both.sum((1, 2), dtype=torch.float64).view(samples, groups).sum(1).clamp(min=0), None
    step = max(LARGEST // (groups * rows * columns), 1) * groups
    squared, whole = [], None
    for i in range(0, total, step):
        made = torch.bmm(d[i : i + step].transpose(1, 2), a[i : i + step])
        squared.append(square(made.view(-1, groups * rows * columns)))
        part = made.view(-1, groups, rows, columns).sum(0)
        whole = part if whole is None else whole.add_(part)
    return torch.cat(squared), whole


DROPOUTS = frozenset(
    {
        F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout,
        torch.alpha_dropout, torch.feature_dropout, torch.feature_alpha_dropout,
    }
)  # fmt: skip

__all__ = ["Coupled", "Ghost", "Still", "Unsupported", "outer", "square"]
