"""Known linear maps over sites: interpolation, padding, cumulative sums."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tightrope.rules.mixing import mixed
from tightrope.rules.registry import Call, Gradients, rule
from tightrope.rules.state import DTYPE, State, state_shape


@rule("interpolate", "upsample", "upsample_nearest", "upsample_bilinear", "pad", "cumsum")
def mapped_sites(call: Call) -> State:
    """A separable linear map along dimensions: its matrices are the operation's own, read off unit vectors."""
    made = mixed(call.input, _matrices(call), call.axes[0])
    value = call.argument(3, "value") if call.entry.op == "pad" else None
    if not value:
        return made
    if math.isinf(value):  # a maximum is about to pass over the border: what is inside has the law it had
        sites = [d for d in _matrices(call) if any(f.shape[d] > 1 for f in call.input.fields)]
        inner = call.input.map(lambda f: f.mean(sites, keepdim=True) if sites else f)
        return replace(inner, axes=call.axes[0], lags=call.input.lags)
    inside = torch.ones((), dtype=DTYPE)
    for dim, matrix in _matrices(call).items():
        inside = inside * matrix.sum(1).reshape([-1 if d == dim else 1 for d in range(made.mean.ndim)])
    filled = made.mean.expand(torch.broadcast_shapes(made.mean.shape, inside.shape)) + (1 - inside) * float(value)
    return State(made.axes, filled, *made.fields[1:], width=made.width)


@mapped_sites.gradient
def _(call: Call, upstream: State) -> Gradients:
    number = call.id(0, "input")
    assert number is not None
    return {number: mixed(upstream, {d: m.T for d, m in _matrices(call).items()}, call.input.axes)}


def _matrices(call: Call) -> dict[int, Tensor]:
    """(result, input) for each dimension that changes."""
    before, after = call.input.axes.shape, call.axes[0].shape
    rank = len(before)
    if call.entry.op == "cumsum":
        dim = int(call.argument(1, "dim")) % rank
        found = {dim: torch.ones(before[dim], before[dim], dtype=DTYPE).tril()}
    elif call.entry.op == "pad":
        found = _padding(call, before)
    else:
        found = {d: _interpolation(call, before[d], after[d]) for d in range(2, rank)}
    for dim in found:
        if state_shape(call.input.axes)[dim] != before[dim]:
            raise NotImplementedError(f"{call.entry.op} along samples")
    return found


def _padding(call: Call, before: tuple[int, ...]) -> dict[int, Tensor]:
    widths, mode = list(call.argument(1, "pad")), str(call.argument(2, "mode", "constant"))
    found = {}
    for place in range(len(widths) // 2):
        low, high = int(widths[2 * place]), int(widths[2 * place + 1])
        dim = len(before) - 1 - place
        if low or high:
            unit = torch.eye(before[dim], dtype=DTYPE).unsqueeze(0)
            found[dim] = F.pad(unit, (low, high), mode=mode)[0].T
    return found


def _interpolation(call: Call, inputs: int, outputs: int) -> Tensor:
    default = {"upsample_bilinear": "bilinear"}.get(call.entry.op, "nearest")
    mode = str(call.argument(3, "mode", default))
    flat: dict[str, Any] = {"mode": {"linear": "bilinear", "trilinear": "bilinear"}.get(mode, mode)}
    if flat["mode"] in ("bilinear", "bicubic"):
        corners = call.argument(4, "align_corners", True if call.entry.op == "upsample_bilinear" else None)
        flat.update(align_corners=corners, antialias=bool(call.argument(6, "antialias", False)))
    unit = torch.eye(inputs, dtype=DTYPE).reshape(1, inputs, inputs, 1)
    return F.interpolate(unit, size=(outputs, 1), **flat)[0, :, :, 0].T
