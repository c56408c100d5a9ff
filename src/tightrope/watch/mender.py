"""Applies safe remedies while a script trains, in place of an update or after one was taken back."""

from __future__ import annotations

from collections.abc import Sequence

from tightrope.diagnose import merge
from tightrope.finding import Finding
from tightrope.measure.snapshot import Snapshot
from tightrope.repair import Repair, safe_remedies
from tightrope.watch.judge import Judge


class Mender:
    """Repairs the first recorded step, then each step that follows a repair.

    Args:
        judge: has the passes and what was found in them; is told where training begins anew.
        repair: keeps what was applied.
    """

    def __init__(self, judge: Judge, repair: Repair) -> None:
        self.judge, self.repair = judge, repair
        self._considered = 0
        self._before: Snapshot | None = None

    def remember(self) -> None:
        """An update of a recorded step is about to be made: it may have to be taken back."""
        if self._before is None:
            self._before = Snapshot(self.judge.optimizers)

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
        """Take an update back whose effect calls for remedies, and apply them."""
        before, self._before = self._before, None
        fresh = merge([finding for p in self.judge.of_step(step) for finding in p.findings])
        if before is None or not safe_remedies(fresh):
            return
        state = Snapshot(self.judge.optimizers)
        before.restore()
        if not self._apply([fresh], step):
            state.restore()

    def _apply(self, fresh: Sequence[Sequence[Finding]], step: int) -> bool:
        """Apply what the findings of a step call for, if it is the first, follows it, or follows a repair."""
        if not fresh or step - (self.judge.restarted or self.judge.passes[0].study.step) > 1:
            return False
        self.repair.begin_round()
        if not sum(self.repair.apply(findings) for findings in fresh):
            return False
        self.judge.restarts.append(step)
        self.judge.follower.forget()
        return True
