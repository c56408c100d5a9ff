"""Linear maps over windows: every result is a weighted sum of the taps of its window, and of its group's channels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tightrope.roles import Axes
from tightrope.rules.lags import Cross, by_channel, filtered, filtered_alone, reach, thinned, trimmed
from tightrope.rules.linear import kurtosis
from tightrope.rules.sites import collapsed
from tightrope.rules.state import DTYPE, State, state_shape
from tightrope.rules.taps import Classes, average, joint, per_class, resolve

MAP_LIMIT = 40_000
"""Largest number of elements for which a law is resolved over the sites of a feature map."""
EXACT = 1 << 17
"""Products of weights up to which the correlation of an input's channels and taps is followed exactly."""
NEGLIGIBLE = 1e-6
"""Share of E[x^2] below which a component is dropped: less than the error of any rule."""


@dataclass(frozen=True)
class Window:
    """A linear map over windows, with weights (group, out, in, *taps).

    Attributes:
        weight: mean and variance of each weight, all with the layout above.
        forward: classes of the results, one per site dimension.
        links: number of taps from each input to each result, (result, input), one per site dimension.
        sites: number of results along each site dimension.
        run: the map itself with given weights, on an input that is resolved over its sites.
        stride, dilation: of the window.
        spreading: whether strides spread the input instead of thinning the output.
    """

    mean: Tensor
    variance: Tensor | None
    forward: tuple[Classes, ...]
    links: tuple[Tensor, ...]
    sites: tuple[int, ...]
    run: Any
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    spreading: bool

    @property
    def known(self) -> bool:
        """Whether the weights are numbers, not laws."""
        return self.variance is None


def windowed(x: State, window: Window, axes: Axes, *, resolved: bool) -> State:
    """The law of a linear map over windows.

    Args:
        x: law of its input, channels in the dimension before the sites.
        window: the map.
        axes: axes of the result.
        resolved: whether a map over sites is wanted where one is affordable.
    """
    rank = len(window.sites)
    channels = window.mean.shape[0] * window.mean.shape[1] if window.known else 1
    size = channels * math.prod(window.sites)
    fits = resolved and size <= MAP_LIMIT
    sites = list(range(x.mean.ndim - rank, x.mean.ndim))
    full = any(f.shape[d] > 1 for f in x.fields for d in sites)
    if not window.known:
        x = _over_channels(x, rank)
    if full and not (fits and x.mean.expand(x.shape).numel() <= MAP_LIMIT):
        x, full = collapsed(x, sites), False
    source = _Fields(x, rank, window)
    made = _known(source, window, full, fits) if window.known else _random(source, window, full, fits)
    shape = state_shape(axes)
    out = State.from_fields(axes, (f.reshape(_fit(f, shape)) for f in made), width=x.width + source.spread())
    if rank != 2 or not window.known:
        return out
    few = source.groups == 1 and window.mean[0].numel() * source.inputs <= EXACT
    if x.cross is not None and few and not window.spreading:
        return _filtered(x.cross, out, window)
    if (
        source.inputs == 1
        and math.prod(window.mean.shape[3:]) > 1
        and not (window.spreading and max(window.stride) > 1)
    ):
        return _alone(x.lags, out, window)
    if x.lags is None or x.residual.shape[0] != 1:
        return out
    variance = by_channel(x.residual).reshape(-1).expand(source.groups * source.inputs)
    variance = variance.reshape(source.groups, source.inputs)
    return replace(out, lags=thinned(variance, x.lags, window.mean, window.stride, window.spreading))


def _filtered(cross: Cross, out: State, window: Window) -> State:
    """With correlated taps and channels: variances as they are in the interior, the border as for independent ones."""
    weight = window.mean[0]
    shared, table = filtered(cross, weight, window.stride, window.dilation)
    rows, columns = reach(table)
    residual = table[:, rows, columns].clamp(min=1e-300)
    plain = torch.einsum("oit,i->o", weight.square().flatten(2), _own(cross.residual))
    plain_shared = torch.einsum("oi,i->o", weight.flatten(2).sum(-1).square(), cross.shared.diagonal())

    def factor(exact: Tensor, independent: Tensor) -> Tensor:
        ratio = torch.where(independent > 0, exact.clamp(min=0) / independent.clamp(min=1e-300), exact * 0)
        return ratio.reshape(1, -1, 1, 1)

    return replace(
        out, residual=out.residual * factor(residual, plain), sample=out.sample * factor(shared, plain_shared),
        lags=trimmed((table / residual[:, None, None]).clamp(-1, 1)),
    )  # fmt: skip


def _alone(lags: Tensor | None, out: State, window: Window) -> State:
    """The same where each result reads one channel: its few weights do not average out, and overlapping windows make
    neighbours alike whatever the input.
    """
    outputs = window.mean.shape[0] * window.mean.shape[1]
    weight = window.mean.reshape(outputs, *window.mean.shape[3:])
    held = weight.new_ones(1, 1, 1) if lags is None else lags
    held = held if len(held) == 1 else held.repeat_interleave(window.mean.shape[1], 0)
    table = filtered_alone(held, weight, window.stride, window.dilation)
    rows, columns = reach(table)
    own = table[:, rows, columns].clamp(min=1e-300)
    factor = own / weight.square().flatten(1).sum(-1).clamp(min=1e-300)
    return replace(
        out, residual=out.residual * factor.reshape(-1, 1, 1), lags=trimmed((table / own[:, None, None]).clamp(-1, 1))
    )


def _own(residual: Tensor) -> Tensor:
    """Variance of each channel from a table of covariances."""
    rows, columns = reach(residual)
    return residual[:, :, rows, columns].diagonal()


def _fit(field: Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Drop the lead dimension again where the tensor has none."""
    return tuple(field.shape[-len(shape) :]) if len(shape) < field.ndim else tuple(field.shape)


def _over_channels(x: State, rank: int) -> State:
    """With random weights only averages over channels count; the means' spread is `constant`."""
    channel = x.mean.ndim - rank - 1
    mean = x.mean.mean(channel, keepdim=True)
    spread = (x.mean - mean).square().mean(channel, keepdim=True)
    flat = x.map(lambda f: f.mean(channel, keepdim=True))
    return replace(flat, constant=flat.constant + spread)


class _Fields:
    """The input's fields as (lead, group, channel, *sites)."""

    def __init__(self, x: State, rank: int, window: Window) -> None:
        self.groups, self.inputs = window.mean.shape[0], window.mean.shape[2]
        self.rank, self.x = rank, x
        least = NEGLIGIBLE * float(x.second_moment.mean())
        fields = [f if i < 2 or float(f.abs().max()) > least else f[:1] * 0 for i, f in enumerate(x.fields)]
        self.mean, self.constant, self.sample, self.site, self.residual = (self._split(f, window.known) for f in fields)

    def _split(self, field: Tensor, channels: bool) -> Tensor:
        lead, sites = field.shape[: -self.rank - 1], field.shape[-self.rank :]
        count = self.groups * self.inputs if channels else 1
        field = field.expand(*field.shape[: -self.rank - 1], count, *sites)
        return field.reshape(math.prod(lead), self.groups if channels else 1, self.inputs if channels else 1, *sites)

    def spread(self) -> float:
        """Relative variance of the result's second moment over draws of the weights."""
        return max(float(kurtosis(self.x)) - 1, 0.0) / (self.inputs * 1.0)


def _known(x: _Fields, window: Window, full: bool, fits: bool) -> list[Tensor]:
    """Mean, constant, sample, site, residual for weights that are numbers."""
    square = window.mean.square()
    mean = _map(x.mean, window.mean, window) if full else _reduce(x.mean, window.mean, window)
    site = _map(x.site, square, window) if full else _reduce(x.site, square, window)
    residual = _map(x.residual, square, window) if full else _reduce(x.residual, square, window)
    constant, at_sites = _shared(x.constant, window, full or fits)
    sample, varied = _shared(x.sample, window, full or fits)
    shared = [constant, sample, at_sites, varied]
    own = [mean, site, residual]
    if full or fits:
        shared = [resolve(part, window.forward) for part in shared]
    if fits and not full:
        own = [resolve(part, window.forward) for part in own]
    parts = [own[0], shared[0], shared[1], own[1] + shared[2], own[2] + shared[3]]
    return [_flat(part) for part in parts] if full or fits else _averaged(parts, window)


def _flat(part: Tensor) -> Tensor:
    """(lead, group, out, *sites) to (lead, channel, *sites)."""
    return part.reshape(part.shape[0], -1, *part.shape[3:])


def _averaged(parts: list[Tensor], window: Window) -> list[Tensor]:
    """Without a map the mean's spread over classes counts as `site`."""
    flat = [average(part.expand(*part.shape[:3], *_classes(window)), window.forward) for part in parts]
    spread = average((parts[0] - flat[0].reshape(*flat[0].shape, *[1] * len(window.sites))).square(), window.forward)
    pair = spread / max(math.prod(window.sites) - 1, 1)  # deviations from their average sum to zero
    flat[1], flat[3] = flat[1] - pair, flat[3] + spread + pair
    return [f.reshape(f.shape[0], -1, *[1] * len(window.sites)) for f in flat]


def _classes(window: Window) -> tuple[int, ...]:
    return tuple(len(dim.share) for dim in window.forward)


def _reduce(field: Tensor, weight: Tensor, window: Window) -> Tensor:
    """Sum over channels and taps of an input that is the same at all sites: one value a class."""
    if not bool((field != 0).any()):
        return field.new_zeros(()).expand(1, *weight.shape[:2], *_classes(window))
    flat = field.reshape(field.shape[:3])
    taps = torch.einsum("lgi,goit->lgot", flat, weight.flatten(3))
    return per_class(taps.reshape(*taps.shape[:3], *weight.shape[3:]), window.forward)


def _map(field: Tensor, weight: Tensor, window: Window) -> Tensor:
    """The same for an input that is resolved over its sites: the operation itself."""
    zero = field.new_zeros((1, *weight.shape[:2], *[1] * len(window.sites)))
    if not bool((field != 0).any()):
        return zero
    sites = tuple(s for s in field.shape[3:])
    if all(s == 1 for s in sites):
        return resolve(_reduce(field, weight, window), window.forward)
    image = field.reshape(field.shape[0], -1, *sites).float()
    made: Tensor = window.run(image, weight.float()).to(DTYPE)
    return made.reshape(made.shape[0], *weight.shape[:2], *made.shape[2:])


def _shared(field: Tensor, window: Window, resolved: bool) -> tuple[Tensor, Tensor]:
    """What all sites share adds up over taps before it is squared: (still shared, varying from site to site)."""
    ones = [1] * len(window.sites)
    zero = field.new_zeros((1, *window.mean.shape[:2], *ones))
    if not bool((field != 0).any()):
        return zero, zero
    flat = field.flatten(3).mean(-1)
    taps, share = joint(window.forward)
    sums = window.mean.flatten(3) @ taps
    common = torch.einsum("lgi,goi->lgo", flat, (sums @ share).square())
    total = torch.einsum("lgi,goi->lgo", flat, sums.square() @ share)
    if not resolved or len(share) == 1:
        common, total = (f.reshape(*f.shape, *ones) for f in (common, total))
        return common, total - common
    # Each class has its own amplitude; the share that is common to all sites is taken as the same everywhere.
    kept = torch.where(total != 0, common / total, torch.zeros_like(total)).clamp(0, 1)
    everywhere = torch.einsum("lgi,goit->lgot", flat, sums.square())
    everywhere = everywhere.reshape(*common.shape, *(len(dim.share) for dim in window.forward))
    kept = kept.reshape(*kept.shape, *ones)
    return everywhere * kept, everywhere * (1 - kept)


def _random(x: _Fields, window: Window, full: bool, fits: bool) -> list[Tensor]:
    """Mean and components for weights that are known by their law: E[z z'] = (taps inside) E[w^2] E[x x']."""
    assert window.variance is not None
    mean_w = float(window.mean.mean())
    variance_w = float(window.variance.mean()) + float(window.mean.var(unbiased=False))
    inputs = window.mean.shape[2]
    ones = torch.ones((1, 1, 1, *window.mean.shape[3:]), dtype=DTYPE)

    def taps(field: Tensor) -> Tensor:
        if full:
            return resolve(_reduce(field, ones, window), window.forward) if field.numel() == 1 else _box(field, window)
        return _reduce(field, ones, window)

    moment = x.mean.square() + x.constant
    gain = inputs * (variance_w + mean_w**2)
    mean = inputs * mean_w * taps(x.mean)
    constant = inputs * variance_w * taps(moment) + inputs * mean_w**2 * taps(x.constant)
    parts = [mean, constant, gain * taps(x.sample), gain * taps(x.site), gain * taps(x.residual)]
    if full or fits:
        return [_flat(part if full else resolve(part, window.forward)) for part in parts]
    return _averaged(parts, window)


def _box(field: Tensor, window: Window) -> Tensor:
    """Number of taps from each input to each result, one dimension at a time."""
    for place, link in enumerate(window.links, start=3):
        wide = field.expand(*field.shape[:place], link.shape[1], *field.shape[place + 1 :])
        field = torch.movedim(torch.movedim(wide, place, -1) @ link.T, -1, place)
    return field
