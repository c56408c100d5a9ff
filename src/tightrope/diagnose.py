"""From a study to findings: run the checks, then tell causes from their echoes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tightrope.checks.registry import all_checks
from tightrope.finding import Finding
from tightrope.remedies.registry import prescribe
from tightrope.study import Study


def diagnose(studies: Sequence[Study], only: Sequence[str] | None = None) -> list[Finding]:
    """Findings over all studied steps, causes first, worst first, each once.

    Args:
        studies: the recorded steps, oldest first.
        only: names of the checks to run; all when None.
    """
    checks = [check for check in all_checks().values() if only is None or check.name in only]
    found: dict[tuple[str, str], Finding] = {}
    for study in studies:
        for check in checks:
            for finding in check.judge(study):
                key = (finding.check, finding.module)
                if key not in found:
                    remedies = finding.remedies or prescribe(study, finding, check.remedies)
                    found[key] = replace(finding, step=study.step, remedies=remedies)
    return order(list(found.values()))


def merge(findings: Sequence[Finding]) -> list[Finding]:
    """Findings of several steps, each diagnosed while its weights were in place, as those of one run."""
    found: dict[tuple[str, str], Finding] = {}
    for finding in sorted(findings, key=lambda f: f.step):
        found.setdefault((finding.check, finding.module), finding)
    return order(list(found.values()))


def order(findings: list[Finding]) -> list[Finding]:
    """Attach every echo to the first finding that explains it; causes first, worst first."""
    explains = {name: check.explains for name, check in all_checks().items()}
    ranked = sorted(findings, key=lambda f: (f.step, f.index))
    cause: dict[int, Finding] = {}
    for i, finding in enumerate(ranked):
        for other in ranked:
            if other is not finding and finding.check in explains.get(other.check, ()) and _before(other, finding):
                if (
                    finding.check in explains
                    and other.check in explains[finding.check]
                    and other.index >= finding.index
                ):
                    continue  # they explain each other: the earlier on the tape is the cause
                cause[i] = other
                break
    roots: dict[int, Finding] = {}
    for i in cause:
        root, seen = cause[i], {id(ranked[i])}
        while id(root) not in seen:
            seen.add(id(root))
            above = next((cause[j] for j in cause if ranked[j] is root), None)
            if above is None:
                break
            root = above
        roots[i] = root
    echoes: dict[int, list[str]] = {}
    for i, root in roots.items():
        echoes.setdefault(id(root), []).append(ranked[i].check)
    result = [
        replace(
            f, caused_by=roots[i].check if i in roots else None, cause_of=tuple(dict.fromkeys(echoes.get(id(f), ())))
        )
        for i, f in enumerate(ranked)
    ]
    return sorted(result, key=lambda f: (f.caused_by is not None, f.severity.rank, f.step, f.index))


def _before(cause: Finding, echo: Finding) -> bool:
    """A cause may not be seen at a later step than its echo."""
    return cause.step <= echo.step
