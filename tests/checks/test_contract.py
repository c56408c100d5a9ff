"""What every check promises: a page, a fault it sees, a twin on which all are silent, remedies that cure."""

from __future__ import annotations

import pytest
import torch

from tightrope.check import study
from tightrope.checks.registry import SECTIONS, Check, all_checks
from tightrope.diagnose import diagnose
from tightrope.finding import Finding, Severity
from tightrope.run import rehearse
from tightrope.subject import Program, Subject

CHECKS = list(all_checks().values())
CURES = [(check, name) for check in CHECKS for name in check.remedies]


def diagnosed(example: Subject | Program) -> list[Finding]:
    """What all checks say of one step of an example, or of the steps that it makes itself."""
    torch.manual_seed(1)
    if isinstance(example, Program):
        report = rehearse(example.train).report
        assert report is not None
        return list(report.findings)
    return diagnose([study(example.model, example.data, loss=example.loss, optimizer=example.optimizer)])


def named(findings: list[Finding], check: Check) -> list[Finding]:
    return [finding for finding in findings if finding.check == check.name]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_page_is_complete(check: Check) -> None:
    assert tuple(check.page) == SECTIONS
    assert all(len(text) > 20 for text in check.page.values())
    assert check.stage in ("graph", "batch", "run")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_fires_and_the_cause_stands_on_top(check: Check) -> None:
    findings = diagnosed(check.module.sick())
    own = named(findings, check)
    assert own
    top = findings[0]
    assert top.caused_by is None
    assert top.check == check.name or own[0].caused_by == top.check
    assert all(finding.evidence and finding.summary for finding in own)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_all_are_silent_on_the_healthy_twin(check: Check) -> None:
    findings = diagnosed(check.module.healthy())
    assert not named(findings, check)
    assert [f.check for f in findings if f.severity is not Severity.ADVICE] == []


@pytest.mark.parametrize(("check", "name"), CURES, ids=lambda x: x if isinstance(x, str) else x.name)
def test_remedy_cures(check: Check, name: str) -> None:
    subject = check.module.sick()
    own = named(diagnosed(subject), check)
    remedies = [remedy for finding in own for remedy in finding.remedies if remedy.name == name]
    acting = [remedy for remedy in remedies if remedy.action is not None]
    if not acting:  # a remedy in words, or for another form of the fault: it must say what to change
        assert all(remedy.patch and remedy.cost for remedy in remedies)
        return
    if isinstance(subject, Program):
        cured = rehearse(subject.train, fix=True)
        assert any(remedy.name == name for _, remedy in cured.applied)
        assert cured.after is not None
        assert not named(list(cured.after.findings), check)
        return
    for remedy in acting:
        remedy.apply()
    assert not named(diagnosed(subject), check)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_a_remedy_that_acts_stands_first(check: Check) -> None:
    own = named(diagnosed(check.module.sick()), check)
    assert own[0].remedy is not None
    assert own[0].remedy.patch
