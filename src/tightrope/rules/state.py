"""The law of a tensor while it is being propagated: `Law`, resolved over sites and channels.

A state has the dimensions of one sample of its tensor. Each of its five fields broadcasts to that shape,
and a dimension of length 1 means that the law is the same all along it. Shape operations therefore act
on a state as they act on the tensor.

With the actual weights at hand the mean is a map over sites and channels and needs no `constant` and
`site` spread ("conditioned"). With the laws of the weights alone the mean is a number and the spread over
draws of the weights stands in `constant` and `site` ("ensemble"). The rules are the same for both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tightrope.law import COMPONENTS, Law
from tightrope.roles import Axes, Role
from tightrope.rules.amplitude import of_rows
from tightrope.rules.band import of_batch
from tightrope.rules.lags import CROSS_CHANNELS, Cross, autocovariance, blended, mean_factor, reach, trimmed
from tightrope.rules.shrinkage import population, shrunk

DTYPE = torch.float64
EVEN = 1e-6
"""Relative variation along a dimension that is rounding (of known tables in single precision) and no structure."""
TABLE = 1 << 14
"""Numbers from which on a law of drawn weights is not resolved over both sites and channels."""
MAP = 1024
"""Elements of a picture from which on its law is taken to be the same at all sites."""
COVARIANCE_CHANNELS = 640
"""Most channels for which covariances between channels are carried: three matrix products a layer."""


def zero() -> Tensor:
    """A law's component that is absent."""
    return torch.zeros((), dtype=DTYPE)


@dataclass(frozen=True)
class State:
    """Mean and variance components of a tensor, resolved over its sites and channels.

    Attributes:
        axes: roles and sizes of the real tensor's dimensions.
        mean: expectation over samples (and weights, where they are unknown) at each site and channel.
        constant, sample, site, residual: variance components as in `Law`, about that mean.
        width: relative variance of the second moment over draws of the weights (the band).
        latent: quadrature variable of which this tensor is an elementwise function, with `nodes`.
        nodes: this tensor's values at the quadrature nodes of the latent variable (last dimension: node).
        covariance: (channel, channel), over samples, where a sample is one row of few channels; its diagonal is
            `variance`. None: channels vary independently.
        amplitude: ln of a sample's amplitude at the nodes of `amplitude.ETA`, where a sample is one row; None: all
            alike.
        memory: correlation of that amplitude with the one before the operation that made this tensor.
        gain: of gradients and slopes, their energy at each amplitude over its mean.
        lags: autocorrelation of `residual` over two site dimensions, (channel or 1, lag, lag). None: sites vary
            independently. See `lags`.
        cross: covariances between the channels of an input of few channels, by lag. See `lags`.
    """

    axes: Axes
    mean: Tensor
    constant: Tensor
    sample: Tensor
    site: Tensor
    residual: Tensor
    width: float = 0.0
    latent: object | None = None
    nodes: Tensor | None = None
    covariance: Tensor | None = None
    amplitude: Tensor | None = None
    memory: float = 0.0
    gain: Tensor | None = None
    lags: Tensor | None = None
    cross: Cross | None = None

    @classmethod
    def of(
        cls,
        axes: Axes,
        mean: Tensor | float,
        *,
        constant: Tensor | float = 0.0,
        sample: Tensor | float = 0.0,
        site: Tensor | float = 0.0,
        residual: Tensor | float = 0.0,
        width: float = 0.0,
    ) -> State:
        """A state from numbers or tensors that broadcast to the state's shape."""
        rank = len(axes.dims)

        def full(value: Tensor | float) -> Tensor:
            tensor = torch.as_tensor(value, dtype=DTYPE)
            return tensor.reshape((1,) * (rank - tensor.ndim) + tuple(tensor.shape))

        return cls(axes, full(mean), full(constant), full(sample), full(site), full(residual), width)

    @classmethod
    def from_fields(cls, axes: Axes, fields: Iterable[Tensor], **rest: Any) -> State:
        """A state from its mean and its four components, in order."""
        mean, constant, sample, site, residual = fields
        return cls(axes, mean, constant, sample, site, residual, **rest)

    @classmethod
    def of_content(cls, axes: Axes, content: Tensor) -> State:
        """The state of a tensor whose content is known: its moments over the sample axes."""
        x = content.detach().to(device="cpu", dtype=DTYPE)
        layout = [axis for dim in axes.dims for axis in dim]
        x = x.reshape([axis.size for axis in layout] or [])
        over = [i for i, axis in enumerate(layout) if axis.role is Role.SAMPLE and axis.size > 1]
        sites = [i for i, axis in enumerate(layout) if axis.role is Role.SITE and axis.size > 1]
        shape = state_shape(axes)
        if not over:
            return cls.of(axes, x.reshape(shape))
        mean = x.mean(over, keepdim=True)
        spread = x - mean
        variance = spread.square().mean(over, keepdim=True)
        if not sites:
            rows = x.numel() // variance.numel()
            # Deviations from the rows' own mean sum to zero: two rows' covariance is -1 / rows of what one row holds.
            held = (variance * rows / (rows - 1)).reshape(shape)
            made = cls.of(axes, mean.reshape(shape), constant=-held / rows, sample=held)
            if len(axes.dims) != 2 or over != [0] or not 1 < variance.numel() <= COVARIANCE_CHANNELS:
                return made
            return replace(made, covariance=shrunk(spread.reshape(rows, -1)), amplitude=of_rows(x.reshape(rows, -1)))
        # Within a sample, sites share `sample`: the mean covariance of two different sites.
        if len(axes.dims) == 4 and over == [0] and sites == [2, 3] and math.prod(shape) > MAP:
            return _stationary(axes, x, len(x) - 1)
        n = 1
        for i in sites:
            n *= layout[i].size
        total = spread.mean(sites, keepdim=True).square().mean(over, keepdim=True)
        inner = variance.mean(sites, keepdim=True)
        shared = ((n * total - inner) / max(n - 1, 1)).clamp(min=0.0)
        share = torch.where(inner > 0, shared / inner, torch.zeros_like(inner)).clamp(max=1.0)
        mean, variance = population(mean, variance, math.prod(layout[i].size for i in over))
        shared = (share * variance).reshape(shape)
        return cls.of(axes, mean.reshape(shape), sample=shared, residual=variance.reshape(shape) - shared)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample, to which every field broadcasts."""
        return state_shape(self.axes)

    @property
    def variance(self) -> Tensor:
        """Variance about the mean at each site and channel."""
        return self.constant + self.sample + self.site + self.residual

    @property
    def second_moment(self) -> Tensor:
        """E[x^2] at each site and channel."""
        return self.mean.square() + self.variance

    @property
    def fits(self) -> bool:
        """Whether every field broadcasts to the shape of a sample."""
        shape = self.shape
        sizes = (tuple(field.shape)[-len(shape) :] if shape else () for field in self.fields)
        return all(a in (1, b) for size in sizes for a, b in zip(reversed(size), reversed(shape), strict=False))

    @property
    def exact(self) -> bool:
        """Whether the tensor is fully known: no variance at all."""
        return bool((self.variance == 0).all())

    @property
    def fields(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Mean and components, in order."""
        return self.mean, self.constant, self.sample, self.site, self.residual

    def map(self, function: object, axes: Axes | None = None, *, width: float | None = None) -> State:
        """The same transformation of every field (a view, a permutation, a selection)."""
        assert callable(function)
        mean, constant, sample, site, residual = (function(field) for field in self.fields)
        return State(axes or self.axes, mean, constant, sample, site, residual, self.width if width is None else width)

    def expand(self) -> State:
        """Every field at the full shape of a sample."""
        return self.map(lambda field: field.expand(self.shape))

    def scaled(self, factor: Tensor | float) -> State:
        """The state of the tensor times a known factor."""
        f = torch.as_tensor(factor, dtype=DTYPE)
        return replace(
            self,
            covariance=None if self.covariance is None else self.covariance * f.reshape(-1, 1) * f.reshape(1, -1),
            mean=self.mean * f,
            constant=self.constant * f.square(),
            sample=self.sample * f.square(),
            site=self.site * f.square(),
            residual=self.residual * f.square(),
            latent=None,
            nodes=None,
            cross=None,
        )

    def plus(self, other: State) -> State:
        """The state of the sum of two independent tensors of the same shape."""
        parts = {name: getattr(self, name) + getattr(other, name) for name in ("mean", *COMPONENTS)}
        sites = [d for d in self.dims(Role.SITE) if d not in self.dims(Role.CHANNEL)]
        for shared, own in (("sample", "residual"), ("constant", "site")):
            apart = _apart(getattr(self, shared), getattr(other, shared), sites)
            if apart is not None:
                parts[shared], parts[own] = parts[shared] - apart, parts[own] + apart
        mine, theirs = float(self.second_moment.mean()), float(other.second_moment.mean())
        share = mine / (mine + theirs) if mine + theirs > 0 else 0.5
        width = share**2 * self.width + (1 - share) ** 2 * other.width
        covariance = self.covariance if other.exact else None
        if self.covariance is not None and other.covariance is not None:
            covariance = self.covariance + other.covariance
        amplitude, gain = _shared(self.amplitude, other.amplitude, share), _shared(self.gain, other.gain, share)
        lags = blended([(state.residual, state.lags) for state in (self, other)])
        return replace(
            self, **parts, width=width, latent=None, nodes=None, covariance=covariance, amplitude=amplitude, gain=gain,
            lags=lags, cross=None,
        )  # fmt: skip

    def moved(self) -> State:
        """The ensemble form: what the mean's map spreads over channels and sites becomes variance."""
        channels, sites = self.dims(Role.CHANNEL), self.dims(Role.SITE)
        mean = self.mean
        over = sorted({*channels, *sites})
        flat = mean.mean(over, keepdim=True) if over else mean
        per_channel = mean.mean(sites, keepdim=True) if sites else mean
        constant = (per_channel - flat).square().mean(over, keepdim=True) if over else mean * 0
        site = (mean - per_channel).square().mean(over, keepdim=True) if over else mean * 0

        def average(field: Tensor) -> Tensor:
            return field.mean(over, keepdim=True) if over else field

        return State(
            self.axes, flat, average(self.constant) + constant, average(self.sample), average(self.site) + site,
            average(self.residual), self.width,
        )  # fmt: skip

    def dims(self, role: Role) -> list[int]:
        """Dimensions whose state is resolved over this role."""
        return [i for i, dim in enumerate(self.axes.dims) if any(a.role is role for a in dim)]

    def law(self) -> Law:
        """The law over all elements: what the mean spreads over channels and sites joins the components."""
        full = self.mean  # a mean over what is the same all along a dimension needs no copy of it
        overall = float(full.mean())
        sites = [d for d in self.dims(Role.SITE) if d not in self.dims(Role.CHANNEL)]
        per_channel = full.mean(sites, keepdim=True) if sites else full
        constant = float((per_channel - overall).square().mean())
        site = float((full - per_channel).square().mean())
        parts = {name: float(getattr(self, name).mean()) for name in COMPONENTS}
        found = [constant + parts["constant"], parts["sample"], site + parts["site"], parts["residual"]]
        factor, spread = of_batch(self, overall, sum(found))
        held = [max(part, 0.0) for part in found]
        # Positions that sum to zero have small negative covariances, which a variance component cannot show.
        keep = factor * max(sum(found), 0.0) / sum(held) if sum(held) > 0 else 0.0
        components = dict(zip(COMPONENTS, (part * keep for part in held), strict=True))
        return Law(overall * factor**0.5, **components, error=math.sqrt(self.width / 4 + spread))


def _apart(a: Tensor, b: Tensor, sites: list[int]) -> Tensor | None:
    """What two independent tensors share over their sites, and their sum no longer does.

    Each holds a draw of its own, with amplitudes sqrt(a_s) and sqrt(b_s). The sum's covariance between two sites,
    sqrt(a_s a_t) + sqrt(b_s b_t), is less than that of one shared draw unless both have one profile over the sites.
    The share that is kept leaves the variance of the sum over all sites as it is.
    """
    if not any(f.shape[d] > 1 for f in (a, b) for d in sites):
        return None
    if not (bool((a >= 0).all()) and bool((b >= 0).all()) and bool((a != 0).any()) and bool((b != 0).any())):
        return None
    a, b = torch.broadcast_tensors(a, b)
    together = (a + b).sqrt().sum(sites, keepdim=True).square()
    each = torch.stack([f.sqrt().sum(sites, keepdim=True).square() for f in (a, b)]).sum(0)
    pairs = together - (a + b).sum(sites, keepdim=True)
    lost = torch.where(pairs > 1e-9 * together, (together - each) / pairs, torch.zeros_like(pairs)).clamp(0, 1)
    return (a + b) * lost if bool((lost > 1e-6).any()) else None


def _shared(left: Tensor | None, right: Tensor | None, share: float) -> Tensor | None:
    """What two summands do with the sample's amplitude, by their share of the energy."""
    if left is None and right is None:
        return None
    like = left if left is not None else right
    assert like is not None
    neutral = torch.zeros_like(like)
    return share * (neutral if left is None else left) + (1 - share) * (neutral if right is None else right)


def _stationary(axes: Axes, x: Tensor, degrees: int) -> State:
    """The state of pictures, whose law is taken to be the same at all sites: mean and components of each channel,
    and the autocorrelation of what a sample's sites do not share.

    Args:
        axes: of the tensor.
        x: (sample, channel, height, width).
        degrees: of freedom of the samples' means.
    """
    sites = x.shape[2] * x.shape[3]
    mean = x.mean((0, 2, 3), keepdim=True)
    deviations = x - mean
    levels = deviations.mean((2, 3))
    inner = deviations - levels[:, :, None, None]
    own = inner.square().mean((0, 2, 3))
    products = autocovariance(inner)
    channels, (rows, columns) = range(x.shape[1]), reach(products)
    centre = products[channels, channels, rows, columns].clamp(min=1e-300)
    lags = trimmed(products[channels, channels] / centre[:, None, None])
    if lags is not None and float(_near(lags)) < (1 + 4 * math.sqrt(2 / len(lags))) / (len(x) * sites):
        lags = None  # as correlated as independent sites are by chance
    # Means of samples wander by what their sites do not share, too.
    alike = 1.0 if lags is None else mean_factor(lags, x.shape[2:])
    chance = own * alike / sites
    between = levels.T @ levels / degrees
    variance = between.diagonal()
    keep = torch.where(variance > 0, (variance - chance).clamp(min=0) / variance.clamp(min=1e-300), variance * 0)
    if float(variance.sum()) < float(chance.sum()) * (1 + 2 * math.sqrt(2 / max(degrees, 1))):
        keep = keep * 0
    shared, residual = variance * keep, own
    made = State.of(  # deviations from a channel's own mean sum to zero
        axes, mean, constant=(-shared / max(degrees, 1) - chance / len(x)).reshape(1, -1, 1, 1),
        sample=shared.reshape(1, -1, 1, 1), residual=residual.reshape(1, -1, 1, 1),
    )  # fmt: skip
    few = 1 < x.shape[1] <= CROSS_CHANNELS or (x.shape[1] == 1 and lags is not None)
    root = keep.sqrt()
    cross = Cross(between * root[:, None] * root, products) if few else None
    return replace(made, lags=lags, cross=cross)


def _near(lags: Tensor) -> Tensor:
    """Mean square of the correlation of direct neighbours."""
    rows, columns = reach(lags)
    pairs = [lags[:, rows + 1, columns]] if rows else []
    pairs += [lags[:, rows, columns + 1]] if columns else []
    return torch.cat(pairs).square().mean()


def evened(state: State) -> State:
    """A state of drawn weights whose fields have length 1 along every dimension on which they do not vary.

    Variances that known tables (of positions) resolve over many sites and channels are averaged over the channels,
    which drawn weights mix alike.
    """
    if state.latent is not None or state.covariance is not None:
        return state
    coarse = [d for d in state.dims(Role.CHANNEL) if d not in state.dims(Role.SITE)]

    def even(field: Tensor) -> Tensor:
        if field.numel() > TABLE and field is not state.mean and coarse:
            field = field.mean(coarse, keepdim=True)
        for dim, size in enumerate(field.shape):
            if size > 1:
                low, high = field.aminmax(dim=dim, keepdim=True)
                if bool((high - low <= EVEN * torch.maximum(high.abs(), low.abs())).all()):
                    field = (low + high) / 2
        return field

    return replace(state.map(even), amplitude=state.amplitude, memory=state.memory, gain=state.gain, lags=state.lags)


def state_shape(axes: Axes) -> tuple[int, ...]:
    """Shape of one sample of a tensor with these axes: sample axes have length 1."""
    sizes = []
    for dim in axes.dims:
        size = 1
        for axis in dim:
            size *= 1 if axis.role is Role.SAMPLE else axis.size
        sizes.append(size)
    return tuple(sizes)
