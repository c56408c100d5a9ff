"""Study a subject, find, cure, and study it again."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tightrope.check import study
from tightrope.checks.registry import get
from tightrope.finding import Finding
from tightrope.remedies.registry import prescribe
from tightrope.subject import Subject

Cure = Callable[[str, str, Subject], tuple[list[Finding], list[Finding]]]


@pytest.fixture
def cure() -> Cure:
    """`cure(check, remedy, subject)` gives the check's findings before and after the remedy was applied."""

    def run(check: str, remedy: str, subject: Subject) -> tuple[list[Finding], list[Finding]]:
        made = study(subject.model, subject.data, loss=subject.loss)
        before = get(check).judge(made)
        for finding in before:
            for found in prescribe(made, finding, [remedy]):
                found.apply()
        return before, get(check).judge(study(subject.model, subject.data, loss=subject.loss))

    return run
