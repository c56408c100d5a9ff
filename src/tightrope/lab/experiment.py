"""What an experiment says: claims, each a predicted number beside a measured one, and the panels of its figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

T = TypeVar("T")
SIGMAS = 3.0
"""Standard errors within which a measurement agrees: one in 370 misses by chance."""
RESOLUTION = 0.1
"""Of the predicted number: a comparison that could not see a law off by as much decides nothing."""
Relation = Literal["=", "<=", ">="]
Verdict = Literal["holds", "fails", "unresolved"]


@dataclass(frozen=True)
class Claim:
    """One number of a law beside the number that was measured.

    Attributes:
        text: what is compared, with its unit.
        predicted: by the law; for an inequality the bound.
        measured: by the experiment.
        error: standard error of `measured`; 0 where it is exact.
        band: how far the law may be off where it is an approximation, in units of `predicted`'s own.
        relation: of `measured` to `predicted`.
    """

    text: str
    predicted: float
    measured: float
    error: float = 0.0
    band: float = 0.0
    relation: Relation = "="

    @classmethod
    def equal(cls, text: str, predicted: float, measured: float, error: float = 0.0, *, within: float = 0.0,
              absolute: float = 0.0) -> Claim:  # fmt: skip
        """The law gives the number; `within` is its band as a share of the number, `absolute` in its units."""
        band = max(within * abs(float(predicted)), absolute)
        return cls(text, float(predicted), float(measured), float(error), band)

    @classmethod
    def below(cls, text: str, bound: float, measured: float, error: float = 0.0) -> Claim:
        """What is measured is at most the bound."""
        return cls(text, float(bound), float(measured), float(error), 0.0, "<=")

    @classmethod
    def above(cls, text: str, bound: float, measured: float, error: float = 0.0) -> Claim:
        """What is measured is at least the bound."""
        return cls(text, float(bound), float(measured), float(error), 0.0, ">=")

    @classmethod
    def curve(cls, text: str, at: Sequence[object], predicted: Sequence[float], measured: Sequence[float],
              errors: Sequence[float], *, within: float = 0.0, absolute: float = 0.0) -> Claim:  # fmt: skip
        """The law gives every point of a curve: the claim at the point that agrees worst, `at` names the points."""
        points = [
            cls.equal(f"{text}, worst of {len(at)} points ({x})", p, m, e, within=within, absolute=absolute)
            for x, p, m, e in zip(at, predicted, measured, errors, strict=True)
        ]
        rank = ("holds", "unresolved", "fails")
        return max(points, key=lambda claim: (rank.index(claim.verdict), claim.excess))

    @property
    def excess(self) -> float:
        """How far apart the two numbers are, in units of what is allowed; above 1 the law does not hold."""
        if not (math.isfinite(self.measured) and math.isfinite(self.predicted) and math.isfinite(self.error)):
            return math.inf
        gap = self.measured - self.predicted
        gap = abs(gap) if self.relation == "=" else gap if self.relation == "<=" else -gap
        allowed = self.band + SIGMAS * self.error
        return gap / allowed if allowed > 0 else math.inf if gap > 0 else 0.0

    @property
    def verdict(self) -> Verdict:
        """Whether the law holds within its band and the measurement's error; unresolved if that is too large."""
        if self.excess > 1:
            return "fails"
        if self.relation == "=":
            coarse = SIGMAS * self.error > max(self.band, RESOLUTION * abs(self.predicted))
        else:  # on the right side, but not by more than chance
            coarse = SIGMAS * self.error > abs(self.measured - self.predicted)
        return "unresolved" if coarse else "holds"


@dataclass(frozen=True)
class Series:
    """One curve of a panel.

    Attributes:
        name: of the setting; the law and the measurement of one setting share it, and its colour.
        x, y: coordinates.
        errors: standard errors of y, drawn as bars of two; empty for none.
        kind: "law" is drawn as a line, "measured" as points, "reference" as a dashed line.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    errors: Sequence[float] = ()
    kind: Literal["law", "measured", "reference"] = "measured"


@dataclass(frozen=True)
class Panel:
    """One set of axes: curves over a common x.

    Attributes:
        ticks: names of x = 0, 1, ... where x is no number; laws are then dashes instead of lines.
    """

    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    log_x: bool = False
    log_y: bool = False
    ticks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """What an experiment found.

    Attributes:
        claims: at least one.
        panels: of the figure, at most four.
        seeds: of the runs that the measurements are made of.
    """

    claims: tuple[Claim, ...]
    panels: tuple[Panel, ...]
    seeds: tuple[int, ...] = (0,)

    @property
    def verdict(self) -> Verdict:
        """Holds when every claim does, fails when one does."""
        found = {claim.verdict for claim in self.claims}
        return "fails" if "fails" in found else "unresolved" if "unresolved" in found else "holds"


@dataclass(frozen=True)
class Trial:
    """How much an experiment may spend.

    Attributes:
        quick: less than a minute on two cores, less than twenty seconds as a rule.
        seed: the first of its seeds.
    """

    quick: bool = True
    seed: int = 0

    def pick(self, quick: T, full: T) -> T:
        """The one of two sizes that there is time for."""
        return quick if self.quick else full

    def seeds(self, quick: int, full: int) -> tuple[int, ...]:
        """Seeds of independent runs."""
        return tuple(range(self.seed, self.seed + self.pick(quick, full)))
