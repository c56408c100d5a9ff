"""Expectations of functions of Gaussian variables by quadrature, for whole maps of laws at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from tightrope.law import COMPONENTS
from tightrope.roles import Role
from tightrope.rules.amplitude import CROWD, OMEGA, moved
from tightrope.rules.chart import Chart, chart
from tightrope.rules.lags import aligned, by_channel, reach, white
from tightrope.rules.positive import quantiles
from tightrope.rules.state import COVARIANCE_CHANNELS, DTYPE, State

SPAN = 8.5
"""Half-width of the quadrature in standard deviations; the Gaussian mass outside is 2e-17."""
PIECE_NODES = 32
"""Gauss-Legendre nodes on each piece between kinks: 1e-9 on a whole Gaussian, 1e-12 on half of one."""
HERMITE = 24
"""Terms of the Hermite series; what they leave out of the variance is given to the next power."""
MANY, COARSE_SPAN, COARSE_NODES = 1 << 13, 6.0, 28
"""Elements of a map from which on fewer nodes serve each: 2e-9 of the mass outside, 1e-7 on smooth functions."""
LARGE, FEW = 1 << 17, 3
"""Values at nodes from which on the series stops after a few terms; the rest of the variance keeps its place."""
PAIR_HERMITE = 8
"""Terms of the series for pairs of channels, whose correlation is rarely near 1."""
NEGLIGIBLE = 1e-8
"""Correlation that no result shows."""
LEAST_WITHIN = 0.02
"""Smallest share of a channel's variance that is left when its sample's amplitude is known."""
COUNTER = itertools.count()


@lru_cache(maxsize=8)
def legendre(nodes: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on [-1, 1]."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    return torch.as_tensor(x, dtype=DTYPE), torch.as_tensor(w, dtype=DTYPE)


@dataclass(frozen=True)
class Latent:
    """A Gaussian variable z = mean + std * xi and the nodes on which functions of it are evaluated.

    Attributes:
        number: tells latent variables apart.
        xi: standard normal nodes, last dimension; broadcasts against the law's shape.
        weights: quadrature weights, of the same shape, summing to 1.
        base: the law of z.
        scale: amplitude of the sample at each node, node by node of `amplitude.ETA`; None for one amplitude.
        chart: the points that stand for the elements of the law; None where each has nodes of its own.
        positive: the variable is a Gamma one, a function of the Gaussian xi.
    """

    number: int
    xi: Tensor
    weights: Tensor
    base: State = field(repr=False)
    scale: Tensor | None = None
    chart: Chart | None = field(default=None, repr=False)
    positive: bool = False

    @cached_property
    def z(self) -> Tensor:
        """The variable's own values at the nodes, for each element of the law or each point of its chart."""
        mean, std = centre(self.base) if self.chart is None else (self.chart.mean, self.chart.std)
        plain = quantiles(mean, std, self.xi) if self.positive else mean.unsqueeze(-1) + std.unsqueeze(-1) * self.xi
        return plain if self.scale is None else plain * self.scale

    def expect(self, values: Tensor) -> Tensor:
        """E of a function given by its values at the nodes, for each element of the law."""
        return self._filled(self.weighted(values))

    def weighted(self, values: Tensor) -> Tensor:
        """E of a function, for each set of nodes: an element of the law, or a point of its chart."""
        return (values * self.weights).sum(-1)

    def _filled(self, values: Tensor) -> Tensor:
        """What is known at the chart's points, for each element of the law."""
        return values if self.chart is None else self.chart.fill(values)

    def state(self, values: Tensor) -> State:
        """The law of a function given by its values at the nodes.

        The covariance of f(z) and f(z') with correlation rho is sum_j h_j^2 rho^j over the Hermite
        coefficients h_j = E[f(mean + std xi) He_j(xi)] / sqrt(j!).
        """
        inner = self.weighted(values)
        spread = self.weighted((values - inner.unsqueeze(-1)).square())
        mean, total = self._filled(torch.stack([inner, spread], -1)).unbind(-1)
        total = total.clamp(min=0)
        shared = levels(self.base)
        variance = shared[-1]
        if all(bool((level == 0).all()) for level in shared[:-1]):
            parts = [torch.zeros_like(total)] * 3
        else:
            terms = _terms(shared, HERMITE if values.numel() <= LARGE else FEW)
            power = self._filled(self._series(values, terms))
            powers = power.unbind(-1)
            rest = (total - power.sum(-1)).clamp(min=0)
            parts = []
            for level in shared[:-1]:
                rho = torch.where(variance > 0, level / variance.clamp(min=1e-300), torch.zeros_like(level)).clamp(
                    -1, 1
                )
                series = rest * rho if bool(rho.any()) else torch.zeros_like(total)
                for strength in reversed(powers if bool(rho.any()) else ()):
                    series = (series + strength) * rho
                parts.append(torch.minimum(series, total))
        made = from_levels(self.base, mean, (*parts, total))
        made = replace(made, covariance=self._covariance(values, total), lags=self._lags(values, made))
        return self._by_amplitude(values, made)

    def _lags(self, values: Tensor, made: State) -> Tensor | None:
        """Autocorrelation over sites of the function's residual, by the same series."""
        base = self.base
        if base.lags is None:
            return None
        variance, shared, residual, made_residual = (
            by_channel(field) for field in (base.variance, levels(base)[2], base.residual, made.residual)
        )
        power = by_channel(torch.movedim(self._filled(self._series(values, PAIR_HERMITE)), -1, 0))
        if len({len(x) for x in (variance, shared, residual, made_residual, base.lags, power[0])} - {1}) > 1:
            return None
        safe = variance.clamp(min=1e-300)
        near, far = ((shared + residual * base.lags) / safe).clamp(-1, 1), (shared / safe).clamp(-1, 1)
        covariance, first, second = torch.zeros_like(near), near, far
        for strength in power:
            covariance = covariance + strength * (first - second)
            first, second = first * near, second * far
        found = (covariance / made_residual.clamp(min=1e-300)).clamp(-1, 1)
        rows, columns = reach(found)
        found[:, rows, columns] = 1.0
        return found

    def _covariance(self, values: Tensor, total: Tensor) -> Tensor | None:
        """Covariance of the function's values in different channels: that of their means over the samples'
        amplitudes, and at one amplitude the Hermite series of their correlation.
        """
        base = self.base
        if base.covariance is None or total.numel() != base.covariance.shape[0]:
            return None
        mean, std = (edge.expand(base.shape).reshape(-1) for edge in centre(base))
        within = base.covariance
        if self.scale is not None and base.amplitude is not None:
            outer = base.mean.expand(base.shape).reshape(-1)
            energy = (OMEGA * torch.exp(2 * base.amplitude)).sum()
            within = (within + outer[:, None] * outer[None]) / energy - mean[:, None] * mean[None]
        std = std.clamp(min=1e-300)
        rho = (within / (std[:, None] * std[None])).clamp(-1, 1)
        found, power = torch.zeros_like(rho), rho
        coefficients = self._filled(torch.stack(list(self._coefficients(values, PAIR_HERMITE)), -1))
        for flat in coefficients.reshape(-1, PAIR_HERMITE).unbind(-1):
            found = found + flat[:, None] * flat[None] * power
            power = power * rho
        if self.scale is not None:
            first, _ = self.by_node(values)
            first = first.reshape(-1, len(OMEGA))
            first = first - (first * OMEGA).sum(-1, keepdim=True)
            found = found + (first * OMEGA) @ first.T
        found.diagonal().copy_(total.reshape(-1))
        return found

    def by_node(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """E[f] and E[f^2] of each element at each amplitude (last dimension)."""
        shape = (len(OMEGA), values.shape[-1] // len(OMEGA))
        x, w = values.unflatten(-1, shape), self.weights.unflatten(-1, shape)
        w = w / w.sum(-1, keepdim=True)
        return self._filled((x * w).sum(-1)), self._filled((x.square() * w).sum(-1))

    def _by_amplitude(self, values: Tensor, made: State) -> State:
        """The amplitude of a sample behind the function, and how the function's energy depends on it."""
        if made.axes.count(Role.SITE) > 1 or made.exact:
            return made
        square = values.square()
        if self.scale is None:
            second, fourth = (self.expect(x).unsqueeze(-1).expand(*made.shape, len(OMEGA)) for x in (square, square**2))
        else:
            _, second = self.by_node(values)
            _, fourth = self.by_node(square)
        energy = second.reshape(-1, len(OMEGA)).mean(0)
        wobble = (fourth - second.square()).reshape(-1, len(OMEGA)).mean(0)
        count, mean = made.mean.expand(made.shape).numel(), float((energy * OMEGA).sum())
        if count < CROWD or not bool((energy > 0).all()):
            return made
        # Relative to a node's own energy: the loudest few would otherwise lend all others their noise.
        fresh = float((OMEGA * wobble / energy.square()).sum()) / (4 * count)
        level, memory = moved(energy, max(fresh, 0.0))
        return replace(made, amplitude=level, memory=memory, gain=None if self.scale is None else energy / mean)

    def _series(self, values: Tensor, terms: int) -> Tensor:
        """h_j^2 for j = 1 ... terms."""
        return torch.stack([h.square() for h in self._coefficients(values, terms)], -1)

    def _coefficients(self, values: Tensor, terms: int) -> Iterator[Tensor]:
        """h_j for j = 1 ... terms."""
        previous, current = torch.ones_like(self.xi), self.xi
        for j in range(1, terms + 1):
            yield self.weighted(values * current)
            previous, current = current, (self.xi * current - math.sqrt(j) * previous) / math.sqrt(j + 1)


def centre(base: State) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a variable at amplitude 1 of its sample."""
    mean, variance = torch.broadcast_tensors(base.mean, base.variance.clamp(min=0))
    if base.amplitude is None:
        return mean, variance.sqrt()
    loud = torch.exp(base.amplitude)
    inner = mean / (OMEGA * loud).sum()
    energy = (OMEGA * loud.square()).sum()
    within = (variance + mean.square()) / energy - inner.square()
    return inner, torch.maximum(within, LEAST_WITHIN * variance / energy).sqrt()


def latent(base: State, kinks: Sequence[float] = (), *, charted: bool = False, positive: bool = False) -> Latent:
    """Quadrature nodes for functions of a variable with this law, split at the function's kinks.

    Args:
        base: the law.
        kinks: where the function or its derivative jumps.
        charted: the function is the same for all elements, so that a chart may stand for them.
        positive: the variable is never negative; where its mean is positive it is taken for a Gamma variable.
    """
    mean, std = centre(base)
    positive = positive and bool((mean > 0).all())
    kinks = () if positive else kinks
    points = chart(mean, std) if charted else None
    if points is not None:
        mean, std = points.mean, points.std
    if base.amplitude is None:
        xi, weight = split_nodes(mean, std, kinks)
        return Latent(next(COUNTER), xi, weight, base, chart=points, positive=positive)
    parts = [split_nodes(mean, std, [kink / float(loud) for kink in kinks]) for loud in torch.exp(base.amplitude)]
    xi = torch.cat([xi for xi, _ in parts], -1)
    weight = torch.cat([weight * share for (_, weight), share in zip(parts, OMEGA, strict=True)], -1)
    scale = torch.exp(base.amplitude).repeat_interleave(xi.shape[-1] // len(OMEGA))
    return Latent(next(COUNTER), xi, weight, base, scale, points, positive)


def split_nodes(mean: Tensor, std: Tensor, kinks: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Standard normal nodes and weights, split where mean + std xi passes a kink."""
    safe = std.clamp(min=1e-300)
    many = mean.numel() > MANY
    span, count = (COARSE_SPAN, COARSE_NODES // 2) if many else (SPAN, PIECE_NODES)
    edges = [torch.full_like(mean, -span)]
    edges += [((kink - mean) / safe).clamp(-span, span) for kink in sorted(kinks)]
    edges.append(torch.full_like(mean, span))
    x, w = legendre(count if kinks else 2 * count)
    if not kinks:
        xi = span * x
        weight = w * torch.exp(-xi.square() / 2)
        lead = (1,) * mean.ndim
        return xi.reshape(*lead, -1), (weight / weight.sum()).reshape(*lead, -1)
    nodes, weights = [], []
    for low, high in itertools.pairwise(edges):
        half, middle = ((high - low) / 2).unsqueeze(-1), ((high + low) / 2).unsqueeze(-1)
        xi = middle + half * x
        nodes.append(xi)
        weights.append(half * w * torch.exp(-xi.square() / 2))
    xi, weight = torch.cat(nodes, -1), torch.cat(weights, -1)
    return xi, weight / weight.sum(-1, keepdim=True)


def _terms(shared: Sequence[Tensor], most: int) -> int:
    """Terms of a series in the largest correlation after which the next power is negligible: no more than `most`."""
    safe = shared[-1].clamp(min=1e-300)
    largest = max(float((level / safe).abs().max()) for level in shared[:-1])
    return most if largest >= 1 else min(most, 1 + math.ceil(math.log(NEGLIGIBLE) / math.log(max(largest, NEGLIGIBLE))))


def levels(state: State) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Covariance of two elements of one channel: of different samples and sites, of different samples at
    the same site, of the same sample at different sites, of the same element.
    """
    a = state.constant
    return a, a + state.site, a + state.sample, state.variance


def from_levels(like: State, mean: Tensor, found: tuple[Tensor, ...]) -> State:
    """The inverse of `levels`."""
    a, site, sample, total = found
    site, sample = site - a, (sample - a).clamp(min=0)
    residual = (total - a - site - sample).clamp(min=0)
    return State(like.axes, mean, a, sample, site, residual, like.width)


def product(left: State, right: State) -> State:
    """The law of the elementwise product of two independent tensors."""
    mean = left.mean * right.mean
    both = mean.square()
    found = []
    for a, b in zip(levels(left), levels(right), strict=True):
        found.append((left.mean.square() + a) * (right.mean.square() + b) - both)
    made = from_levels(left if len(left.axes.dims) >= len(right.axes.dims) else right, mean, tuple(found))
    made = _turning(left, right, _turning(right, left, made))
    made = State(
        made.axes, *made.fields, width=left.width + right.width, gain=right.gain if left.gain is None else left.gain,
        lags=_product_lags(left, right, made), covariance=_product_covariance(left, right, made),
    )  # fmt: skip
    if left.gain is None or right.gain is None:
        return made
    # Both follow the amplitude of their sample, so that loud samples count more than the product of the means says.
    together = float((OMEGA * left.gain * right.gain).sum())
    extra = (together - 1) * made.second_moment
    covariance = made.covariance
    if covariance is not None:
        mean = made.mean.expand(made.shape).reshape(-1)
        covariance = covariance + (together - 1) * (covariance + mean[:, None] * mean[None])
        covariance.diagonal().copy_((made.variance + extra).expand(made.shape).reshape(-1))
    return replace(
        made, residual=(made.residual + extra).clamp(min=0), gain=left.gain * right.gain / together,
        covariance=covariance,
    )  # fmt: skip


def _turning(known: State, drawn: State, made: State) -> State:
    """A product whose factor's mean changes its sign between sites shares less over them than its energy says.

    Two sites share m m' sqrt(v v') of a component v of the other factor. Where m turns, part of it cancels: that share
    of m^2 v differs between sites, so that sums over sites keep their variance.
    """
    sites = [d for d in made.dims(Role.SITE) if d not in made.dims(Role.CHANNEL)]
    lead = len(made.axes.dims) - len(known.axes.dims)
    mean = known.mean.reshape((1,) * lead + tuple(known.mean.shape))
    if not any(mean.shape[d] > 1 for d in sites) or not bool((mean < 0).any()) or not bool((mean > 0).any()):
        return made
    fields = {name: getattr(made, name) for name in COMPONENTS}
    for shared, own in (("sample", "residual"), ("constant", "site")):
        component = getattr(drawn, shared).clamp(min=0)
        if not bool((component > 0).any()):
            continue
        parts = mean * component.sqrt()
        energy = parts.square()
        alone = energy.sum(sites, keepdim=True)
        repeats = math.prod(made.shape[d] / parts.shape[d] for d in sites)
        upright = repeats * parts.abs().sum(sites, keepdim=True).square() - alone
        lost = 1 - (repeats * parts.sum(sites, keepdim=True).square() - alone) / upright.clamp(min=1e-300)
        apart = energy * torch.where(upright > 1e-9 * alone, lost, torch.zeros_like(lost)).clamp(0, 1)
        fields[shared], fields[own] = fields[shared] - apart, fields[own] + apart
    return replace(made, **fields)


def _product_covariance(left: State, right: State, made: State) -> Tensor | None:
    """Covariance of the product in different channels; channels of a factor without one vary independently."""
    count = math.prod(made.shape)
    if count > COVARIANCE_CHANNELS or all(s.covariance is None or len(s.covariance) != count for s in (left, right)):
        return None
    found, mean = torch.ones(1, 1, dtype=DTYPE), made.mean.expand(made.shape).reshape(-1)
    for state in (left, right):
        outer = state.mean.expand(made.shape).reshape(-1)
        moments = outer[:, None] * outer[None]
        found = found * (moments if state.covariance is None else moments + state.covariance)
    found = found - mean[:, None] * mean[None]
    found.diagonal().copy_(made.variance.expand(made.shape).reshape(-1))
    return found


def _product_lags(left: State, right: State, made: State) -> Tensor | None:
    """Autocorrelation over sites of the product's residual."""
    if left.lags is None and right.lags is None:
        return None
    tables = aligned([white(state.residual) if state.lags is None else state.lags for state in (left, right)])
    residual = by_channel(made.residual)
    near, far = [], []
    for state, lags in zip((left, right), tables, strict=True):
        shared = by_channel(state.mean.square() + levels(state)[2])
        near.append(shared + by_channel(state.residual) * lags)
        far.append(shared)
    if len({len(x) for x in (*near, *far, residual)} - {1}) > 1:
        return None
    found = ((near[0] * near[1] - far[0] * far[1]) / residual.clamp(min=1e-300)).clamp(-1, 1)
    rows, columns = reach(found)
    found[:, rows, columns] = 1.0
    return found
