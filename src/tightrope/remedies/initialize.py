"""`initialize` as a remedy: the weight scales of the recorded step, solved and set in place."""

from __future__ import annotations

from tightrope.finding import Finding, Remedy, Safety
from tightrope.initialize import solve
from tightrope.remedies.registry import remedy
from tightrope.study import Study

EARLY = 1
"""Last step at which drawing the weights anew loses nothing: they have not been trained yet."""


@remedy("initialize")
def initialize(study: Study, finding: Finding) -> Remedy:
    """Solve every weight scale along the recorded step."""

    def act() -> None:
        solve(study.tape)

    return Remedy(
        "initialize", "Solve every weight scale from the laws of the step", "tightrope.initialize(model, inputs)",
        "none before training; learned weights would be lost",
        Safety.SAFE if study.step <= EARLY else Safety.REVIEW, act,
    )  # fmt: skip
