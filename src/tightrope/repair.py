"""Which safe remedies are applied unasked, in which order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from tightrope.finding import Finding, Remedy, Safety

LAST = "initialize"
"""Solved along the recorded step, so it waits for a step in which every other remedy is in place."""

AGAIN = 3
"""How often training may start again."""

Applied = tuple[Finding, Remedy]
Key = tuple[str, str]


@dataclass
class Repair:
    """Applies remedies in rounds; between two rounds a step is recorded and judged anew.

    Attributes:
        applied: what was applied, with the finding that asked for it.
        failed: what could not be applied, and why.
    """

    applied: list[Applied] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    _earlier: frozenset[Key] = frozenset()

    def begin_round(self) -> None:
        """What was applied before this is not applied again, save a few new starts."""
        counts = Counter(key(*item) for item in self.applied)
        most = {key(*item): AGAIN if item[1].restart else 1 for item in self.applied}
        self._earlier = frozenset(found for found, number in counts.items() if number >= most[found])

    def chosen(self, findings: Sequence[Finding], *, late: bool = False) -> list[Applied]:
        """The safe remedies of one diagnosis that this round calls for; late ones spare what was learnt."""
        fresh = [item for item in safe_remedies(findings) if key(*item) not in self._earlier]
        return [(f, r) for f, r in fresh if r.anytime or r.restart or not late]

    def apply(self, findings: Sequence[Finding], *, late: bool = False) -> int:
        """Apply the remedies that this round calls for; how many there were."""
        chosen = self.chosen(findings, late=late)
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


def key(finding: Finding, remedy: Remedy) -> Key:
    """What is applied once: a remedy of the whole program, or of one place in it."""
    return remedy.name, "" if remedy.whole else ", ".join(finding.modules or (finding.module,))


def safe_remedies(findings: Iterable[Finding]) -> list[Applied]:
    """The remedy of each cause that may be applied unasked, each once."""
    found: dict[Key, Applied] = {}
    for finding in findings:
        remedy = next((r for r in finding.remedies if r.safety is Safety.SAFE and r.action is not None), None)
        if finding.caused_by is None and remedy is not None:
            found.setdefault(key(finding, remedy), (finding, remedy))
    return list(found.values())


def repair(diagnose: Callable[[], Sequence[Finding]]) -> Repair:
    """Diagnose and apply, round after round, until no new safe remedy is called for."""
    work = Repair()
    while True:
        work.begin_round()
        if not work.apply(diagnose()):
            return work
