"""What an initialiser draws: moments of one element, and how fills, copies and products change them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Draw:
    """Moments of one element of a weight over the draws of its initialiser.

    Attributes:
        mean, variance: of one element.
        kurtosis: E[(x - mean)^4] / variance^2; 3 for a Gaussian, 1.8 for a uniform law.
    """

    mean: float
    variance: float = 0.0
    kurtosis: float = 3.0


def mixed(first: Draw, second: Draw, share: float) -> Draw:
    """The law of an element that follows `second` with this probability and `first` else."""
    mean = (1 - share) * first.mean + share * second.mean
    variance = fourth = 0.0
    for weight, part in ((1 - share, first), (share, second)):
        shift = part.mean - mean
        variance += weight * (part.variance + shift**2)
        fourth += weight * (part.kurtosis * part.variance**2 + 6 * part.variance * shift**2 + shift**4)
    return Draw(mean, variance, fourth / variance**2 if variance > 0 else 3.0)


# -- fills ---------------------------------------------------------------------------------------

Read = Callable[[Any], Draw | None]


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], place: int, name: str, default: float) -> float:
    value = kwargs.get(name, args[place] if len(args) > place else default)
    return float(default if value is None else value)


def _uniform(low: float, high: float) -> Draw:
    return Draw((low + high) / 2, (high - low) ** 2 / 12, 1.8)


def _scaled(old: Draw | None, args: Any, kwargs: Any, read: Read, sign: int = 1) -> Draw | None:
    factor = args[1] if len(args) > 1 else kwargs.get("other")
    if old is None:
        return None
    if isinstance(factor, Tensor):
        other = read(factor)
        if other is None or sign < 0:
            return None
        mean = old.mean * other.mean
        second = (old.mean**2 + old.variance) * (other.mean**2 + other.variance)
        return Draw(mean, second - mean**2, old.kurtosis if other.variance == 0 or abs(other.mean) < 1e-12 else 3.0)
    factor = float(factor) if sign > 0 else 1 / float(factor)
    return replace(old, mean=old.mean * factor, variance=old.variance * factor**2)


def _shifted(old: Draw | None, args: Any, kwargs: Any, read: Read, sign: int = 1) -> Draw | None:
    other, alpha = (args[1] if len(args) > 1 else kwargs.get("other")), sign * float(kwargs.get("alpha", 1))
    if old is None:
        return None
    if isinstance(other, (int, float)):
        return replace(old, mean=old.mean + alpha * float(other))
    added = read(other)
    if added is None:
        return None
    return Draw(old.mean + alpha * added.mean, old.variance + alpha**2 * added.variance)


def _clamped(old: Draw | None, args: Any, kwargs: Any, read: Read) -> Draw | None:
    """The law of a Gaussian (or of a truncated one, which this leaves alone) between bounds."""
    low, high = _argument(args, kwargs, 1, "min", -math.inf), _argument(args, kwargs, 2, "max", math.inf)
    if old is None or old.variance == 0:
        return old if old is None else replace(old, mean=min(max(old.mean, low), high))
    std = math.sqrt(old.variance)
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    weight = torch.exp(-grid.square() / 2)
    weight = weight / weight.sum()
    x = (old.mean + std * grid).clamp(low, high)
    return _moments(x, weight)


def _moments(x: Tensor, weight: Tensor) -> Draw:
    mean = float((x * weight).sum())
    variance = float(((x - mean).square() * weight).sum())
    fourth = float(((x - mean) ** 4 * weight).sum())
    return Draw(mean, variance, fourth / variance**2 if variance > 0 else 3.0)


def _inverse_error_function(old: Draw | None, args: Any, kwargs: Any, read: Read) -> Draw | None:
    """Of a uniform law: a Gaussian of variance 1/2, truncated where the uniform law ends."""
    if old is None:
        return None
    half = math.sqrt(3 * old.variance)
    u = old.mean + half * (torch.arange(4000, dtype=torch.float64) + 0.5 - 2000) / 2000
    return _moments(torch.erfinv(u.clamp(-1 + 1e-9, 1 - 1e-9)), torch.full((4000,), 1 / 4000, dtype=torch.float64))


def _copied(old: Draw | None, args: Any, kwargs: Any, read: Read) -> Draw | None:
    source = args[1] if len(args) > 1 else kwargs.get("src", kwargs.get("other"))
    if isinstance(source, (int, float)):
        return Draw(float(source))
    return read(source)


FILLS: dict[str, Callable[..., Draw | None]] = {
    "normal": lambda old, a, k, read: Draw(_argument(a, k, 1, "mean", 0), _argument(a, k, 2, "std", 1) ** 2, 3.0),
    "uniform": lambda old, a, k, read: _uniform(_argument(a, k, 1, "from", 0), _argument(a, k, 2, "to", 1)),
    "exponential": lambda old, a, k, read: Draw(
        1 / _argument(a, k, 1, "lambd", 1), 1 / _argument(a, k, 1, "lambd", 1) ** 2, 9.0
    ),
    "zero": lambda old, a, k, read: Draw(0.0),
    "fill": lambda old, a, k, read: Draw(float(a[1] if len(a) > 1 else k["value"])),
    "mul": _scaled,
    "div": lambda old, a, k, read: _scaled(old, a, k, read, -1),
    "add": _shifted,
    "sub": lambda old, a, k, read: _shifted(old, a, k, read, -1),
    "neg": lambda old, a, k, read: None if old is None else replace(old, mean=-old.mean),
    "clamp": _clamped,
    "erfinv": _inverse_error_function,
    "copy": _copied,
    "set_data": _copied,
}
COPIES = frozenset({"clone", "to", "float", "half", "bfloat16", "double", "contiguous", "type", "expand", "repeat"})


Created = Callable[[Any, Any, Tensor], Draw]


def _gaussian(args: Any, kwargs: Any, made: Tensor) -> Draw:
    return Draw(0.0, 1.0)


def _uniform_draw(args: Any, kwargs: Any, made: Tensor) -> Draw:
    return _uniform(0, 1)


def _filled(args: Any, kwargs: Any, made: Tensor) -> Draw:
    return Draw(float(args[1] if len(args) > 1 else kwargs["fill_value"]))


def _orthogonal(args: Any, kwargs: Any, made: Tensor) -> Draw:
    """Columns of length 1."""
    return Draw(0.0, 1 / max(made.shape[-2], 1))


def _diagonal(args: Any, kwargs: Any, made: Tensor) -> Draw:
    return mixed(Draw(0.0), Draw(1.0), min(made.shape) / max(made.numel(), 1))


CREATED: dict[str, Created] = {
    **dict.fromkeys(("randn", "randn_like"), _gaussian),
    **dict.fromkeys(("rand", "rand_like"), _uniform_draw),
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros"), lambda args, kwargs, made: Draw(0.0)),
    **dict.fromkeys(("ones", "ones_like", "new_ones"), lambda args, kwargs, made: Draw(1.0)),
    **dict.fromkeys(("full", "full_like", "new_full"), _filled),
    "sign": lambda args, kwargs, made: Draw(0.0, 1.0, 1.0),
    "linalg_qr": _orthogonal,
    "eye": _diagonal,
}


# -- initialisers that offer themselves whole -----------------------------------------------------


def _kaiming(tensor: Tensor, args: Any, kwargs: Any) -> Draw:
    """He initialisation: std = gain / sqrt(fan)."""
    slope = _argument(args, kwargs, 1, "a", 0)
    mode = kwargs.get("mode", args[2] if len(args) > 2 else "fan_in")
    kind = kwargs.get("nonlinearity", args[3] if len(args) > 3 else "leaky_relu")
    fan = nn.init._calculate_correct_fan(tensor, mode)
    return Draw(0.0, nn.init.calculate_gain(kind, slope) ** 2 / fan, 1.8)


INIT: dict[str, Callable[[Tensor, Any, Any], Draw]] = {
    "normal_": lambda t, a, k: Draw(_argument(a, k, 1, "mean", 0), _argument(a, k, 2, "std", 1) ** 2),
    "uniform_": lambda t, a, k: _uniform(_argument(a, k, 1, "a", 0), _argument(a, k, 2, "b", 1)),
    "constant_": lambda t, a, k: Draw(_argument(a, k, 1, "val", 0)),
    "kaiming_uniform_": _kaiming,
}


# -- initialisers that do nothing on the meta device ----------------------------------------------


def _lengths(tensor: Tensor, names: Mapping[str, Any]) -> Draw:
    """Orthogonal rows or columns: the longer side's vectors have length gain."""
    rows = tensor.shape[0]
    return Draw(0.0, float(names["gain"]) ** 2 / max(rows, tensor.numel() // max(rows, 1), 1))


def _sparse(tensor: Tensor, names: Mapping[str, Any]) -> Draw:
    zeros = math.ceil(names["sparsity"] * tensor.shape[0]) / max(tensor.shape[0], 1)
    return mixed(Draw(0.0, float(names["std"]) ** 2), Draw(0.0), zeros)


def _identity(tensor: Tensor, names: Mapping[str, Any]) -> Draw:
    return mixed(Draw(0.0), Draw(1.0), min(tensor.shape[0], tensor.shape[1] * names["groups"]) / max(tensor.numel(), 1))


def _truncated(tensor: Tensor, names: Mapping[str, Any]) -> Draw:
    mean, std = float(names["mean"]), float(names["std"])
    low, high = max(float(names["a"]), mean - 8 * std), min(float(names["b"]), mean + 8 * std)
    x = torch.linspace(low, high, 4001, dtype=torch.float64)
    weight = torch.exp(-((x - mean) / std).square() / 2)
    return _moments(x, weight / weight.sum())


SKIPPING: dict[str, Callable[[Tensor, Mapping[str, Any]], Draw]] = {
    "orthogonal_": _lengths, "sparse_": _sparse, "dirac_": _identity, "_no_grad_trunc_normal_": _truncated,
}  # fmt: skip

__all__ = ["COPIES", "CREATED", "FILLS", "INIT", "SKIPPING", "Draw", "mixed"]
