"""Judges the backward passes of recorded steps: each at once, what its update did later, the run at its end."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from torch.optim.optimizer import Optimizer

from tightrope.diagnose import diagnose, order
from tightrope.evaluation import Evaluations
from tightrope.finding import Evidence, Finding, Severity
from tightrope.measure.batches import gather
from tightrope.measure.follower import Follower
from tightrope.measure.measurement import Meter
from tightrope.predict import forecast
from tightrope.replay import Replay
from tightrope.study import History, Models, Optimizers, Study
from tightrope.tape.loaders import Loaders
from tightrope.tape.recorder import Recorder
from tightrope.tape.sampler import Sampler
from tightrope.tape.tape import Tape
from tightrope.watch.guard import Guard

NUMERICAL = frozenset((
    "non-finite", "non-finite-input", "naive-log", "naive-softmax", "half-precision-overflow", "hidden-by-mask",
))  # fmt: skip
"""What is asked of a step whose numbers were lost: why they were."""


@dataclass(frozen=True)
class Pass:
    """One studied backward pass and what was found in it at that moment."""

    study: Study
    findings: tuple[Finding, ...]


@dataclass(eq=False)
class Judge:
    """Makes a study of every pass that it is given, and asks the checks.

    Args:
        optimizers: those of the script, as far as they are known.
        follower, sampler, loaders, evaluations: what was seen beside the recorded calls.

    Attributes:
        passes: what was studied, oldest first.
        caught: what was found in steps that were not recorded.
        losses: of each step, by its number.
        restarts: steps whose update remedies took the place of, in order: training begins anew after them.
        untrained: the last step after which the weights were the first ones again; 0 for none.
        seconds: spent so far.
    """

    optimizers: Iterable[Optimizer]
    follower: Follower
    sampler: Sampler
    loaders: Loaders
    evaluations: Evaluations
    passes: list[Pass] = field(default_factory=list)
    caught: list[Finding] = field(default_factory=list)
    losses: dict[int, tuple[float, ...]] = field(default_factory=dict)
    restarts: list[int] = field(default_factory=list)
    untrained: int = 0
    seconds: float = 0.0

    @property
    def restarted(self) -> int:
        """The last step whose update was replaced by remedies; 0 when none was."""
        return self.restarts[-1] if self.restarts else 0

    def note_loss(self, step: int, value: float) -> None:
        """A backward pass of a step starts from this number."""
        self.losses[step] = (*self.losses.get(step, ()), value)

    def study(self, tape: Tape, recorder: Recorder, meter: Meter, step: int) -> None:
        """Judge a pass while the weights are those that it was made with."""
        begin = time.perf_counter()
        study = self._study_of(tape, recorder, meter, step)
        self.passes.append(Pass(study, self._findings(study, ("graph", "batch"))))
        study.forecast.states.clear()  # large, and of no use once the step is judged
        self.seconds += time.perf_counter() - begin

    def _study_of(self, tape: Tape, recorder: Recorder, meter: Meter, step: int) -> Study:
        modules, measured = recorder.modules, meter.measurement(tape)
        return Study.of(
            forecast(tape), replace(measured, loss=_own_loss(tape, meter, measured.loss)),
            models=Models({modules.paths[root]: root for root in modules.roots}),
            optimizers=Optimizers(tuple(self.optimizers)), step=step, replay=Replay.of(recorder, tape),
        )  # fmt: skip

    def examine(self, guard: Guard, step: int, place: str) -> tuple[str, bool] | None:
        """Find where the numbers of a step that is not recorded were lost, before its update is made.

        Args:
            guard: has the calls of the step and its loss.
            step: its number.
            place: line on which the loss was differentiated.

        Returns:
            A sentence on it, and whether the operation is known; None where a gradient scaler expects it.
        """
        begin, loss = time.perf_counter(), guard.loss
        what = f"the loss is {loss}" if loss is not None else "a gradient is not finite"
        made = guard.replay(backward=loss is None)
        first = self._trace(*made, guard, step) if made is not None else None
        self.seconds += time.perf_counter() - begin
        if first is not None:
            return f"At step {step} {what}: {first.summary} ({first.location}).", True
        if loss is not None and math.isinf(loss) and self.follower.scaling:
            return None  # a loss times its scale may overflow: the scaler leaves the step out
        if made is not None:
            summary = f"the models' outputs and parameters are finite and {what}: it is lost outside the modules"
            evidence = (Evidence("loss", loss if loss is not None else math.nan),)
            warned = next((f for p in reversed(self.passes) for f in p.findings if _unsafe(f)), None)
            if warned is not None:
                fact = f"{warned.summary}; now {what} though the models' outputs are finite"
                self.caught.append(replace(warned, severity=Severity.FAULT, summary=fact, step=step))
            self.caught.append(Finding("non-finite", Severity.FAULT, "", place, summary, evidence, step=step))
        return f"At step {step} {what}; the step after it was recorded.", False

    def _trace(self, tape: Tape, recorder: Recorder, meter: Meter, guard: Guard, step: int) -> Finding | None:
        """Judge calls that were made again because numbers were lost: where they were."""
        study = self._study_of(tape, recorder, meter, step)
        found = [f for f in diagnose([study], ("graph", "batch", "run")) if f.check in NUMERICAL]
        found = order([replace(self._told(f, study, guard), step=step) for f in found])
        first = next((f for f in found if f.check in ("non-finite", "non-finite-input")), None)
        self.caught += found if first is not None else []
        return first

    def _told(self, finding: Finding, study: Study, guard: Guard) -> Finding:
        """What the guard knows besides: parameters were looked at first, and the last update is remembered."""
        if finding.check != "non-finite":
            return finding
        if finding.index >= 0:
            return replace(finding, summary=f"{finding.summary}; all inputs and parameters are finite")
        leaves = {v.name: v.content for v in study.tape.values.values() if v.name is not None}
        name = finding.summary.removeprefix("parameter ").partition(":")[0]
        parameters = {n: p for root in study.models.roots.values() for n, p in root.named_parameters()}
        held = parameters.get(name) if name in parameters else leaves.get(name)
        return replace(finding, summary=finding.summary + guard.last_update(held))

    def of_step(self, step: int) -> list[Pass]:
        """The passes of one step."""
        return [p for p in self.passes if p.study.step == step]

    def see_update(self, recorder: Recorder, step: int) -> None:
        """The recorded step's update is made: keep what it did."""
        updates = self.follower.updates(recorder)
        for n, p in enumerate(self.passes):
            if p.study.step == step:
                self.passes[n] = Pass(replace(p.study, updates=updates), p.findings)

    def judge_run(self, steps: int, *, ended: bool = False) -> None:
        """Judge what the updates of the last step, or the whole run, have shown."""
        begin = time.perf_counter()
        numbers = [n for n, p in enumerate(self.passes) if ended or p.study.step == steps]
        loader = self.loaders.latest
        batches = gather(self.sampler, loader, self.loaders.built(loader)) if numbers else None
        for n in numbers[-1:] if ended else numbers:
            earlier = tuple(p.study for p in self.passes[:n] if p.study.step > self.restarted)
            losses = {step: found for step, found in self.losses.items() if step > self.restarted}
            history = History(losses, earlier, steps, ended)
            updates = self.passes[n].study.updates
            updates = self.follower.refresh(updates) if updates is not None else None
            study = replace(
                self.passes[n].study, history=history, batches=batches, updates=updates,
                evaluation=self.evaluations.latest,
            )  # fmt: skip
            self.passes[n] = Pass(self.passes[n].study, self.passes[n].findings + self._findings(study, ("run",)))
        self.seconds += time.perf_counter() - begin

    def hold_back(self, since: int, step: int, *, recorded: bool) -> bool:
        """Passes from number `since` on turned out to be those of `step`; whether there are any that are kept."""
        later = self.passes[since:]
        del self.passes[since:]
        if not recorded or not later:
            return False
        self.passes += [Pass(replace(p.study, step=step), p.findings) for p in later]
        return True

    def announce(self, fresh: Sequence[Pass], notes: list[str]) -> str | None:
        """One line on the passes of a step; a loss that is not finite is put among the notes."""
        for found in fresh:
            loss = found.study.measurement.loss
            if loss is not None and not math.isfinite(loss):
                causes = [f for f in found.findings if f.check in ("non-finite-input", "non-finite")]
                source = next((f"; {f.summary} ({f.location})" for f in causes), "")
                notes.append(f"The loss is {loss} at step {found.study.step}{source}.")
        if not fresh:
            return None
        step, tensors = fresh[-1].study.step, sum(len(p.study.measurement.laws) for p in fresh)
        names = dict.fromkeys(f.check for p in fresh for f in p.findings if f.caused_by is None)
        return f"step {step} recorded, {tensors} tensors: {', '.join(names) if names else 'nothing found'}"

    def _findings(self, study: Study, stages: Sequence[str]) -> tuple[Finding, ...]:
        # A step that was spent on remedies trained nothing: the one after it is the first again.
        lost = self.untrained + sum(step > self.untrained for step in self.restarts)
        findings = diagnose([replace(study, step=study.step - lost)], stages)
        return tuple(replace(finding, step=study.step) for finding in findings)


def _unsafe(finding: Finding) -> bool:
    """Whether an operation of the script's own was found that may lose numbers."""
    return finding.check in ("naive-log", "naive-softmax", "half-precision-overflow") and not finding.module


def _own_loss(tape: Tape, meter: Meter, loss: float | None) -> float | None:
    """The script's loss, without the factor of a gradient scaler."""
    last = next((entry for entry in tape.entries if tape.loss in entry.outputs), None)
    if last is None or last.op != "mul" or len(last.inputs) != 2:
        return loss
    made = [n for n in last.inputs if tape.values[n].producer is not None and n in meter.losses]
    return meter.losses[made[0]] if len(made) == 1 else loss
