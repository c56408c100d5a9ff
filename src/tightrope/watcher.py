"""Watches the training steps of a script: records some, studies each backward pass while its weights are in place."""

from __future__ import annotations

import functools
import math
import os
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch
from torch.optim.optimizer import Optimizer

from tightrope.diagnose import diagnose, merge
from tightrope.evaluation import Evaluations
from tightrope.finding import Finding
from tightrope.isolation import raised_at, undisturbed
from tightrope.measure.batches import gather
from tightrope.measure.follower import Follower
from tightrope.measure.measurement import Meter
from tightrope.measure.snapshot import Snapshot
from tightrope.predict import forecast
from tightrope.repair import Repair, safe_remedies
from tightrope.replay import Replay
from tightrope.study import History, Models, Optimizers, Study
from tightrope.tape import stack
from tightrope.tape.loaders import Loaders
from tightrope.tape.recorder import Recorder
from tightrope.tape.sampler import Sampler
from tightrope.tape.source import locate
from tightrope.tape.steps import Steps
from tightrope.tape.tape import Tape

STUDIED = 4
"""Backward passes of one step that are studied, when their calls differ (generator and discriminator)."""
SEEN = 8
"""Backward passes of one step after which nothing more of it is recorded (accumulated gradients)."""


@dataclass(frozen=True)
class Pass:
    """One studied backward pass and what was found in it at that moment."""

    study: Study
    findings: tuple[Finding, ...]


@dataclass(eq=False)
class Watcher:
    """The listener of `Steps`: decides what is recorded and keeps what was learnt.

    Args:
        record: numbers of the steps to record; 1 is the first.
        fix: apply the safe remedies of the first recorded step in memory.
        say: is given a line for the user.

    Attributes:
        passes: what was studied, oldest first.
        repair: what was applied with `fix`.
        steps: number of steps that have ended.
        notes: sentences that a reader of the report must know.
        seconds: spent on observation outside the script's own calls.
    """

    record: frozenset[int]
    fix: bool = False
    say: Callable[[str], None] = lambda line: None
    passes: list[Pass] = field(default_factory=list)
    repair: Repair = field(default_factory=Repair)
    steps: int = 0
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    failure: Exception | None = None

    def __post_init__(self) -> None:
        self.clock = Steps(self)
        self._follower = Follower(self.clock.optimizers)
        self._recorder: Recorder | None = None
        self._sampler = Sampler()
        self._loaders = Loaders()
        self._evaluations = Evaluations(lambda: self.steps if self._recorder is None else None, self._step_aside)
        self._meter = Meter()
        self._stale: list[Recorder] = []
        self._open = ExitStack()
        self._eager: Any = None
        self._suspended = False
        self._alarm = False
        self._signatures: set[tuple[tuple[str, str], ...]] = set()
        self._seen = 0
        self._since = 0  # passes studied before the last update
        self._considered = 0
        self._repairs: list[int] = []  # steps whose update was replaced by remedies
        self._losses: dict[int, tuple[float, ...]] = {}
        self._before: Snapshot | None = None
        if self.fix and self.record:  # what an update shows is known after the first, what two show after the second
            self.record |= {min(self.record) + 1}

    def __enter__(self) -> Watcher:
        _watching.add(self)
        self._open.enter_context(self.clock)
        self._open.enter_context(mock.patch.object(torch, "compile", self._compiler(torch.compile)))
        self._open.enter_context(self._loaders)
        self._follow(1 in self.record)
        self._open.enter_context(self._evaluations)
        if 1 in self.record:
            self._begin()
        else:
            self._sampler.resume()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        _watching.discard(self)
        self._sampler.stop()
        self._open.close()
        self._end()

    def leave_child(self) -> None:
        """In a process that the script forked (a loader's worker) nothing is watched."""
        self.record, self.fix = frozenset(), False
        self._sampler.stop()
        self._follower.look(recording=False, glancing=False)
        self._evaluations.disarm()
        if self._recorder is not None:
            self._recorder.muted = True
            self._recorder.__exit__(None, None, None)
            self._recorder = None

    @property
    def repaired(self) -> tuple[int, ...]:
        """Steps whose update was replaced by remedies, or taken back for them."""
        return tuple(self._repairs)

    @property
    def repaired_at(self) -> int:
        """The last step whose update was replaced by remedies; 0 when none was."""
        return self._repairs[-1] if self._repairs else 0

    # -- what `Steps` tells ----------------------------------------------------------------------

    def watching(self) -> bool:
        return self._recorder is None or stack.holds(self._recorder) or self._recorder.muted

    def on_built(self, optimizer: Optimizer) -> None:
        self._follower.built[optimizer] = locate(sys._getframe(1), skip=optimizer)

    def on_pass(self) -> None:
        self._evaluations.on_training()
        if self._follower.glancing:
            with self._aside(), torch.no_grad():
                self._follower.before_pass()

    def on_passed(self) -> None:
        if self._follower.glancing:
            with self._aside():
                self._follower.after_pass()

    def on_clip(self, limit: float, norm: Any) -> None:
        self._follower.clipped(limit, norm)

    def on_scaled(self, scaler: Any, *, skipped: bool, unscaled: bool) -> None:
        self._follower.scaled(scaler, skipped=skipped, unscaled=unscaled)

    def on_update(self, last: bool, optimizer: Optimizer | None, closure: bool) -> bool:
        self._tidy()
        self._suspended = self._recorder is not None and self._recorder.suspend()
        self._sampler.suspend()
        if optimizer is not None:
            with self._aside(), torch.no_grad():
                self._follower.before_update(optimizer, closure)
        # Before the last update of a step no graph is waiting for the weights as they were.
        if last and self._repaired():
            return True
        if self.fix and self._recorder is not None and self._before is None:
            with self._aside():
                self._before = Snapshot(self.clock.optimizers)
        return False

    @contextmanager
    def _resumed(self) -> Iterator[None]:
        if self._recorder is None or not self._suspended:
            yield
            return
        self._recorder.resume()
        try:
            yield
        finally:
            self._recorder.suspend()

    def during_update(self) -> AbstractContextManager[None]:
        return self._resumed()

    def on_updated(self, optimizer: Optimizer | None) -> None:
        if optimizer is not None:
            with self._aside(), torch.no_grad():
                self._follower.after_update(optimizer)
        self._since = len(self.passes)
        if self._recorder is not None and self._suspended:
            self._recorder.resume()
        self._suspended = False
        self._sample()

    def on_step(self, late: bool) -> None:
        self._tidy()
        self.steps += 1
        self._sampler.next_step()
        ahead = self._hold_back() if late else False
        if self._recorder is not None:
            self._end()
        self._since = len(self.passes)
        begins = (self.steps + 1 in self.record and not ahead) or self._due()
        self._follow(begins)
        if begins:
            self._begin()
        self._sample()

    def on_loss(self, value: float) -> None:
        number = self.steps + 1
        self._losses[number] = (*self._losses.get(number, ()), value)
        if math.isfinite(value) or self._alarm or self._recorder is not None:
            return
        self._alarm = True
        self.notes.append(f"The loss became {value} at step {self.steps + 1}; the step after it was recorded.")
        self.record |= {self.steps + 2}

    # -- recording -------------------------------------------------------------------------------

    def _follow(self, begins: bool) -> None:
        """Whether gradients are cleared is seen in a recorded step and the one before it, and in the first two."""
        number = self.steps + 1
        self._follower.step = number
        near = number <= 2 or number in self.record or number + 1 in self.record
        self._follower.look(recording=begins, glancing=near and self.failure is None)

    def _due(self) -> bool:
        """After a repair the next step shows what became of it."""
        return bool(self._repairs) and self.steps == self._repairs[-1]

    def _begin(self) -> None:
        if self.failure is not None:
            return
        self._meter = Meter()
        self._sampler.suspend()
        self._recorder = Recorder(
            self._meter, on_backward=self._study, on_failure=self._step_aside, skip_without_grad=True,
            on_call=self._sampler.look,
        )  # fmt: skip
        self._signatures.clear()
        self._seen = 0
        self._run_eagerly()
        self._recorder.__enter__()

    def _sample(self) -> None:
        """Between recorded steps the sampler sees the calls itself."""
        if self._recorder is None and self.failure is None:
            self._sampler.resume()

    def _run_eagerly(self) -> None:
        """Compiled code runs as plain Python while it is recorded, so that its calls are seen."""
        if self._eager is None and "torch._dynamo" in sys.modules:
            warnings.filterwarnings("ignore", message=r"Using `torch.compile\(module\)` when there are global hooks")
            self._eager = torch.compiler.set_stance("force_eager")

    def _compiler(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(plain)
        def compile(*args: Any, **kwargs: Any) -> Any:
            made = plain(*args, **kwargs)
            self._sampler.stop()  # compiled code is not to be traced with a mode of ours
            if self._recorder is not None:
                self._run_eagerly()
            return made

        return compile

    def _end(self) -> None:
        """Stop recording, wherever the script stands."""
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return
        recorder.muted = True
        recorder.__exit__(None, None, None)
        self._stale.append(recorder)  # inside a backward pass it is off the stack only for the moment
        if self._eager is not None:
            self._eager.__exit__(None, None, None)
            self._eager = None
        if self.repaired_at < self.steps:  # else the remedies took the update's place
            self._judge_update(recorder)
        self._evaluations.arm()
        self._announce()

    def _judge_update(self, recorder: Recorder) -> None:
        """The recorded step's update is made: what it did, what that shows, and what is to be done about it."""
        with self._aside(), torch.no_grad():
            updates = self._follower.updates(recorder)
            for n, p in enumerate(self.passes):
                if p.study.step == self.steps:
                    self.passes[n] = Pass(replace(p.study, updates=updates), p.findings)
        self._judge_run()
        self._take_back()

    def _tidy(self) -> None:
        for recorder in self._stale:
            recorder.suspend()
        self._stale.clear()

    def _study(self, tape: Tape) -> None:
        """A backward pass has ended and nothing is updated yet."""
        self._seen += 1
        signature = tuple((entry.op, entry.module) for entry in tape.entries)
        if signature not in self._signatures and len(self._signatures) < STUDIED:
            self._signatures.add(signature)
            with undisturbed(), self._paused():
                self.passes.append(self._judge(tape))
        if self._seen >= SEEN and self._recorder is not None:
            self._recorder.muted = True

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """What checks run again is no part of the recorded step."""
        assert self._recorder is not None
        modules, self._recorder.modules.paused = self._recorder.modules, True
        try:
            yield
        finally:
            modules.paused = False

    def _judge(self, tape: Tape) -> Pass:
        begin = time.perf_counter()
        assert self._recorder is not None
        modules = self._recorder.modules
        measured = self._meter.measurement(tape)
        study = Study.of(
            forecast(tape), replace(measured, loss=self._own_loss(tape, measured.loss)),
            models=Models({modules.paths[root]: root for root in modules.roots}),
            optimizers=Optimizers(tuple(self.clock.optimizers)), step=self.steps + 1,
            replay=Replay.of(self._recorder, tape),
        )  # fmt: skip
        found = Pass(study, self._findings(study, ("graph", "batch")))
        study.forecast.states.clear()  # large, and of no use once the step is judged
        self.seconds += time.perf_counter() - begin
        return found

    def _findings(self, study: Study, stages: Sequence[str]) -> tuple[Finding, ...]:
        # A step that was spent on remedies trained nothing: the one after it is the first again.
        findings = diagnose([replace(study, step=study.step - len(self._repairs))], stages)
        return tuple(replace(finding, step=study.step) for finding in findings)

    def _judge_run(self, *, ended: bool = False) -> None:
        """Judge what the updates of the last step, or the whole run, have shown."""
        begin = time.perf_counter()
        numbers = [n for n, p in enumerate(self.passes) if ended or p.study.step == self.steps]
        with self._aside(), undisturbed():
            loader = self._loaders.latest
            batches = gather(self._sampler, loader, self._loaders.built(loader)) if numbers else None
            for n in numbers[-1:] if ended else numbers:
                earlier = tuple(p.study for p in self.passes[:n] if p.study.step > self.repaired_at)
                losses = {step: found for step, found in self._losses.items() if step > self.repaired_at}
                history = History(losses, earlier, self.steps, ended)
                updates = self.passes[n].study.updates
                updates = self._follower.refresh(updates) if updates is not None else None
                study = replace(
                    self.passes[n].study, history=history, batches=batches, updates=updates,
                    evaluation=self._evaluations.latest,
                )  # fmt: skip
                self.passes[n] = Pass(self.passes[n].study, self.passes[n].findings + self._findings(study, ("run",)))
        self.seconds += time.perf_counter() - begin

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """A failure inside observation is told once and does not stop training."""
        try:
            yield
        except Exception as error:
            self._step_aside(error)

    def _own_loss(self, tape: Tape, loss: float | None) -> float | None:
        """The script's loss, without the factor of a gradient scaler."""
        last = next((entry for entry in tape.entries if tape.loss in entry.outputs), None)
        if last is None or last.op != "mul" or len(last.inputs) != 2:
            return loss
        made = [n for n in last.inputs if tape.values[n].producer is not None and n in self._meter.losses]
        return self._meter.losses[made[0]] if len(made) == 1 else loss

    def _hold_back(self) -> bool:
        """Passes that turned out to belong to the next step; whether that one is to be recorded."""
        number = self.steps + 1
        later = self.passes[self._since :]
        del self.passes[self._since :]
        if number not in self.record or not later:
            return False
        self.passes += [Pass(replace(p.study, step=number), p.findings) for p in later]
        return True

    def _step_aside(self, error: Exception) -> None:
        self.failure = error
        self._evaluations.disarm()
        text = str(error).splitlines()[0] if str(error) else ""
        where = raised_at(error)
        what = f"{type(error).__name__}: {text} ({where})"
        self.notes.append(f"Observation stopped at step {self.steps + 1}: {what}.")
        self.say(f"observation stopped at step {self.steps + 1}, training goes on: {what}")

    def finish(self, ended_badly: bool) -> None:
        """The script has ended: a step that it left half done is studied as far as it went."""
        self._evaluations.close()
        recorder = self._recorder
        if recorder is not None and self.failure is None:
            self._study_unfinished(recorder, ended_badly)
        if self.passes and self.failure is None:
            self._judge_run(ended=True)

    def _study_unfinished(self, recorder: Recorder, ended_badly: bool) -> None:
        tape = recorder.tape
        unfinished = not any(p.study.step == self.steps + 1 for p in self.passes)
        if unfinished and tape.entries and (ended_badly or not self.passes):
            tape.complete = False
            recorder.suspend()
            with recorder._guarded(), undisturbed(), self._paused():
                self.passes.append(self._judge(tape))

    def _announce(self) -> None:
        fresh = [p for p in self.passes if p.study.step in (self.steps, self.steps + 1)][-STUDIED:]
        for found in fresh:
            loss = found.study.measurement.loss
            if loss is not None and not math.isfinite(loss):
                causes = [f for f in found.findings if f.check in ("non-finite-input", "non-finite")]
                source = next((f"; {f.summary} ({f.location})" for f in causes), "")
                self.notes.append(f"The loss is {loss} at step {found.study.step}{source}.")
        if fresh:
            step, tensors = fresh[-1].study.step, sum(len(p.study.measurement.laws) for p in fresh)
            names = dict.fromkeys(f.check for p in fresh for f in p.findings if f.caused_by is None)
            self.say(f"step {step} recorded, {tensors} tensors: {', '.join(names) if names else 'nothing found'}")

    # -- repair ----------------------------------------------------------------------------------

    def _repaired(self) -> bool:
        """Apply the safe remedies of the first recorded step, and then of each step after a repair.

        Returns:
            Whether this step's update is to be left out: the gradients are of weights that are no longer there.
        """
        fresh, self._considered = self.passes[self._considered :], len(self.passes)
        if not self._repair([found.findings for found in fresh], self.steps + 1):
            return False
        for root in fresh[-1].study.models.roots.values():
            for parameter in root.parameters():
                if parameter.grad is not None:
                    parameter.grad.detach().zero_()
        return True

    def _repair(self, fresh: Sequence[Sequence[Finding]], number: int) -> bool:
        """Apply what the findings of a step call for, if it is the first, follows it, or follows a repair."""
        if not self.fix or not fresh or self.failure is not None:
            return False
        if number - (self.repaired_at if self._repairs else self.passes[0].study.step) > 1:
            return False
        self.repair.begin_round()
        if not sum(self.repair.apply(findings) for findings in fresh):
            return False
        self._repairs.append(number)
        self._follower.forget()
        return True

    def _take_back(self) -> None:
        """Take an update back whose effect calls for remedies, and apply them."""
        before, self._before = self._before, None
        fresh = merge([finding for p in self.passes if p.study.step == self.steps for finding in p.findings])
        if before is None or not safe_remedies(fresh):
            return
        state = Snapshot(self.clock.optimizers)
        with self._aside():
            before.restore()
            if not self._repair([fresh], self.steps):
                state.restore()


_watching: weakref.WeakSet[Watcher] = weakref.WeakSet()


def _in_child() -> None:
    for watcher in _watching:
        watcher.leave_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
