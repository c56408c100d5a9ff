"""Lipschitz bounds in a ball about each sample.

Two bounds, of which the smaller counts. Forward: norms times the largest slopes that the ball allows, where a unit's
input is bounded both by intervals and by the row of its weights times the gain so far. Backward: the Jacobian from a
layer to the output is a matrix G and an error of norm e at most; behind a layer whose slopes lie within m +- r it is
G diag(m), and e becomes ||G diag(r)|| + e max(|m| + r). For small balls G is the Jacobian itself.

References:
    Weng et al. (2018), Towards fast computation of certified robustness for ReLU networks, ICML; Gowal et al. (2019),
    Scalable verified training for provably robust image classification, ICCV, for the intervals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tightrope.instruments.robustness.function import Evaluated
from tightrope.instruments.robustness.graph import NORMS, Graph, Joint, Segment, Walker
from tightrope.instruments.robustness.operators import batch_norm_of
from tightrope.instruments.robustness.slopes import slopes_on

ROUNDING = 1e-9
"""Relative widening of intervals for what double precision may leave."""


@dataclass
class _Reach:
    """What a ball becomes at a base: by how much it is stretched, and how far each number may move.

    Attributes:
        gain: Lipschitz bound up to here; shape (batch,).
        radius: shape (batch, numbers).
    """

    gain: Tensor
    radius: Tensor


def local_bounds(function: Evaluated, walker: Walker, graph: Graph, eps: float) -> Tensor:
    """Upper bound of the Lipschitz constant within eps of each sample, Euclidean; shape (samples,)."""
    found = []
    for begin in range(0, function.samples, walker.batch):
        index = (begin + torch.arange(walker.batch, device=function.x.device)).clamp(max=function.samples - 1)
        with torch.no_grad():
            _move(walker, graph, function.x[index].double())
            forward, slopes = _forward(graph, eps)
            backward = _backward(graph, slopes)
        found.append(torch.minimum(forward, backward))
    return torch.cat(found)[: function.samples].cpu()


def _move(walker: Walker, graph: Graph, x: Tensor) -> None:
    """Make the model's calls again on other samples."""
    values = graph.values
    values[graph.source] = x
    for entry in graph.tape.entries:
        if any(i in walker.known for i in entry.outputs) and entry.outputs[0] != graph.source:
            for number, made in zip(entry.outputs, walker.call(entry, values), strict=False):
                values[number] = made


def _forward(graph: Graph, eps: float) -> tuple[Tensor, list[tuple[Tensor, Tensor] | Tensor]]:
    """Gain of the whole, and for each joint the slopes that the ball allows: a pair, or one bound for all."""
    x = graph.values[graph.source]
    one = x.new_ones(len(x))
    reach = {graph.source: _Reach(one, torch.full_like(x.flatten(1), eps))}
    slopes: list[tuple[Tensor, Tensor] | Tensor] = []
    for joint in graph.joints:
        parts = [_through(part, reach[part.base], eps, graph) for part in joint.parts]
        gains = torch.stack([part.gain for part in parts])
        gain = gains.sum(0) if joint.gather == "sum" else gains.square().sum(0).sqrt()
        made = _slopes(graph, joint, parts, gain, eps)
        slopes.append(made)
        if isinstance(made, tuple):
            most = torch.maximum(made[0].abs(), made[1].abs())
            factor, radius = most.amax(1), most * parts[0].radius
        elif len(parts) > 1 and joint.gather == "sum":
            factor, radius = made, torch.stack([part.radius for part in parts]).sum(0)
        else:
            factor = made
            width = graph.values[joint.output][0].numel()
            radius = (gain * factor * eps)[:, None].expand(-1, width)
        gain = gain * factor
        reach[joint.output] = _Reach(gain, torch.minimum(radius, (gain * eps)[:, None]) * (1 + ROUNDING))
    return _through(graph.last, reach[graph.last.base], eps, graph).gain, slopes


def _through(segment: Segment, before: _Reach, eps: float, graph: Graph) -> _Reach:
    """Behind a linear segment."""
    gain = before.gain * segment.norm
    if segment.base == segment.value:
        radius = before.radius * abs(segment.factor)
    elif segment.matrix is None:
        radius = (gain * eps)[:, None].expand(-1, graph.values[segment.value][0].numel())
    else:
        rows = segment.matrix.norm(dim=1) * (before.gain * eps)[:, None]
        radius = torch.minimum(before.radius @ segment.matrix.abs().T, rows)
    return _Reach(gain, radius * (1 + ROUNDING))


def _slopes(
    graph: Graph, joint: Joint, parts: list[_Reach], gain: Tensor, eps: float
) -> tuple[Tensor, Tensor] | Tensor:
    at = graph.values[joint.parts[0].value]
    if joint.shape is not None and joint.function is not None:
        radius = parts[0].radius.reshape(at.shape)
        low, high = slopes_on(joint.function, joint.shape, at, radius)
        return low.flatten(1), high.flatten(1)
    if joint.entry.op in NORMS:
        return _normaliser(graph, joint, at, gain, eps)
    return at.new_full((len(at),), joint.slope)


def _normaliser(graph: Graph, joint: Joint, at: Tensor, gain: Tensor, eps: float) -> Tensor:
    """max |gamma| / sqrt(v + eps), where the root of the variance falls by no more than the ball moves.

    The root of the mean square about the mean of n numbers is a norm over sqrt(n), so a move of length d changes it by
    d / sqrt(n) at most.
    """
    entry = joint.entry
    if entry.op == "layer_norm" or entry.op == "rms_norm":
        shape = entry.argument(1, "normalized_shape")
        count = math.prod([shape] if isinstance(shape, int) else shape)
        groups = at.reshape(len(at), -1, count)
    elif entry.op == "group_norm":
        groups = at.reshape(len(at), int(entry.argument(1, "num_groups")), -1)
    else:
        groups = at.reshape(len(at), at.shape[1], -1)
    centred = groups if entry.op == "rms_norm" else groups - groups.mean(2, keepdim=True)
    root = centred.square().mean(2).sqrt().amin(1) - gain * eps / math.sqrt(groups.shape[2])
    place = {"rms_norm": 3, "instance_norm": 7}.get(entry.op, 4)
    below = entry.argument(place, "eps", 1e-5)
    below = torch.finfo(graph.tape.values[entry.inputs[0]].dtype).eps if below is None else float(below)
    gamma = joint.slope * math.sqrt(below)
    return gamma / (root.clamp(min=0).square() + below).sqrt()


def _backward(graph: Graph, slopes: list[tuple[Tensor, Tensor] | Tensor]) -> Tensor:
    """Norm of the Jacobian's centre plus that of its error; infinite where a segment has no matrix."""
    x = graph.values[graph.source]
    batch = len(x)
    outputs = graph.values[graph.last.value][0].numel()
    eye = torch.eye(outputs, dtype=x.dtype, device=x.device).expand(batch, -1, -1)
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    widths = {number: value[0].numel() for number, value in graph.values.items() if value.dim()}
    _pull(seen, graph.last, eye, x.new_zeros(batch), widths)
    for joint, slope in zip(reversed(graph.joints), reversed(slopes), strict=True):
        if joint.output not in seen:
            continue
        matrix, error = seen.pop(joint.output)
        if isinstance(slope, tuple):
            low, high = slope
            middle, half = (low + high) / 2, (high - low) / 2
            most = torch.maximum(low.abs(), high.abs()).amax(1)
            error = batch_norm_of(matrix * half[:, None]) + error * most
            matrix = matrix * middle[:, None]
        elif joint.entry.op not in ("add", "sub", "rsub", "cat", "stack"):
            error = (batch_norm_of(matrix) + error) * slope
            width = graph.values[joint.parts[0].value][0].numel()
            matrix = matrix.new_zeros((batch, outputs, width))
        if joint.gather == "sum":
            for part in joint.parts:
                _pull(seen, part, matrix, error, widths)
        elif len(joint.parts) > 1:
            return x.new_full((batch,), math.inf)
    if graph.source not in seen:
        return x.new_zeros(batch)
    matrix, error = seen[graph.source]
    return batch_norm_of(matrix) + error


def _pull(
    seen: dict[int, tuple[Tensor, Tensor]], segment: Segment, matrix: Tensor, error: Tensor, widths: dict[int, int]
) -> None:
    """Through a linear segment, added to what other branches brought to its base."""
    if segment.base == segment.value:
        made, grown = matrix * segment.factor, error * abs(segment.factor)
    elif segment.matrix is None:
        made = matrix.new_zeros((*matrix.shape[:2], widths[segment.base]))
        grown = (batch_norm_of(matrix) + error) * segment.norm
    else:
        made, grown = matrix @ segment.matrix, error * segment.norm
    if segment.base in seen:
        before = seen[segment.base]
        made, grown = before[0] + made, before[1] + grown
    seen[segment.base] = made, grown


__all__ = ["local_bounds"]
