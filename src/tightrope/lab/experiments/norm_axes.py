"""`norm-axes`: a normaliser deletes the effects that are constant over the axes it averages, and no other.

Law         x[n, s, k] is a mean and effects of sample, site, channel and their interactions. Subtracting the average
            over a set R of axes takes every effect to zero that belongs to no axis in R; the division leaves the others
            their proportions: the share of an effect becomes v / (sum of the v that are left).
Setting     effects of exactly the variances v, drawn anew for each seed: 32 samples, 7 x 7 sites, 16 groups of 16
            channels, through BatchNorm2d, LayerNorm over the channels, InstanceNorm2d and GroupNorm; shares by
            `tightrope.explain_norm`. The last claim: a net of two convolutions before each normaliser, and the
            components of its output by `tightrope.predict` beside those measured.
Band        each pool divides by its own variance. Effects that take the same n values within a pool, of variances w in
            all, make it fluctuate with covariance 2 w / n, so that shares move by up to 2 w / (n v), v the variance of
            the pool: 2 to 5 % of themselves. For the net 2 / 64 of the whole, since its pools hold 64 values or more.
Reading     dashes are the law, points the measurement, left of each pair before and right after. Batch norm takes the
            mean and the channels, layer norm what is of samples and sites, instance norm what is of samples and
            channels, group norm of the channels what the groups differ by.
References  Wu and He (2018), Group normalization, ECCV, for the axes; Searle, Casella, McCulloch (1992), Variance
            components, for the decomposition.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tightrope.instruments import NormEffect, explain_norm
from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial
from tightrope.law import COMPONENTS

PRINCIPLES = ("P05",)
LEVELS = {"sample": 32, "group": 16, "channel": 16, "site": 49}
"""Values of each axis; a channel is counted within its group."""
CHANNELS = LEVELS["group"] * LEVELS["channel"]
EFFECTS = {
    "mean": 0.8, "sample": 1.0, "site": 0.5, "group": 0.9, "channel": 0.6, "sample·group": 0.4, "sample·channel": 0.3,
    "sample·site": 0.4, "site·channel": 0.3, "sample·site·channel": 1.0,
}  # fmt: skip
"""Variance of each; of the mean its square."""
SHOWN = ("mean", "sample", "site", "channel", "sample·site", "sample·channel", "site·channel", "sample·site·channel")
NET = (8, 64)
"""Groups and channels of the net's normaliser."""


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each sample and site."""

    def forward(self, x: Tensor) -> Tensor:
        """Channels go last and come back."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


NORMS: dict[str, tuple[Callable[[int, int], nn.Module], tuple[str, ...]]] = {
    "batch norm": (lambda g, c: nn.BatchNorm2d(c), ("sample", "site")),
    "layer norm": (lambda g, c: ChannelNorm(c), ("group", "channel")),
    "instance norm": (lambda g, c: nn.InstanceNorm2d(c, affine=True), ("site",)),
    "group norm": (lambda g, c: nn.GroupNorm(g, c), ("channel", "site")),
}
"""How each is made for g groups of c channels, and the axes that it averages over."""


def run(trial: Trial) -> Result:
    """Shares of all effects before and after each normaliser, and the components of a net's normalised output."""
    seeds = trial.seeds(3, 16)
    claims, panels, gone = [], [], []
    for name, (make, over) in NORMS.items():
        found = [_effect(make, seed) for seed in seeds]
        gone.append(sum(e.deleted for e in found) / len(found))
        before, after = (_mean([_plain(e.before) for e in found]), _mean([_plain(e.after) for e in found]))
        law = expected(over)
        text = f"share of E[x^2] after {name}"
        claims.append(Claim.curve(text, SHOWN, law, *after, within=_band(over), absolute=1e-6))
        curves = []
        for label, place, line, points in (("before", -0.13, expected(()), before), ("after", 0.13, law, after)):
            at = [n + place for n in range(len(SHOWN))]
            curves += [Series(label, at, line, kind="law"), Series(label, at, *points)]
        panels.append(Panel(name, "", "share of E[x^2]", tuple(curves), ticks=(*SHOWN[:-1], "all three")))
    deleted = [_deleted(over) for _, over in NORMS.values()]
    text = "share of E[x^2] that is deleted"
    claims.append(Claim.curve(text, list(NORMS), deleted, gone, [0.0] * len(gone), within=1e-4))
    return Result((*claims, _net(seeds)), tuple(panels), seeds)


def expected(over: tuple[str, ...]) -> list[float]:
    """Share of each effect once those without an axis in `over` are gone; () keeps all. Groups count as channels."""
    kept = {name: v for name, v in EFFECTS.items() if not over or set(name.split("·")) & set(over)}
    shares = _plain({name: v / sum(kept.values()) for name, v in kept.items()})
    return [shares[name] for name in SHOWN]


def _deleted(over: tuple[str, ...]) -> float:
    gone = sum(v for name, v in EFFECTS.items() if not set(name.split("·")) & set(over))
    return gone / sum(EFFECTS.values())


def _band(over: tuple[str, ...]) -> float:
    """Largest 2 w / (n v) of effects that take the same n values within a pool."""
    same: dict[frozenset[str], float] = {}
    for name, v in EFFECTS.items():
        within = frozenset(name.split("·")) & frozenset(over)
        if within:
            same[within] = same.get(within, 0.0) + v
    return max(2 * w / math.prod(LEVELS[axis] for axis in axes) for axes, w in same.items()) / sum(same.values())


def _plain(shares: dict[str, float]) -> dict[str, float]:
    """Shares without the distinction between groups and their channels."""
    made = dict.fromkeys(SHOWN, 0.0)
    for name, share in shares.items():
        parts = {"channel" if part == "group" else part for part in name.split("·")}
        made["·".join(axis for axis in ("sample", "site", "channel") if axis in parts) or "mean"] += share
    return made


def _mean(found: list[dict[str, float]]) -> tuple[list[float], list[float]]:
    """Mean and standard error over seeds, of the effects that are shown."""
    table = torch.tensor([[shares[name] for name in SHOWN] for shares in found], dtype=torch.float64)
    return table.mean(0).tolist(), (table.std(0) / math.sqrt(len(table))).tolist()


def _effect(make: Callable[[int, int], nn.Module], seed: int) -> NormEffect:
    """What a normaliser does to a tensor whose effects have exactly their variances."""
    torch.manual_seed(seed)
    x = torch.zeros(list(LEVELS.values()), dtype=torch.float64)
    for name, variance in EFFECTS.items():
        parts = name.split("·")
        table = torch.randn([size if axis in parts else 1 for axis, size in LEVELS.items()], dtype=torch.float64)
        for n, axis in enumerate(LEVELS):
            if axis in parts:  # an effect sums to zero along each of its axes
                table = table - table.mean(n, keepdim=True)
        x = x + math.sqrt(variance) * table / table.square().mean().sqrt()
    side = math.isqrt(LEVELS["site"])
    return explain_norm(nn.Sequential(make(LEVELS["group"], CHANNELS)).double(), x.reshape(-1, CHANNELS, side, side))[0]


def _net(seeds: tuple[int, ...]) -> Claim:
    """Components of the variance of each normaliser's output behind two convolutions, by the forecast."""
    at, predicted, measured, errors = list[str](), list[float](), list[float](), list[float]()
    for name, (make, _) in NORMS.items():
        rows = []
        for seed in seeds:
            torch.manual_seed(seed)
            parts = nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, NET[1], 3, padding=1), make(*NET)
            found = explain_norm(nn.Sequential(*parts), torch.randn(32, 3, 8, 8))[0]
            assert found.predicted is not None and found.measured is not None
            rows.append([[getattr(law, part) for part in COMPONENTS] for law in (found.predicted, found.measured)])
        table = torch.tensor(rows, dtype=torch.float64)
        at += [f"{component}, {name}" for component in COMPONENTS]
        predicted += table[:, 0].mean(0).tolist()
        measured += table[:, 1].mean(0).tolist()
        errors += ((table[:, 1] - table[:, 0]).std(0) / math.sqrt(len(seeds))).tolist()
    text = "variance component of a net's normalised output"
    return Claim.curve(text, at, predicted, measured, errors, absolute=2 / NET[1])
