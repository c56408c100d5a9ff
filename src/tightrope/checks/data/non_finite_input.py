"""`non-finite-input`: data that hold NaN or infinity before any operation has touched them.

Law       a weight's result is a sum over all features: one NaN among them makes every unit of the sample NaN, the loss
          is an average over samples, and its gradient reaches every parameter. One missing entry in one batch ends the
          training for good.
Evidence  number and place of the non-finite elements in what comes from outside, where an operation makes a non-finite
          result of it; the inputs of the first steps, where the loss is not finite from that step on.
Verdict   `fault`, always: the check counts, it does not estimate.
Remedy    take what is missing as the feature's mean on the training data (`impute`); leave out samples whose target is
          missing (`drop-missing`).
Limits    data whose gaps the program finds and fills itself are fine, and so is the minus infinity of a mask. Of steps
          that are not recorded a part of each batch is looked at, so that single gaps are seen there by their effect
          alone (`non-finite`).
References  Little and Rubin (2019), Statistical analysis with missing data; Goldberg (1991), What every computer
          scientist should know about floating-point arithmetic, ACM Comput. Surv. 23.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from tightrope.checks.echoes import AFTERMATH
from tightrope.checks.numerics.non_finite import spoilt_data
from tightrope.finding import Evidence, Finding, Severity
from tightrope.study import Study
from tightrope.subject import Subject
from tightrope.tape.sampler import LOSSES, Sample
from tightrope.tape.tape import Entry

STAGE = "run"
EXPLAINS = AFTERMATH
REMEDIES = ("impute", "drop-missing")


def judge(study: Study) -> Iterator[Finding]:
    """A finding for the first data that are not finite: of the recorded step, else of the steps before it."""
    spoilt = spoilt_data(study.tape, study.measurement)
    if spoilt is not None:
        yield _finding(study, *spoilt)
    elif any(units.nonfinite for units in study.measurement.units.values()):
        yield from _earlier(study)


def _finding(study: Study, number: int, reader: Entry) -> Finding:
    value, units = study.tape.values[number], study.measurement.units[number]
    size = math.prod(value.shape)
    name = value.name or ("the target" if is_target(reader, number) else "the input")
    return Finding(
        "non-finite-input", Severity.FAULT, reader.module, str(reader.location),
        f"{name}: {units.nonfinite} of its {size} numbers are not finite, the first at "
        f"{list(units.first_nonfinite or ())}",
        (Evidence("non-finite elements", units.nonfinite, 0.0), Evidence("share of all", units.nonfinite / size, 0.0)),
        modules=(reader.module,),
    )  # fmt: skip


def is_target(reader: Entry, number: int) -> bool:
    """Whether a loss reads a value as its target."""
    return reader.op in LOSSES and bool(reader.inputs) and reader.inputs[0] != number


def _earlier(study: Study) -> Iterator[Finding]:
    """Inputs of earlier steps, where the loss was not finite from that step on."""
    if study.batches is None or study.history is None:
        return
    lost = [step for step, losses in study.history.losses.items() if not all(map(math.isfinite, losses))]
    for stream in (*study.batches.inputs, *study.batches.targets):
        for sample in stream.samples:
            bad = _count(sample)
            if bad and sample.step in lost:
                name = "the target" if stream in study.batches.targets else "the input"
                entry = next((e for e in study.tape.entries if e.location == stream.place.location), None)
                yield Finding(
                    "non-finite-input", Severity.FAULT, entry.module if entry else "", str(stream.place.location),
                    f"{name} of step {sample.step}: {bad} of the {sample.rows.numel()} numbers looked at are not "
                    f"finite; the loss is lost from there on",
                    (Evidence("non-finite elements", bad, 0.0),),
                )  # fmt: skip
                return


def _count(sample: Sample) -> int:
    return int((~torch.isfinite(sample.rows)).sum()) if sample.rows.is_floating_point() else 0


def sick() -> Subject:
    """A table with missing entries."""
    return _net(math.nan)


def healthy() -> Subject:
    """The same table with zeros in their place."""
    return _net(0.0)


def _net(missing: float) -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    x = torch.randn(64, 8)
    target = x[:, :1].clone()
    x[::9, 3] = missing
    return Subject(model, (x, target), nn.functional.mse_loss)
