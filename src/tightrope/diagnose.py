"""From a study to findings: run the checks, then tell causes from their echoes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tightrope.checks.registry import STAGES, Check, all_checks
from tightrope.finding import Finding
from tightrope.remedies.registry import prescribe
from tightrope.study import Study


def diagnose(studies: Sequence[Study], stages: Sequence[str] = STAGES) -> list[Finding]:
    """Findings over all studied steps, causes first, worst first, each once.

    Args:
        studies: the recorded steps, oldest first.
        stages: of the checks to run; a check whose evidence the study does not have finds nothing.
    """
    checks = [check for check in all_checks().values() if check.stage in stages]
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
    """Findings of several steps, each diagnosed while its weights were in place, as those of one run.

    What one check says of one module several times is said once: the worst, and of those the first.
    """
    found: dict[tuple[str, str], Finding] = {}
    for finding in sorted(findings, key=lambda f: (f.severity.rank, f.step)):
        found.setdefault((finding.check, finding.module), finding)
    return order(list(found.values()))


def order(findings: Sequence[Finding]) -> list[Finding]:
    """Attach every echo to the finding that explains it best; causes first, worst first."""
    parents = {i: _parent(finding, findings) for i, finding in enumerate(findings)}
    roots = {i: _root(i, parents) for i in range(len(findings))}
    ordered = []
    for i, finding in enumerate(findings):
        echoes = (findings[j].check for j in roots if roots[j] == i and j != i)
        cause = findings[roots[i]].check if roots[i] != i else None
        ordered.append(replace(finding, caused_by=cause, cause_of=tuple(dict.fromkeys(echoes))))
    return sorted(ordered, key=lambda f: (f.caused_by is not None, f.severity.rank, f.step, f.index))


def _parent(echo: Finding, findings: Sequence[Finding]) -> int | None:
    """The finding that explains this one most directly.

    A cause acts no later than its echo is seen. Of several the worse goes first, then the one that names the echo
    earlier among what it explains, then the one that stands earlier on the tape.
    """
    checks = all_checks()
    found: list[tuple[tuple[int, int, int, int], int]] = []
    for j, cause in enumerate(findings):
        if cause is echo or cause.check not in checks:
            continue
        begins = _acts(cause, checks[cause.check])
        if begins > echo.step:
            continue
        explained = checks[cause.check].explains
        mutual = echo.check in checks and cause.check in checks[echo.check].explains
        if echo.check not in explained or (
            mutual and (begins, cause.index) >= (_acts(echo, checks[echo.check]), echo.index)
        ):
            continue
        found.append(((cause.severity.rank, explained.index(echo.check), cause.step, cause.index), j))
    return min(found)[1] if found else None


def _acts(cause: Finding, check: Check) -> int:
    """The first step in which something may follow from a cause.

    What only a run shows has been at work since the run began: updates from the second step on, the rest from the
    first.
    """
    if check.stage != "run":
        return cause.step
    return 2 if check.family == "optim" else 1


def _root(i: int, parents: dict[int, int | None]) -> int:
    """The cause at the end of a chain of explanations."""
    seen = {i}
    above = parents[i]
    while above is not None and above not in seen:
        seen.add(above)
        i, above = above, parents[above]
    return i
