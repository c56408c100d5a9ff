"""What the comparison of gradient estimators found."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from tightrope.finding import Evidence, Finding, Severity
from tightrope.instruments.estimate import Estimate

WASTE = 10.0
"""Times the computation of the best estimator from which another is called one of high variance."""


@dataclass(frozen=True, eq=False)
class GradientEstimator:
    """One estimator of the gradient of E f(z); all tensors have the shapes of the parameters.

    Attributes:
        name: of the estimator.
        reason: why the distribution or the objective does not admit it; then there are no numbers.
        unbiased: what theory says: True for any objective, None for a continuous one, False.
        mean, error: estimate of the gradient, and its standard error.
        variance, variance_error: of the gradient of a single draw.
        trace: of the covariance of the gradient of a single draw: all variances together.
        bias, bias_error: distance of the mean to the reference, with the standard error of both.
        offset: root of the squared bias over that of the squared gradient, what noise explains taken off.
        biased: whether the bias is beyond chance in any parameter.
        draws: how many are needed for the relative error asked for; infinite where the bias alone is larger.
        cost: seconds for the relative error asked for, on this machine, when draws are taken side by side.
        seconds: for a draw.
    """

    name: str
    reason: str = ""
    unbiased: bool | None = None
    mean: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    error: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    variance: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    variance_error: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    trace: Estimate | None = None
    bias: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    bias_error: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    offset: Estimate | None = None
    biased: bool = False
    draws: Estimate | None = None
    seconds: float = math.nan

    @property
    def admitted(self) -> bool:
        """Whether there are numbers."""
        return not self.reason

    @property
    def safe(self) -> bool:
        """Whether it may be used without a thought of its bias."""
        return self.admitted and self.unbiased is not False and not self.biased

    @property
    def cost(self) -> float:
        """Seconds for the relative error asked for."""
        return self.draws.value * self.seconds if self.draws is not None else math.inf


@dataclass(frozen=True, eq=False)
class EstimatorComparison:
    """Estimators of one gradient, side by side.

    Attributes:
        estimators: all of them, those that are not admitted with the reason.
        best: name of the unbiased estimator that reaches the relative error in the least time; "" if there is none.
        reference: what biases are measured against; "exact" where all values of the distribution were enumerated.
        signal: norm of the gradient.
        size: number of parameters.
        count: draws of each estimator.
        relative_error: that `draws` are counted for.
        using: the estimator that is in use, as far as it was said.
        what: the distribution, in words.
    """

    estimators: tuple[GradientEstimator, ...]
    best: str
    reference: str
    signal: Estimate
    size: int
    count: int
    relative_error: float
    using: str = ""
    what: str = ""

    def __getitem__(self, name: str) -> GradientEstimator:
        """An estimator by its name."""
        return next(found for found in self.estimators if found.name == name)

    def __iter__(self) -> Iterator[GradientEstimator]:
        """All of them."""
        return iter(self.estimators)

    def times(self, name: str) -> Estimate | None:
        """Variance of an estimator over that of the best; None where one of them has none."""
        top, bottom = self[name].trace, self[self.best].trace if self.best else None
        if top is None or bottom is None:
            return None
        if bottom.high <= 0:
            return Estimate(math.inf, math.inf, math.inf, math.inf)
        low = top.low / bottom.high
        value = top.value / bottom.value if bottom.value > 0 else math.inf
        high = top.high / bottom.low if bottom.low > 0 else math.inf
        relative = math.hypot(*(x.error / x.value if x.value > 0 else math.inf for x in (top, bottom)))
        return Estimate(value, value * relative, low, high)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """`high-variance-estimator`, where it was said which one is in use."""
        if not self.using or not self.best or self.using == self.best:
            return ()
        mine, best, times = self[self.using], self[self.best], self.times(self.using)
        if times is None or math.isnan(best.seconds / mine.seconds):
            return ()
        least = times.low * min(mine.seconds / best.seconds, 1.0) if not math.isinf(times.low) else math.inf
        if least <= WASTE:
            return ()
        assert mine.trace is not None and best.trace is not None
        assert mine.draws is not None and best.draws is not None
        more = (
            "has variance, none is left by"
            if math.isinf(times.low)
            else f"has at least {times.low:.3g} times the variance of"
        )
        return (
            Finding(
                "high-variance-estimator", Severity.WARNING, "", "",
                f"{self.using} {more} {self.best}, which this distribution and objective admit; it needs "
                f"{_number(mine.draws)} draws for {self.relative_error:.0%}, {self.best} {_number(best.draws)}",
                (
                    Evidence("variance of a draw's gradient", mine.trace.value, best.trace.value, mine.trace.error),
                    Evidence("its ratio to the best estimator's", times.value, 1.0, times.error),
                ),
            ),
        )  # fmt: skip

    @property
    def verdict(self) -> str | None:
        """Name of the finding, or None."""
        return self.findings[0].check if self.findings else None

    def __str__(self) -> str:
        draws = f"draws for {self.relative_error:.0%}"
        lines = [
            f"gradient of E f(z), z ~ {self.what}: {self.size} parameter{'s' * (self.size > 1)}, {self.count} draws of "
            "each estimator",
            f"  |gradient| {self.signal}",
            f"  {'estimator':<26}{'variance of a draw':<24}{'bias / |gradient|':<28}{draws:>14}{'µs a draw':>11}",
        ]
        for found in self.estimators:
            if not found.admitted:
                lines.append(f"  {found.name:<26}not admitted: {found.reason}")
                continue
            assert found.trace is not None and found.draws is not None
            spread = f"{found.trace.value:.4g} ± {found.trace.error:.2g}"
            need = _number(found.draws)
            lines.append(
                f"  {found.name:<26}{spread:<24}{self._bias(found):<28}{need:>14}{found.seconds * 1e6:>11.3g}"
                + ("  <- use" if found.name == self.best else "")
            )
        how = "all values enumerated" if self.reference == "exact" else f"draws of {self.reference} of their own"
        lines.append(f"  bias is measured against {how}")
        lines += [f"  {finding.check}: {finding.summary}" for finding in self.findings]
        return "\n".join(lines)

    def _bias(self, found: GradientEstimator) -> str:
        if found.offset is None:
            return "the reference"
        low, high = found.offset.low, found.offset.high
        words = f"{found.offset.value:.2g} [{low:.2g}, {high:.2g}]"
        return words + (" biased" if found.biased else " by design" if found.unbiased is False else "")


def _number(found: Estimate) -> str:
    if math.isinf(found.low):
        return "never"
    if math.isinf(found.value):
        return f"> {found.low:.3g}"
    return f"{max(1, math.ceil(found.value - 1e-9)):,}"


__all__ = ["WASTE", "EstimatorComparison", "GradientEstimator"]
