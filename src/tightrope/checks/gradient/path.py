"""The gradient's way back along the tensors that the whole signal passes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tightrope.checks.layers import Cut, cuts
from tightrope.finding import Evidence, Finding, Severity
from tightrope.law import Law
from tightrope.study import Study


@dataclass(frozen=True)
class Way:
    """Norms of the gradient at the first and the last tensor that the whole signal passes.

    Attributes:
        first, last: the tensors.
        norm_first, norm_last: norm of the loss's gradient with respect to them, over all elements.
        predicted: ratio of the predicted norms; None where they are not known.
        error: standard error of ln(norm_first / norm_last).
    """

    first: Cut
    last: Cut
    norm_first: float
    norm_last: float
    predicted: float | None
    error: float

    @property
    def ratio(self) -> float:
        """Norm at the first over norm at the last."""
        return self.norm_first / self.norm_last


def way(study: Study) -> Way | None:
    """The gradient's way, or None where no gradient arrives at the end of it or there is no way to speak of."""
    gradients = study.measurement.gradients
    passed = [cut for cut in cuts(study) if cut.value in gradients and gradients[cut.value].finite]
    if len(passed) < 3:
        return None
    first, last = passed[0], passed[-1]
    a, b = gradients[first.value], gradients[last.value]
    if b.rms == 0:
        return None
    predicted = None
    mine, theirs = (study.forecast.gradients.get(cut.value) for cut in (first, last))
    if mine is not None and theirs is not None and theirs.rms > 0:
        predicted = norm(study, first, mine) / norm(study, last, theirs)
    return Way(first, last, norm(study, first, a), norm(study, last, b), predicted, math.hypot(a.error, b.error))


def norm(study: Study, cut: Cut, law: Law) -> float:
    """Norm over all elements of a tensor with this law."""
    return law.rms * math.sqrt(math.prod(study.tape.values[cut.value].shape))


def finding(name: str, found: Way, study: Study, verdict: str) -> Finding:
    """A finding on the whole way back."""
    evidence = [Evidence("gradient norm, first layer / last", found.ratio, 1.0, found.error * found.ratio)]
    if found.predicted is not None:
        evidence.append(Evidence("the same, predicted", found.predicted))
    entry = found.first.entry
    return Finding(
        name, Severity.FAULT, entry.module, str(study.tape.location(entry)), f"gradient norm {found.norm_last:.3g} → "
        f"{found.norm_first:.3g} on the way back, × {found.ratio:.3g}; level: × 1, {verdict}", tuple(evidence),
        entry.index, modules=(entry.module,),
    )  # fmt: skip
