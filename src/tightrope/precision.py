"""Whether half precision holds a step: largest values, smallest gradients, and what a residual stream still takes up.

Largest values are expected maxima over all elements: of n draws of a Gaussian law, at the site where it is widest.
A tensor that is a square has the square of its input's largest value. Single numbers, as a loss, are left out. What a
fused kernel keeps inside (sums of a normaliser, scores of an attention) is in single precision and not judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tightrope.predict import Forecast
from tightrope.rules.amplitude import OMEGA
from tightrope.rules.extremes import extreme, largest
from tightrope.scaling import weights_alone
from tightrope.tape.tape import Entry, Kind

LARGEST = {"fp16": 65504.0, "bf16": 3.39e38}
"""Largest finite number."""
ZERO = 2.0**-25
"""What rounds to zero in fp16: half of its smallest number, 6e-8."""
BITS = {"fp16": 11, "bf16": 8}
"""Bits of the significand: half an ulp is at most 2^-bits of a number."""
LOST = 0.01
"""Share of a tensor's gradients that may fall to zero."""


@dataclass(frozen=True)
class Spot:
    """A number and the place where it is found."""

    value: float
    module: str
    op: str

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.op} in {self.module or 'the model'})"


@dataclass(frozen=True)
class Precision:
    """What half precision does to a step.

    Attributes:
        largest: largest absolute value that is expected among the results.
        largest_score: largest expected attention score; None without attention.
        largest_gradient: largest absolute gradient that is expected, without loss scaling.
        zeroed: share of all gradient elements that fp16 rounds to zero without loss scaling.
        faintest: smallest gradient rms.
        increment: smallest standard deviation of a residual branch over that of the stream that it is added to.
        loudness: largest spread over samples of the logarithm of their norm, a standard deviation; None where it is
            not followed.
    """

    largest: Spot | None
    largest_score: Spot | None
    largest_gradient: Spot | None
    zeroed: float
    faintest: Spot | None
    increment: Spot | None
    loudness: Spot | None

    @property
    def loss_scale(self) -> float:
        """The smallest power of two to scale the loss by so that fp16 keeps its faintest gradients."""
        if self.faintest is None:
            return 1.0
        # P(|g| < t) of a Gaussian is sqrt(2 / pi) t / rms for small t.
        wanted = math.sqrt(2 / math.pi) * ZERO / LOST
        return 2.0 ** max(0, math.ceil(math.log2(wanted / self.faintest.value)))

    @property
    def fits(self) -> bool:
        """Whether fp16 holds every value, and every gradient at the loss scale."""
        top = LARGEST["fp16"]
        values = [spot.value for spot in (self.largest, self.largest_score) if spot]
        scaled = self.largest_gradient.value * self.loss_scale if self.largest_gradient else 0.0
        return all(value < top for value in values) and scaled < top

    def halves(self, kind: str) -> float:
        """How many half ulps of the stream the faintest branch spans (less than 1: additions are lost)."""
        return self.increment.value * 2.0 ** BITS[kind] if self.increment else math.inf

    def lines(self) -> list[str]:
        """What to tell, one sentence a line."""
        return list(_sentences(self))

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        spots = {name: getattr(self, name) for name in self.__annotations__ if name != "zeroed"}
        plain = {n: None if s is None else {"value": s.value, "module": s.module, "op": s.op} for n, s in spots.items()}
        return {**plain, "zeroed": self.zeroed, "loss_scale": self.loss_scale, "fits_fp16": self.fits}


def precision(forecast: Forecast) -> Precision:
    """Read extremes, smallest gradients and increments from a forecast."""
    tape, states, gradients = forecast.tape, forecast.states, forecast.gradients
    own = weights_alone(tape)
    made = [
        (entry, number) for entry in tape.entries if entry.index not in forecast.trivial for number in entry.outputs
        if tape.values[number].is_float and tape.values[number].kind is Kind.RESULT and number not in own
    ]  # fmt: skip
    tensors = [(e, n) for e, n in made if n in states and math.prod(tape.values[n].shape) > 1]
    values = [(largest(tape, states, entry, number), entry) for entry, number in tensors]
    scores = [Spot(law.max_logit, law.module, "score") for law in forecast.attention]
    reached = [(gradients[n].rms, math.prod(tape.values[n].shape), e) for e, n in made if n in gradients]
    reached = [(rms, count, entry) for rms, count, entry in reached if rms > 0 and math.isfinite(rms)]
    count = sum(n for _, n, _ in reached)
    zeroed = sum(n * math.erf(ZERO / rms / math.sqrt(2)) for rms, n, _ in reached) / count if count else 0.0
    peaks = [(rms * extreme(n), entry) for rms, n, entry in reached]
    branches = list(_increments(forecast))
    return Precision(
        _most(values), max(scores, key=lambda spot: spot.value, default=None), _most(peaks), zeroed,
        _least([(rms, entry) for rms, _, entry in reached]), _least(branches), _most(list(_loudness(forecast))),
    )  # fmt: skip


def _increments(forecast: Forecast) -> Iterator[tuple[float, Entry]]:
    """Additions of two results of one shape: standard deviation of the fainter over the louder."""
    values = forecast.tape.values
    for entry in forecast.tape.entries:
        if entry.op != "add" or len(entry.inputs) != 2 or any(n not in forecast.laws for n in entry.inputs):
            continue
        a, b = (values[n] for n in entry.inputs)
        if a.shape != b.shape or a.kind is not Kind.RESULT or b.kind is not Kind.RESULT:
            continue
        low, high = sorted(forecast.laws[n].std for n in entry.inputs)
        if low > 0:
            yield low / high, entry


def _loudness(forecast: Forecast) -> Iterator[tuple[float, Entry]]:
    """Spread over samples of ln(norm), where it is carried."""
    for entry in forecast.tape.entries:
        state = forecast.states.get(entry.outputs[0]) if entry.outputs else None
        if state is not None and state.amplitude is not None:
            mean = (OMEGA * state.amplitude).sum()
            yield float((OMEGA * (state.amplitude - mean).square()).sum().sqrt()), entry


def _most(found: list[tuple[float, Entry]]) -> Spot | None:
    kept = [pair for pair in found if math.isfinite(pair[0])]
    return _spot(max(kept, key=lambda pair: pair[0])) if kept else None


def _least(found: list[tuple[float, Entry]]) -> Spot | None:
    return _spot(min(found, key=lambda pair: pair[0])) if found else None


def _spot(pair: tuple[float, Entry]) -> Spot:
    return Spot(pair[0], pair[1].module, pair[1].op)


def _sentences(found: Precision) -> Iterator[str]:
    top = LARGEST["fp16"]
    if found.largest is not None:
        verb = "holds" if found.largest.value < top else "overflows at"
        yield f"fp16 {verb} the largest value expected, {found.largest}, of 65504"
        if found.largest.value >= LARGEST["bf16"]:
            yield "bf16 overflows there as well"
    if found.largest_score is not None:
        yield f"largest attention score expected: {found.largest_score.value:.3g} in {found.largest_score.module}"
    if found.faintest is not None and found.largest_gradient is not None:
        share = f"{found.zeroed:.1%}" if found.zeroed >= 0.001 else "under 0.1 %"
        scale = found.loss_scale
        yield f"fp16 without loss scaling rounds {share} of the gradients to zero; the faintest: rms {found.faintest}"
        if scale > 1:
            fits = found.largest_gradient.value * scale < top
            room = "" if fits else f", at which the largest, {found.largest_gradient}, overflow: no scale fits all"
            yield f"a loss scale of 2^{round(math.log2(scale))} keeps 99 % of each tensor's{room}"
        yield "bf16 holds all gradients" if found.faintest.value > 1e-38 else "bf16 loses the faintest gradients too"
    if found.increment is not None:
        halves = found.halves("bf16")
        where = found.increment.module or "the model"
        told = "is lost in rounding" if halves < 1 else "is coarsely rounded" if halves < 8 else "is taken up"
        yield f"bf16 residual stream: the faintest branch, in {where}, spans {halves:.3g} half ulps and {told}"
    if found.loudness is not None and found.loudness.value > 0.01:
        where = found.loudness.module or "the model"
        yield f"samples' norms spread by up to ± {found.loudness.value:.0%} (one standard deviation), in {where}"


__all__ = ["Precision", "Spot", "extreme", "largest", "precision"]
