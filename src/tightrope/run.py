"""`run`: any training script, not a line of it changed; its steps are found, some recorded, and a report made."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from tightrope.diagnose import merge
from tightrope.errors import InputError
from tightrope.finding import Finding, Remedy
from tightrope.report.model import Report, make_report
from tightrope.tape.modules import remember_construction
from tightrope.tape.script import Outcome, run_module, run_script
from tightrope.watch.judge import Pass
from tightrope.watch.watcher import Watcher

RECORD = (1, 10, 100)
"""Steps that are recorded unless others are named: the start, and two that show where training goes."""


@dataclass(frozen=True)
class Run:
    """What came of watching a script.

    Attributes:
        outcome: how the script ended.
        report: of the recorded steps; with remedies applied, of those before. None when no step was recorded.
        after: with remedies applied, the report of the recorded steps after them.
        applied: the remedies that were applied in memory, each with its finding.
    """

    outcome: Outcome
    report: Report | None
    after: Report | None = None
    applied: tuple[tuple[Finding, Remedy], ...] = ()

    @property
    def code(self) -> int:
        """Exit code: the script's own when it is not 0, else 1 for findings, 0 for none."""
        if self.outcome.code:
            return self.outcome.code
        last = self.after or self.report
        return 0 if last is None or last.healthy else 1


def run(
    target: str,
    arguments: Sequence[str] = (),
    *,
    module: bool = False,
    record: Iterable[int] = RECORD,
    fix: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Run:
    """Run a training script in this process and study the steps that it makes.

    Args:
        target: path of the script, or name of the module.
        arguments: what the script finds in `sys.argv[1:]`.
        module: whether `target` names a module.
        record: numbers of the steps to record; 1 is the first.
        fix: apply safe remedies in memory and let training go on: all of them in the first steps, later those that
            spare what was learnt.
        say: is given a line for the user now and then.

    Raises:
        InputError: there is no such script, or it ended well and no step of it could be recorded; a repair was asked
            for in one of several processes.
    """
    rank, ranks = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if fix and ranks > 1:
        found = f"it runs in {ranks} processes, whose weights would no longer be equal"
        raise InputError(f"repair {target} while it trains", found, "Use --fix in one process, or change the source")
    if rank:  # the first process speaks for all
        return Run((run_module if module else run_script)(target, arguments), None)
    name = target if module else os.path.basename(target)
    command = " ".join(["tightrope run", *(["-m"] if module else []), target, *arguments])
    body = partial(run_module if module else run_script, target, arguments)
    return _watched(body, Watcher(frozenset(record), fix, say), name, command)


def rehearse(train: Callable[[], None], *, record: Iterable[int] = RECORD, fix: bool = False) -> Run:
    """Watch a training loop that is a function, as `run` watches a script; what it raises is raised.

    Args:
        train: builds its model and data and makes its steps.
        record, fix: as for `run`.

    Raises:
        InputError: no step of it could be recorded.
    """

    def body() -> Outcome:
        train()
        return Outcome()

    return _watched(body, Watcher(frozenset(record), fix), getattr(train, "__name__", "train"), "")


def _watched(body: Callable[[], Outcome], watcher: Watcher, name: str, command: str) -> Run:
    begin = time.perf_counter()
    with remember_construction(), watcher:
        outcome = body()
        watcher.finish(ended_badly=outcome.error is not None)
    if not watcher.passes:
        _explain(name, watcher, outcome)
        return Run(outcome, None)
    if outcome.error is not None:
        watcher.notes.append(f"The script ended with {outcome.error}, after {watcher.steps} steps.")
    watcher.notes += watcher.repair.failed
    before, after = _parted(watcher)

    last = watcher.repaired[-1] if after else 0

    def report(passes: Sequence[Pass]) -> Report:
        caught = [f for f in watcher.caught if (f.step > last) == (passes is after or not after)]
        passes = _widest_first(passes)
        findings = merge([*(finding for p in passes for finding in p.findings), *caught])
        facts = {"command": command, "seconds": watcher.seconds, "notes": tuple(dict.fromkeys(watcher.notes))}
        return make_report([p.study for p in passes], title=name, findings=findings, **facts)

    watcher.say(f"script ended after {watcher.steps} steps and {time.perf_counter() - begin:.1f} s")
    return Run(outcome, report(before), report(after) if after else None, tuple(watcher.repair.applied))


def _parted(watcher: Watcher) -> tuple[list[Pass], list[Pass]]:
    """What was studied before the remedies were applied, and after the last of them."""
    if not watcher.repair.applied:
        return watcher.passes, []
    first, last = watcher.passes[0].study.step, watcher.repaired[-1]
    return (
        [p for p in watcher.passes if p.study.step == first or p.study.step in watcher.repaired],
        [p for p in watcher.passes if p.study.step > last],
    )


def _widest_first(passes: Sequence[Pass]) -> list[Pass]:
    """The pass that shows most of the first recorded step stands for it: the generator's runs through both networks."""
    widest = max((p for p in passes if p.study.step == passes[0].study.step), key=lambda p: len(p.study.tape.entries))
    return [widest, *(p for p in passes if p is not widest)]


def _explain(name: str, watcher: Watcher, outcome: Outcome) -> None:
    """Why there is nothing to report; an error unless the script itself ended badly."""
    if watcher.steps:
        wanted = ", ".join(map(str, sorted(watcher.record)))
        found, remedy = f"it made {watcher.steps} steps, none of them is number {wanted}", "Name others with --record"
    else:
        found = "no training step was seen: no backward pass, no optimizer step in this process"
        remedy = "Name the script that trains; processes that it starts are not watched"
    if watcher.failure is not None:
        found, remedy = "observation failed", "See the message above; the script itself was not touched"
    if outcome.code:
        watcher.say(f"nothing recorded: {found}")
        return
    raise InputError(f"run {name}", found, remedy)
