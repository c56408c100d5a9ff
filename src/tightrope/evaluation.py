"""What a script does when it evaluates: one forward pass without gradient, recorded with what its output meets."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from tightrope.isolation import force_eager
from tightrope.measure.measurement import Measurement, Meter
from tightrope.tape.modules import has_parameters
from tightrope.tape.recorder import Recorder
from tightrope.tape.regions import Regions
from tightrope.tape.source import Location
from tightrope.tape.tape import Entry, Kind, Tape

CALLS = 4
"""Calls of models in one region that are recorded."""
LOSSES = frozenset((
    "cross_entropy", "nll_loss", "binary_cross_entropy_with_logits", "binary_cross_entropy", "mse_loss", "l1_loss",
    "smooth_l1_loss", "huber_loss", "kl_div", "soft_margin_loss", "multi_margin_loss", "poisson_nll_loss",
    "multilabel_margin_loss", "multilabel_soft_margin_loss", "hinge_embedding_loss", "gaussian_nll_loss", "ctc_loss",
))  # fmt: skip
"""Functions of an output and its labels."""
FUSED = (nn.TransformerEncoderLayer, nn.MultiheadAttention)
"""Modules that compute in another order of operations where they are seen: their evaluation is left alone."""
COMPARISONS = frozenset(("eq", "ne"))
ERRORS = frozenset(("abs", "square", "pow", "norm"))
"""What makes an error of a difference."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation pass of a script.

    Attributes:
        step: number of training steps that had ended.
        tape: the calls of the models, and what was done with their outputs; modules carry the modes they ran in.
        measurement: laws of its values.
        roots: the models that were called, by name.
        labels: the operation in which an output met labels; None when it met none.
        location: where the first model was called.
    """

    step: int
    tape: Tape
    measurement: Measurement
    roots: dict[str, nn.Module]
    labels: str | None
    location: Location


class Evaluations:
    """Context manager that records one evaluation pass after each call of `arm`, at no cost to ordinary steps.

    Args:
        steps: gives the number of training steps that have ended, None while a step is being recorded.
        on_failure: is told of an exception in the observation.

    Attributes:
        latest: the evaluation that was recorded last.
    """

    def __init__(self, steps: Callable[[], int | None], on_failure: Callable[[Exception], None]) -> None:
        self.steps, self.on_failure = steps, on_failure
        self.latest: Evaluation | None = None
        self._step = 0
        self._regions = Regions(self._begin, self._end)
        self._recorder: _Evaluating | None = None
        self._eager: AbstractContextManager[None] | None = None
        self._open = ExitStack()

    def __enter__(self) -> Evaluations:
        self._open.enter_context(self._regions)
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()

    def arm(self) -> None:
        """Record the next evaluation."""
        self._regions.armed = True

    def disarm(self) -> None:
        """Look for none any more."""
        self._regions.armed = False

    def close(self) -> None:
        """The script has ended: so has the evaluation that it was in."""
        self._regions.close()

    def on_training(self) -> None:
        """A backward pass is about to start: what ran in evaluation mode before it was trained."""
        if self._recorder is not None and torch.is_grad_enabled():
            self._recorder.trains = True
            self._regions.close()

    def _begin(self) -> bool:
        step = self.steps()
        if step is None:
            return False
        self._step = step
        self._eager = force_eager()
        self._eager.__enter__()
        self._recorder = _Evaluating(self.on_failure)
        self._recorder.__enter__()
        return True

    def _end(self) -> bool:
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return False
        recorder.muted = True
        recorder.__exit__(None, None, None)
        if self._eager is not None:
            self._eager.__exit__(None, None, None)
        found = None
        with recorder._guarded():
            found = recorder.evaluation(self._step)
        if found is not None:
            self.latest, self._regions.armed = found, False
        return found is not None


class _Evaluating(Recorder):
    """Records the first calls of models in a region, and what is computed from their outputs."""

    def __init__(self, on_failure: Callable[[Exception], None]) -> None:
        self.meter = Meter()
        super().__init__(self.meter, on_failure=on_failure)
        self.trains = False
        self._outside: set[int] = set()
        self._calls = 0

    def _on_root(self, args: Any) -> int:
        self._calls += 1
        parts = (part for root in self.modules.roots for part in root.modules())
        if any(isinstance(part, FUSED) for part in parts):
            self.suspend()
            self.muted = self.modules.paused = True
        elif self._calls > CALLS or (self._calls > 1 and self._labels() is not None):
            self.muted = self.modules.paused = True
        if self.muted:
            return self._next
        return super()._on_root(args)

    def _relevant(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if self.modules.stack:
            return True
        held = (self._known.get(id(t)) for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor))
        return any(h is not None and h[0]() is not None and self._is_result(h[1]) for h in held)

    def _is_result(self, number: int) -> bool:
        value = self.tape.values.get(number)
        return value is not None and value.producer is not None

    def _append(self, *call: Any) -> None:
        if not self.modules.stack:
            self._outside.add(self._next)
        super()._append(*call)

    def evaluation(self, step: int) -> Evaluation | None:
        """What was seen; None when no model was called, or when the pass was trained."""
        roots = {self.modules.paths[root]: root for root in self.modules.roots if has_parameters(root)}
        inside = [entry for entry in self.tape.entries if entry.index not in self._outside]
        if not roots or not inside or (self.trains and inside[0].grad):
            return None
        measurement = self.meter.measurement(self.tape)
        return Evaluation(step, self.tape, measurement, roots, self._labels(), inside[0].location)

    def _labels(self) -> str | None:
        """The operation in which an output met labels."""
        for entry in self.tape.entries:
            if entry.index not in self._outside or not self._meets_labels(entry):
                continue
            if entry.op in LOSSES | COMPARISONS:
                return entry.op
            if entry.op == "sub" and any(e.op in ERRORS and e.inputs[0] in entry.outputs for e in self.tape.entries):
                return entry.op
        return None

    def _meets_labels(self, entry: Entry) -> bool:
        """Whether a call brings an output together with a tensor of its size that comes from elsewhere."""
        values = [self.tape.values[n] for n in entry.inputs]
        made = [v for v in values if v.producer is not None]
        others = [v for v in values if v.producer is None and v.kind in (Kind.INPUT, Kind.KNOWN) and v.shape]
        return any(m.shape[:1] == o.shape[:1] for m in made for o in others)


__all__ = ["Evaluation", "Evaluations"]
