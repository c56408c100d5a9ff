"""`fix`: diagnose one step of a model, apply the safe remedies to the live objects, diagnose again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tightrope.check import study
from tightrope.diagnose import diagnose
from tightrope.edit import diff
from tightrope.finding import Finding
from tightrope.isolation import undisturbed
from tightrope.repair import Applied, repair
from tightrope.report.model import Report, make_report


@dataclass(frozen=True)
class Fix:
    """What came of applying the safe remedies.

    Attributes:
        before, after: the reports of the same step before and after them.
        applied: each remedy with the finding that called for it, in order.
    """

    before: Report
    after: Report
    applied: tuple[Applied, ...]

    @property
    def diff(self) -> str:
        """The changes of the source that make the remedies permanent, as far as they are edits; a unified diff."""
        return diff(remedy.edit for _, remedy in self.applied if remedy.edit is not None)


def fix(
    model: nn.Module,
    data: Any,
    *,
    loss: Callable[..., Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    **facts: Any,
) -> Fix:
    """Diagnose one training step, apply the safe remedies to the model and the optimizer, and diagnose it again.

    Args:
        model, data, loss, optimizer: as for `check`; the model and the optimizer are changed in place.
        facts: title and command of the reports.

    Raises:
        RecordError: the step could not be run.
        InputError: the model, batch or loss is no such thing.
    """
    reports: list[Report] = []

    def diagnosed() -> list[Finding]:
        begin = time.perf_counter()
        with undisturbed():  # the same batches each time, so that what differs is the remedies' doing
            found = study(model, data, loss=loss, optimizer=optimizer)
            findings = diagnose([found])
        reports.append(make_report([found], findings=findings, seconds=time.perf_counter() - begin, **facts))
        return findings

    work = repair(diagnosed)
    return Fix(reports[0], reports[-1], tuple(work.applied))


__all__ = ["Fix", "fix"]
