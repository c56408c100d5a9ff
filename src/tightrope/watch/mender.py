"""Applies safe remedies while a script trains, in place of an update or after one was taken back."""

from __future__ import annotations

from collections.abc import Sequence

from tightrope.diagnose import merge
from tightrope.finding import Finding
from tightrope.measure.snapshot import Snapshot
from tightrope.repair import Repair
from tightrope.watch.judge import Judge


class Mender:
    """Repairs the first recorded steps and those that follow a repair; later ones as far as that spares the learnt.

    Args:
        judge: has the passes and what was found in them; is told where training begins anew.
        repair: keeps what was applied.
    """

    def __init__(self, judge: Judge, repair: Repair) -> None:
        self.judge, self.repair = judge, repair
        self._considered = 0
        self._before: Snapshot | None = None
        self._start: Snapshot | None = None  # of the first update since the last repair
        self._early = 0  # the last repair of the first steps, or with which training started again

    def remember(self) -> None:
        """An update of a recorded step is about to be made: it may have to be taken back."""
        if self._before is None:
            self._before = self._snapshot()
            self._start = self._start or self._before

    def replace_update(self, step: int) -> bool:
        """Apply the safe remedies that the passes of a step call for, in place of its update.

        Returns:
            Whether the update is to be left out: the gradients are of weights that are no longer there.
        """
        fresh, self._considered = self.judge.passes[self._considered :], len(self.judge.passes)
        if not self._apply([found.findings for found in fresh], step):
            return False
        for root in fresh[-1].study.models.roots.values():
            for parameter in root.parameters():
                if parameter.grad is not None:
                    parameter.grad.detach().zero_()
        return True

    def take_back(self, step: int) -> None:
        """Take an update back whose effect calls for remedies, and apply them.

        Where one of them says that what was learnt is lost, the first weights come back in place of the last.
        """
        before, self._before = self._before, None
        fresh = merge([finding for p in self.judge.of_step(step) for finding in p.findings])
        self.repair.begin_round()
        chosen = self.repair.chosen(fresh, late=self._late(step))
        if before is None or self._start is None or not chosen:
            return
        again = any(remedy.restart for _, remedy in chosen)
        state = self._snapshot()
        (self._start if again else before).restore()
        if not self._apply([fresh], step, again=again):
            state.restore()

    def _late(self, step: int) -> bool:
        """Whether training has gone on for longer than the step after the first, or after a repair of its start."""
        return step - (self._early or self.judge.passes[0].study.step) > 1

    def _apply(self, fresh: Sequence[Sequence[Finding]], step: int, *, again: bool = False) -> bool:
        """Apply what the findings of a step call for: all of it in the first steps, later what spares the learnt."""
        if not fresh:
            return False
        late = self._late(step) and not again
        self.repair.begin_round()
        if not sum(self.repair.apply(findings, late=late) for findings in fresh):
            return False
        self.judge.restarts.append(step)
        self.judge.untrained = step if again else self.judge.untrained
        self._early = self._early if late else step
        self._start = None
        self.judge.follower.forget()
        return True

    def _snapshot(self) -> Snapshot:
        roots = self.judge.passes[-1].study.models.roots.values() if self.judge.passes else ()
        return Snapshot(self.judge.optimizers, roots)
