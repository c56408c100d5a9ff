"""Which safe remedies are applied unasked, in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from tightrope.finding import Finding, Remedy, Safety

LAST = "initialize"
"""Solved along the recorded step, so it waits for a step in which every other remedy is in place."""

Applied = tuple[Finding, Remedy]


@dataclass
class Repair:
    """Applies remedies in rounds; between two rounds a step is recorded and judged anew.

    Attributes:
        applied: what was applied, with the finding that asked for it.
        failed: what could not be applied, and why.
    """

    applied: list[Applied] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    _earlier: frozenset[str] = frozenset()

    def begin_round(self) -> None:
        """What was applied before this is not applied again."""
        self._earlier = frozenset(remedy.name for _, remedy in self.applied)

    def apply(self, findings: Sequence[Finding]) -> int:
        """Apply the safe remedies of one diagnosis that this round calls for; how many there were."""
        chosen = [item for item in safe_remedies(findings) if item[1].name not in self._earlier]
        others = [item for item in chosen if item[1].name != LAST]
        done = 0
        for finding, remedy in others or chosen:
            try:
                remedy.apply()
            except Exception as error:  # the remedy is at fault, not the training that it was meant for
                self.failed.append(f"{remedy.name} could not be applied: {type(error).__name__}: {error}")
                continue
            self.applied.append((finding, remedy))
            done += 1
        return done


def safe_remedies(findings: Iterable[Finding]) -> list[Applied]:
    """The remedy of each cause that may be applied unasked, each once."""
    found: dict[tuple[str, str], Applied] = {}
    for finding in findings:
        remedy = next((r for r in finding.remedies if r.safety is Safety.SAFE and r.action is not None), None)
        if finding.caused_by is None and remedy is not None:
            found.setdefault((remedy.name, remedy.patch), (finding, remedy))
    return list(found.values())


def repair(diagnose: Callable[[], Sequence[Finding]]) -> Repair:
    """Diagnose and apply, round after round, until no new safe remedy is called for."""
    work = Repair()
    while True:
        work.begin_round()
        if not work.apply(diagnose()):
            return work
