"""`check`: predict, measure and diagnose one step of a model."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tightrope.inputs import arguments
from tightrope.loader import survey
from tightrope.measure.follower import trial
from tightrope.measure.measurement import Measurement, Meter
from tightrope.measure.updates import Updates
from tightrope.predict import forecast
from tightrope.replay import Replay
from tightrope.report.model import Report, make_report
from tightrope.step import record, scalar
from tightrope.study import Models, Optimizers, Study
from tightrope.subject import first_batch, split
from tightrope.tape.recorder import Recorder
from tightrope.tape.tape import Tape


def check(
    model: nn.Module,
    data: Any,
    *,
    loss: Callable[..., Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> Report:
    """Predict, measure and diagnose one training step; nothing is changed.

    Args:
        model: the model, in the mode it trains in.
        data: a batch or a loader; see `Subject`.
        loss: `loss(output, target)` or `loss(output)`; None for a model that returns its loss.
        optimizer: judged too when given.

    Raises:
        RecordError: the step could not be run.
        InputError: the model, batch or loss is no such thing.
    """
    begin = time.perf_counter()
    return make_report([study(model, data, loss=loss, optimizer=optimizer)], seconds=time.perf_counter() - begin)


def study(
    model: nn.Module,
    data: Any,
    *,
    loss: Callable[..., Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> Study:
    """Record one step and study it; the arguments are those of `check`."""
    inputs, with_target = split(first_batch(data), loss)
    args, kwargs = arguments(model, inputs, finite=False)  # a batch that is not finite is a finding
    meter = Meter()
    found: list[Measurement] = []
    tried: list[Updates | None] = []
    chance = torch.get_rng_state()

    def again() -> float:
        torch.set_rng_state(chance)  # the same units are dropped
        with torch.enable_grad():  # a model without a loss of its own is told by what asks for a gradient
            return float(scalar(model(*args, **kwargs), with_target).detach())

    def on_backward(tape: Tape) -> None:
        found.append(meter.measurement(tape))
        if optimizer is not None:
            recorder.muted = True
            tried.append(trial(optimizer, model.named_parameters(), again))

    recorder = Recorder(meter, roots={"": model}, on_backward=on_backward)
    record(model, args, kwargs, with_target, recorder)
    optimizers = Optimizers((optimizer,) if optimizer is not None else ())
    return Study.of(
        forecast(found[-1].tape), found[-1], models=Models({"": model}), optimizers=optimizers,
        batches=survey(data, loss), replay=Replay.of(recorder, found[-1].tape),
        updates=tried[-1] if tried else None,
    )  # fmt: skip


__all__ = ["check", "study"]
