"""Listens to the training steps of a script: some are recorded, and judged while their weights are in place."""

from __future__ import annotations

import functools
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch.optim.optimizer import Optimizer

from tightrope.evaluation import Evaluations
from tightrope.finding import Finding
from tightrope.isolation import raised_at, undisturbed
from tightrope.measure.follower import Follower
from tightrope.measure.measurement import Meter
from tightrope.repair import Repair
from tightrope.tape import stack
from tightrope.tape.loaders import Loaders
from tightrope.tape.recorder import Recorder
from tightrope.tape.sampler import Sampler
from tightrope.tape.source import UNKNOWN, locate
from tightrope.tape.steps import Steps
from tightrope.tape.tape import Tape
from tightrope.watch import children
from tightrope.watch.guard import Guard
from tightrope.watch.judge import Judge, Pass
from tightrope.watch.mender import Mender

STUDIED = 4
"""Backward passes of one step that are studied, when their calls differ (generator and discriminator)."""
SEEN = 8
"""Backward passes of one step after which nothing more of it is recorded (accumulated gradients)."""


@dataclass(eq=False)
class Watcher:
    """The listener of `Steps`: decides what is recorded and keeps what was learnt.

    Args:
        record: numbers of the steps to record; 1 is the first.
        fix: apply safe remedies in memory: all in the first steps, later those that spare what was learnt.
        say: is given a line for the user.

    Attributes:
        repair: what was applied with `fix`.
        steps: number of steps that have ended.
        notes: sentences that a reader of the report must know.
        failure: what ended the observation.
    """

    record: frozenset[int]
    fix: bool = False
    say: Callable[[str], None] = lambda line: None
    repair: Repair = field(default_factory=Repair)
    steps: int = 0
    notes: list[str] = field(default_factory=list)
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
        self._alarm = self._compiled = False
        self._signatures: set[tuple[tuple[str, str], ...]] = set()
        self._seen = 0
        self._since = 0  # passes studied before the last update
        self._judge = Judge(
            self.clock.optimizers, self._follower, self._sampler, self._loaders, self._evaluations
        )  # fmt: skip
        self._guard = Guard()
        self._backward = UNKNOWN  # where the loss that is not finite was differentiated
        self._mender = Mender(self._judge, self.repair)
        if self.fix and self.record:  # what an update shows is known after the first, what two show after the second
            self.record |= {min(self.record) + 1}

    def __enter__(self) -> Watcher:
        children.guard(self)
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
        children.release(self)
        self._sampler.stop()
        self._open.close()
        self._end()
        self._guard.calls.stop()

    def leave_child(self) -> None:
        """In a process that the script forked (a loader's worker) nothing is watched."""
        self.record, self.fix = frozenset(), False
        self._guard.calls.stop()
        self._sampler.stop()
        self._follower.look(recording=False, glancing=False)
        self._evaluations.disarm()
        if self._recorder is not None:
            self._recorder.muted = True
            self._recorder.__exit__(None, None, None)
            self._recorder = None

    @property
    def passes(self) -> list[Pass]:
        """What was studied, oldest first."""
        return self._judge.passes

    @property
    def caught(self) -> list[Finding]:
        """What was found in steps that were not recorded."""
        return self._judge.caught

    @property
    def seconds(self) -> float:
        """Time spent on judging, outside the script's own calls."""
        return self._judge.seconds

    @property
    def repaired(self) -> tuple[int, ...]:
        """Steps whose update was replaced by remedies, or taken back for them."""
        return tuple(self._judge.restarts)

    # -- what `Steps` tells ----------------------------------------------------------------------

    def watching(self) -> bool:
        if self._guard.replaying:
            return False
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
        self._guard.clipped(norm)

    def on_scaled(self, scaler: Any, *, skipped: bool, unscaled: bool) -> None:
        self._follower.scaled(scaler, skipped=skipped, unscaled=unscaled)

    def on_update(self, last: bool, optimizer: Optimizer | None, closure: bool) -> bool:
        self._tidy()
        self._suspended = self._recorder is not None and self._recorder.suspend()
        self._sampler.suspend()
        if optimizer is not None:
            with self._aside(), torch.no_grad():
                self._follower.before_update(optimizer, closure)
        if self._recorder is None and not self._alarm and self.failure is None:
            with self._aside():
                self._test(optimizer if not closure else None)
        # Before the last update of a step no graph is waiting for the weights as they were.
        if last and self._mends and self._mender.replace_update(self.steps + 1):
            return True
        if self.fix and self._recorder is not None:
            with self._aside():
                self._mender.remember()
        return False

    @property
    def _mends(self) -> bool:
        return self.fix and self.failure is None

    @contextmanager
    def during_update(self) -> Iterator[None]:
        if self._recorder is None or not self._suspended:
            yield
            return
        self._recorder.resume()
        try:
            yield
        finally:
            self._recorder.suspend()

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
        self._guard.next_step()
        recorded = self.steps + 1 in self.record
        ahead = self._judge.hold_back(self._since, self.steps + 1, recorded=recorded) if late else False
        if self._recorder is not None:
            self._end()
        self._since = len(self.passes)
        begins = (recorded and not ahead) or self.steps in self.repaired[-1:]  # what became of a repair
        self._follow(begins)
        if begins:
            self._begin()
        self._sample()

    def on_loss(self, value: float) -> None:
        self._judge.note_loss(self.steps + 1, value)
        if not math.isfinite(value) and self._guard.loss is None and self._recorder is None and not self._alarm:
            self._guard.loss, self._backward = value, locate(sys._getframe(1))

    def _test(self, optimizer: Optimizer | None) -> None:
        """Before an update of an ordinary step: are the loss and the gradients finite, and if not, since which call?"""
        if self._guard.loss is None and (optimizer is None or not self._guard.spoilt(optimizer)):
            return
        with undisturbed():
            found = self._judge.examine(self._guard, self.steps + 1, str(self._backward))
        self._guard.loss = None
        if found is None:
            return
        self._alarm = True
        self.notes.append(found[0])
        if not found[1]:
            self.record |= {self.steps + 2}

    # -- recording -------------------------------------------------------------------------------

    def _follow(self, begins: bool) -> None:
        """Whether gradients are cleared is seen in a recorded step and the one before it, and in the first two."""
        number = self.steps + 1
        self._follower.step = number
        near = number <= 2 or number in self.record or number + 1 in self.record
        self._follower.look(recording=begins, glancing=near and self.failure is None)

    def _begin(self) -> None:
        if self.failure is not None:
            return
        self._meter = Meter()
        self._guard.calls.stop()
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
            self._guard.calls.stop()
            self._compiled = True
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
        if self._judge.restarted < self.steps:  # else the remedies took the update's place
            self._judge_update(recorder)
        if not self._compiled and self.failure is None:
            self._guard.follow({root: recorder.modules.paths[root] for root in recorder.modules.roots})
        self._evaluations.arm()
        self._announce()

    def _judge_update(self, recorder: Recorder) -> None:
        """The recorded step's update is made: what it did, what that shows, and what is to be done about it."""
        with self._aside(), torch.no_grad():
            self._judge.see_update(recorder, self.steps)
        self._judge_run()
        if self._mends:
            with self._aside():
                self._mender.take_back(self.steps)

    def _judge_run(self, *, ended: bool = False) -> None:
        with self._aside(), undisturbed():
            self._judge.judge_run(self.steps, ended=ended)

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
            self._study_pass(tape)
        if self._seen >= SEEN and self._recorder is not None:
            self._recorder.muted = True

    def _study_pass(self, tape: Tape) -> None:
        assert self._recorder is not None
        with undisturbed(), self._paused():
            self._judge.study(tape, self._recorder, self._meter, self.steps + 1)

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """What checks run again is no part of the recorded step."""
        assert self._recorder is not None
        modules, self._recorder.modules.paused = self._recorder.modules, True
        try:
            yield
        finally:
            modules.paused = False

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """A failure inside observation is told once and does not stop training."""
        try:
            yield
        except Exception as error:
            self._step_aside(error)

    def _step_aside(self, error: Exception) -> None:
        self.failure = error
        self._evaluations.disarm()
        self._guard.calls.stop()
        text = str(error).splitlines()[0] if str(error) else ""
        where = raised_at(error)
        what = f"{type(error).__name__}: {text} ({where})"
        self.notes.append(f"Observation stopped at step {self.steps + 1}: {what}.")
        self.say(f"observation stopped at step {self.steps + 1}, training goes on: {what}")

    def finish(self, ended_badly: bool) -> None:
        """The script has ended: a step that it left half done is studied as far as it went."""
        self._evaluations.close()
        recorder = self._recorder
        if recorder is None and self.failure is None and not self._alarm and self._guard.loss is not None:
            with self._aside():
                self._test(None)
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
            with recorder._guarded():
                self._study_pass(tape)

    def _announce(self) -> None:
        fresh = [p for p in self.passes if p.study.step in (self.steps, self.steps + 1)][-STUDIED:]
        if (line := self._judge.announce(fresh, self.notes)) is not None:
            self.say(line)
