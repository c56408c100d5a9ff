"""How many linear pieces a net of piecewise linear activations has along a line, or on a plane, of its inputs."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tightrope.errors import InputError, RecordError, TightropeError
from tightrope.instruments.kinks import ASKED, Local, local
from tightrope.isolation import force_eager, preserved, undisturbed

Numbers = NDArray[np.float64]

CHUNK = 512
"""Points that pass through the net at once."""
SPLIT = math.sqrt(2) - 1
"""Where an interval is looked at: a kink is seldom at an irrational part of it."""
EDGE = 1e-9
"""Side of the unit square below which an edge is taken for a corner, and a region for none."""
AFFINE = 1e-8
"""Relative distance from an affine function, in double precision, above which a piece is none."""
SAME = 1e-9
"""Relative difference of slopes below which two pieces are one."""


@dataclass(frozen=True, eq=False)
class Expressivity:
    """What `expressivity` counted.

    Attributes:
        regions: parts of the line or the plane on which no activation switches.
        pieces: parts of a line on which the outputs have one slope, neighbours with the same slope taken together;
            None for a plane.
        bound: no net with as many units in each call has more regions.
        units: kinks of each call of an activation, in order.
        covered: share of the line's length or the plane's area that the regions make up: 1 where none was missed.
        bend: largest relative distance of the net from the affine form of a region, at the region's ends.
        complete: whether `covered` is 1 and `bend` is 0 up to rounding.
        breaks: where regions end on a line, from 0 to 1; empty for a plane.
        slopes: derivative of the outputs along the line in each region, (regions, outputs); empty for a plane.
        polygons: corners of each region of a plane, in the coordinates of its two sides; empty for a line.
    """

    regions: int
    pieces: int | None
    bound: float
    units: tuple[int, ...]
    covered: float
    bend: float
    complete: bool
    breaks: tuple[float, ...] = field(default=(), repr=False)
    slopes: Tensor | None = field(default=None, repr=False)
    polygons: tuple[Numbers, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        where = "a line" if self.pieces is not None else "a plane"
        pieces = f", {self.pieces} linear pieces" if self.pieces is not None else ""
        units = " + ".join(map(str, self.units)) if len(self.units) <= 12 else f"{sum(self.units)} in {len(self.units)}"
        return "\n".join([
            f"{self.regions} regions along {where}{pieces}",
            f"  units        {units} kinks in all calls of activations",
            f"  bound        {self.bound:.4g} regions at most for any weights",
            f"  certificate  {self.covered:.10g} of {where} covered, at most {self.bend:.1g} from affine"
            + ("" if self.complete else ": not complete"),
        ])  # fmt: skip


def expressivity(model: nn.Module, corners: Tensor, *, limit: int = 100_000) -> Expressivity:
    """The linear regions of a net along a segment of its inputs, or on a parallelogram of them, every one.

    A net of piecewise linear activations is affine between its kinks. At a point inside a region the distance of each
    pre-activation from its kink and its derivative along the line say where that region ends; what is left of the line
    is searched in the same way until nothing is. On a plane each region is a polygon, and the search goes on across its
    edges. Lengths and areas that add up to the whole certify that no region was missed.

    Args:
        model: any module of one tensor, evaluated in evaluation mode and in double precision; nothing is changed.
        corners: the ends of a segment, shape (2, ...), or three corners of a parallelogram, (3, ...), the first of
            which has the two sides; each of the shape of one input.
        limit: regions at most.

    Raises:
        InputError: the corners have another shape, nothing has a kink, or there are more regions.
        RecordError: the model raised, or an operation has no forward derivative.

    References:
        Montufar, Pascanu, Cho, Bengio (2014), On the number of linear regions of deep neural networks, NeurIPS; Hanin,
        Rolnick (2019), Complexity of linear regions in deep networks, ICML; Zaslavsky (1975), Facing up to
        arrangements, Memoirs of the AMS 154, for the bound on a plane.
    """
    if not isinstance(corners, Tensor) or corners.dim() < 2 or len(corners) not in (2, 3):
        found = f"corners are {tuple(corners.shape) if isinstance(corners, Tensor) else type(corners).__name__}"
        raise InputError(ASKED, found, "Pass a tensor with the two ends of a segment, or three corners of a plane")
    if not isinstance(model, nn.Module):
        raise InputError(ASKED, f"the model is of type {type(model).__name__}", "Pass the model itself")
    with undisturbed(), preserved(model), torch.no_grad(), force_eager():
        net = copy.deepcopy(model).double().eval()
        search = _Search(net, corners.detach().double(), limit)
        try:
            return search.line() if len(corners) == 2 else search.plane()
        except TightropeError:
            raise
        except (RuntimeError, NotImplementedError, TypeError) as error:
            message = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
            raise RecordError(ASKED, message, "See the exception above for the model's own traceback") from error


class _Search:
    """The net on the segment or the parallelogram, in coordinates from 0 to 1."""

    def __init__(self, net: nn.Module, corners: Tensor, limit: int) -> None:
        self._net, self._start, self._sides, self._limit = net, corners[0], corners[1:] - corners[0], limit

    def _at(self, places: Numbers) -> Local:
        """Affine forms at places of shape (count, dimensions)."""
        parts = []
        for chunk in torch.as_tensor(places, device=self._start.device).split(CHUNK):
            points = self._start + torch.einsum("pd,d...->p...", chunk, self._sides)
            parts.append(local(self._net, points, self._sides))
        return Local(
            torch.cat([p.value for p in parts]), torch.cat([p.slopes for p in parts], 1),
            torch.cat([p.heights for p in parts]), torch.cat([p.tilts for p in parts], 1), parts[0].units,
        )  # fmt: skip

    def _refuse(self, count: int) -> None:
        if count > self._limit:
            raise InputError(ASKED, f"there are more than {self._limit} regions", "Raise limit, or shorten the segment")

    def line(self) -> Expressivity:
        """What is left between the regions that are known is searched from a point inside it."""
        open_, found = [(0.0, 1.0)], list[tuple[float, float, Tensor]]()
        bend, units = 0.0, tuple[int, ...]()
        while open_:
            low, high = np.array(open_).T
            middle = low + SPLIT * (high - low)
            form = self._at(middle[:, None])
            units = form.units
            left, right = _ends(form, middle, low, high)
            bend = max(bend, self._bend(form, middle[:, None], right[:, None]))
            open_ = []
            for i in range(len(middle)):
                found.append((float(left[i]), float(right[i]), form.slopes[0, i]))
                open_ += [(a, b) for a, b in ((low[i], left[i]), (right[i], high[i])) if b - a > EDGE]
            self._refuse(len(found) + len(open_))
        found = sorted(_merged(sorted(found, key=lambda part: part[0])), key=lambda part: part[0])
        covered = sum(b - a for a, b, _ in found)
        slopes = torch.stack([slope for _, _, slope in found])
        size = float(slopes.norm(dim=1).max())
        pieces = 1 + int(((slopes[1:] - slopes[:-1]).norm(dim=1) > SAME * size).sum()) if len(found) > 1 else 1
        breaks = tuple(a for a, _, _ in found[1:])
        bound = float(math.prod(n + 1 for n in units))
        regions = len(found)
        return Expressivity(
            regions, pieces, bound, units, covered, bend, covered > 1 - 1e-6 and bend < AFFINE, breaks, slopes
        )  # fmt: skip

    def plane(self) -> Expressivity:
        """From region to region across edges."""
        polygons: dict[bytes, Numbers] = {}
        seeds, bend, units = np.array([[SPLIT, 1 / math.pi]]), 0.0, tuple[int, ...]()
        while len(seeds):
            form = self._at(seeds)
            units = form.units
            keys = np.packbits((form.heights > 0).cpu().numpy(), axis=1)
            following = []
            for i, key in enumerate(map(bytes, keys)):
                if key in polygons:
                    continue
                heights, tilts = form.heights[i].cpu().numpy(), form.tilts[:, i].cpu().numpy().T
                polygon = _clipped(heights, tilts, seeds[i])
                if polygon is None:
                    continue
                polygons[key] = polygon
                following += _across(polygon)
                bend = max(bend, self._bend_of(form, i, seeds[i], polygon))
            self._refuse(len(polygons))
            seeds = np.array(following) if following else np.empty((0, 2))
        covered = sum(_area(p) for p in polygons.values())
        bound = float(math.prod(1 + n + n * (n - 1) // 2 for n in units))
        return Expressivity(
            len(polygons), None, bound, units, covered, bend, abs(covered - 1) < 1e-6 and bend < AFFINE,
            polygons=tuple(polygons.values()),
        )  # fmt: skip

    def _value(self, places: Numbers) -> Tensor:
        points = self._start + torch.einsum(
            "pd,d...->p...", torch.as_tensor(places, device=self._start.device), self._sides
        )
        value: Tensor = self._net(points)
        return value.reshape(len(value), -1)

    def _bend(self, form: Local, here: Numbers, there: Numbers) -> float:
        """Relative distance of the net from its affine forms at other places of the same regions."""
        move = torch.as_tensor(there - here, device=form.value.device)
        affine = form.value + torch.einsum("pd,dpo->po", move, form.slopes)
        worst = 0.0
        for part, told in zip(torch.as_tensor(there).split(CHUNK), affine.split(CHUNK), strict=True):
            worst = max(worst, float((self._value(part.numpy()) - told).abs().max()))
        return worst / max(float(form.value.abs().max()), float(form.slopes.abs().max()), 1e-300)

    def _bend_of(self, form: Local, i: int, here: Numbers, polygon: Numbers) -> float:
        one = Local(form.value[i : i + 1], form.slopes[:, i : i + 1], form.heights, form.tilts, form.units)
        return self._bend(one, here[None], polygon[:1])


def _ends(form: Local, middle: Numbers, low: Numbers, high: Numbers) -> tuple[Numbers, Numbers]:
    """Where the regions of the middles end, inside their intervals."""
    heights, tilts = form.heights, form.tilts[0]
    steps = torch.where(tilts != 0, -heights / torch.where(tilts != 0, tilts, 1.0), math.inf)
    after = torch.where(steps > 0, steps, math.inf).min(1).values.cpu().numpy()
    before = torch.where(steps < 0, steps, -math.inf).max(1).values.cpu().numpy()
    return np.maximum(middle + before, low), np.minimum(middle + after, high)


def _merged(parts: list[tuple[float, float, Tensor]]) -> list[tuple[float, float, Tensor]]:
    """Without the intervals of no length that rounding leaves."""
    return [part for part in parts if part[1] - part[0] > EDGE]


def _clipped(heights: Numbers, tilts: Numbers, here: Numbers) -> Numbers | None:
    """The part of the unit square where all heights keep their sign; None where rounding leaves nothing of it."""
    polygon = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    signs = np.where(heights > 0, 1.0, -1.0)
    offset = signs * (heights - tilts @ here)
    normals = signs[:, None] * tilts
    # a line that the square's corners are all on one side of cuts nothing
    cuts = np.flatnonzero((offset[:, None] + normals @ polygon.T).min(1) < 0)
    for j in cuts:
        level = polygon @ normals[j] + offset[j]
        if level.min() >= 0:
            continue
        made = []
        for a, b, at, bt in zip(polygon, np.roll(polygon, -1, 0), level, np.roll(level, -1), strict=True):
            if at >= 0:
                made.append(a)
            if (at > 0 > bt) or (at < 0 < bt):
                made.append(a + (b - a) * at / (at - bt))
        polygon = np.array(made)
        if len(polygon) < 3:
            return None
    return polygon


def _across(polygon: Numbers) -> list[Numbers]:
    """A point just beyond the middle of each edge inside the square."""
    found = []
    for a, b in zip(polygon, np.roll(polygon, -1, 0), strict=True):
        side = b - a
        length = float(np.hypot(*side))
        if length < EDGE:
            continue
        point = (a + b) / 2 + 1e-7 * min(length, 1.0) * np.array([side[1], -side[0]]) / length
        if 0 < point[0] < 1 and 0 < point[1] < 1:
            found.append(point)
    return found


def _area(polygon: Numbers) -> float:
    x, y = polygon.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


__all__ = ["Expressivity", "expressivity"]
