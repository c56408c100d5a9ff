"""Where a piecewise linear net bends: its pre-activations along directions of the input, seen while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.autograd.forward_ad as forward
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tightrope.errors import InputError

ASKED = "count linear regions"
Places = Callable[[dict[str, Any]], tuple[float, ...]]


def _at(*places: float) -> Places:
    return lambda _: places


def _bounds(low: str, high: str, *standard: float) -> Places:
    def of(options: dict[str, Any]) -> tuple[float, ...]:
        found = (
            options.get(low, standard[0] if standard else None),
            options.get(high, standard[1] if standard else None),
        )
        if any(isinstance(x, Tensor) for x in found):
            raise InputError(ASKED, "a clamp has tensors for bounds", "Use numbers for them")
        return tuple(float(x) for x in found if x is not None)

    return of


ZERO = _at(0.0)
KINKS: dict[Any, tuple[tuple[str, ...], Places]] = {
    F.relu: (("input", "inplace"), ZERO),
    torch.relu: (("input",), ZERO),
    torch.relu_: (("input",), ZERO),
    Tensor.relu: (("input",), ZERO),
    Tensor.relu_: (("input",), ZERO),
    F.leaky_relu: (("input", "negative_slope", "inplace"), ZERO),
    F.prelu: (("input", "weight"), ZERO),
    torch.prelu: (("input", "weight"), ZERO),
    F.relu6: (("input", "inplace"), _at(0.0, 6.0)),
    F.hardtanh: (("input", "min_val", "max_val", "inplace"), _bounds("min_val", "max_val", -1.0, 1.0)),
    F.hardsigmoid: (("input", "inplace"), _at(-3.0, 3.0)),
    torch.abs: (("input",), ZERO),
    Tensor.abs: (("input",), ZERO),
    torch.clamp: (("input", "min", "max"), _bounds("min", "max")),
    Tensor.clamp: (("input", "min", "max"), _bounds("min", "max")),
    Tensor.clamp_min: (("input", "min"), _bounds("min", "max")),
}
"""What bends, its arguments, and where it does."""


@dataclass(frozen=True)
class Local:
    """A net around some points: affine in the directions there.

    Attributes:
        value, slopes: the outputs, shape (points, outputs), and their derivatives, (directions, points, outputs).
        heights, tilts: distance of each pre-activation from its kink, (points, units), and its derivatives,
            (directions, points, units).
        units: kinks of each call, in the order of the calls.
    """

    value: Tensor
    slopes: Tensor
    heights: Tensor
    tilts: Tensor
    units: tuple[int, ...]


def local(model: nn.Module, points: Tensor, directions: Tensor) -> Local:
    """The net's affine form at each point, (points, ...), along each direction, (directions, ...)."""
    values, slopes, heights, tilts = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
    units: tuple[int, ...] = ()
    for direction in directions:
        with forward.dual_level(), _Listener() as heard:
            output = model(forward.make_dual(points, direction.expand_as(points).contiguous()))
            if not isinstance(output, Tensor) or output.shape[:1] != points.shape[:1]:
                raise InputError(
                    ASKED, "the output is no tensor with one row a sample", "Pass a model that returns one"
                )
            value, slope = _both(output)
        if not heard.heights:
            found = "the model ran no activation with a kink"
            raise InputError(ASKED, found, "Pass a net of ReLU or another piecewise linear activation")
        values.append(value)
        slopes.append(slope)
        heights.append(torch.cat(heard.heights, 1))
        tilts.append(torch.cat(heard.tilts, 1))
        units = tuple(h.shape[1] for h in heard.heights)
    return Local(values[0], torch.stack(slopes), heights[0], torch.stack(tilts), units)


class _Listener(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.heights: list[Tensor] = []
        self.tilts: list[Tensor] = []
        self._inside = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in KINKS and not self._inside:
            names, places = KINKS[func]
            options = {**dict(zip(names, args, strict=False)), **kwargs}
            value, slope = _both(options.pop("input"))
            for place in places(options):
                self.heights.append(value - place)
                self.tilts.append(slope)
        before, self._inside = self._inside, self._inside or func in KINKS
        try:
            return func(*args, **kwargs)
        finally:
            self._inside = before


def _both(tensor: Tensor) -> tuple[Tensor, Tensor]:
    value, slope = forward.unpack_dual(tensor)
    slope = torch.zeros_like(value) if slope is None else slope
    return value.detach().reshape(len(value), -1).clone(), slope.detach().reshape(len(value), -1).clone()


__all__ = ["ASKED", "KINKS", "Local", "local"]
