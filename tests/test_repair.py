"""Safe remedies are applied once, the data's first, and the weights' when all others are in place."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from tightrope.errors import InputError
from tightrope.finding import Finding, Remedy, Safety, Severity
from tightrope.repair import Repair, repair, safe_remedies
from tightrope.run import run

SCRIPTS = Path(__file__).parent / "scripts"


def finding(check: str, *remedies: Remedy, caused_by: str | None = None) -> Finding:
    return Finding(check, Severity.FAULT, "net", "train.py:1", "", remedies=remedies, caused_by=caused_by)


def remedy(name: str, done: list[str], safety: Safety = Safety.SAFE) -> Remedy:
    return Remedy(name, name, f"{name}()", "none", safety, lambda: done.append(name))


def test_only_safe_remedies_of_causes_are_chosen_and_each_once() -> None:
    done: list[str] = []
    risky, safe = remedy("swap", done, Safety.REVIEW), remedy("scale", done)
    findings = [
        finding("a", risky, safe),
        finding("b", remedy("scale", done)),
        finding("c", remedy("other", done), caused_by="a"),
        finding("d", risky),
    ]
    assert [(f.check, r.name) for f, r in safe_remedies(findings)] == [("a", "scale")]


def test_weights_are_solved_in_a_round_of_their_own() -> None:
    done: list[str] = []
    both = [finding("init", remedy("initialize", done)), finding("data", remedy("standardize", done))]
    work = repair(lambda: both)  # what persists is not treated twice
    assert done == ["standardize", "initialize"]
    assert [r.name for _, r in work.applied] == done


def test_a_remedy_that_fails_is_named_and_the_others_are_applied() -> None:
    done: list[str] = []

    def fail() -> None:
        raise ZeroDivisionError("no variance")

    broken = Remedy("broken", "broken", "broken()", "none", Safety.SAFE, fail)
    work = Repair()
    assert work.apply([finding("a", broken), finding("b", remedy("scale", done))]) == 1
    assert done == ["scale"]
    assert work.failed == ["broken could not be applied: ZeroDivisionError: no variance"]


def test_a_healthy_script_trains_on_as_if_nothing_had_been_asked() -> None:
    plain, fixed = io.StringIO(), io.StringIO()
    with redirect_stdout(plain):
        run(str(SCRIPTS / "mlp_dropout.py"), ["--steps", "4"])
    with redirect_stdout(fixed):
        found = run(str(SCRIPTS / "mlp_dropout.py"), ["--steps", "4"], fix=True)
    assert fixed.getvalue() == plain.getvalue()
    assert not found.applied and found.after is None


def test_a_repair_of_one_process_among_several_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="it runs in 2 processes"):
        run(str(SCRIPTS / "mlp_dropout.py"), fix=True)
    monkeypatch.setenv("RANK", "1")
    with redirect_stdout(io.StringIO()) as out:
        found = run(str(SCRIPTS / "mlp_dropout.py"), ["--steps", "2"])
    assert found.report is None and found.code == 0 and out.getvalue()
