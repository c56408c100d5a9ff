"""`loss-scale`: gradients clipped while they carry the loss scale, a scale that makes every step overflow, or none.

Law       mixed precision multiplies the loss by S so that small gradients stay above the smallest half-precision
          number, and divides by S before the update. A norm that is clipped to c before the division leaves a gradient
          of c / S. A step whose scaled gradients overflow is left out; with dynamic scaling S halves until they fit.
          Without a scale a gradient below 2^-25 = 3e-8 is 0 in float16, whose smallest number is 2^-24; rounding alone
          changes its rms by less than 2^-11.
Evidence  calls of clip_grad_norm_ before scaler.unscale_ while S is not 1; steps that the scaler left out; the rms of a
          gradient before and behind each call on float16.
Verdict   `fault` where clipping acts on scaled gradients; `fault` where half of 20 or more steps were left out; `fault`
          where a gradient within 16 times the smallest number is zero behind the next call, or a cast loses half of it.
Remedy    divide before clipping (`unscale-first`); a dynamic scale, or a smaller one; `torch.amp.GradScaler`.
Limits    judged in recorded steps; bfloat16 has the range of float32.
References  Micikevicius et al. (2018), Mixed precision training, ICLR.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from tightrope.checks.echoes import AFTERMATH
from tightrope.finding import Evidence, Finding, Severity
from tightrope.measure.updates import Updates
from tightrope.study import Study
from tightrope.subject import Program
from tightrope.tape.source import UNKNOWN

STAGE = "run"
EXPLAINS = ("parameter-not-optimised", "unused-parameter", *AFTERMATH)
REMEDIES = ("unscale-first",)

CASTS = frozenset(("float", "double", "to", "type", "type_as"))
LOST = 0.5
SMALLEST = torch.finfo(torch.float16).smallest_normal * torch.finfo(torch.float16).eps
NEAR = 16 * SMALLEST  # a rms below it: products with weights of a tenth and less are zero
STEPS = 20
"""Steps before which a dynamic scale may still be on its way down: from 2^16, halving, it fits within 16."""
SKIPPED = 0.5
"""Share of steps left out; a dynamic scale that has settled leaves out one in 2000."""


def judge(study: Study, updates: Updates) -> Iterator[Finding]:
    """A finding for a scale that reaches the clipping, for one that never fits, and for one that is missing."""
    scaling, clips = updates.scaling, updates.clips
    lost = _underflow(study)
    if lost is not None:
        yield lost
    if scaling is None:
        return
    place = "" if scaling.location == UNKNOWN else str(scaling.location)
    scale = scaling.scale or 1.0
    if scaling.clipped_scaled and clips is not None and max(clips.ratios) > 1:
        fact = (
            f"gradients are clipped to a norm of {clips.limit:.3g} before they are divided by the loss scale "
            f"{scale:.3g}: what is left has a norm of at most {clips.limit / scale:.3g}"
        )
        evidence = (
            Evidence("largest norm after the division", clips.limit / scale, clips.limit),
            Evidence("steps that clip scaled gradients", scaling.clipped_scaled, 0.0),
        )
        yield Finding("loss-scale", Severity.FAULT, "", str(clips.location), fact, evidence)
    if scaling.steps >= STEPS and scaling.skipped >= SKIPPED * scaling.steps:
        fact = f"{scaling.skipped} of {scaling.steps} steps were left out: scaled gradients overflow at {scale:.3g}"
        evidence = (
            Evidence("share of steps left out", scaling.skipped / scaling.steps, 0.0),
            Evidence("loss scale", scale),
        )
        yield Finding("loss-scale", Severity.FAULT, "scaler", place, fact, evidence)


def _underflow(study: Study) -> Finding | None:
    """The call, first on the way back, behind which gradients are zeros because float16 has no smaller numbers."""
    tape, gradients = study.tape, study.measurement.gradients
    for entry in reversed(tape.entries):
        sides = (*entry.inputs[:1], *entry.outputs[:1])
        if len(sides) < 2 or tape.values[sides[0]].dtype is not torch.float16:
            continue
        behind, before = (gradients.get(number) for number in sides)
        if behind is None or before is None or not 0 < before.rms < NEAR or len(tape.readers[sides[0]]) > 1:
            continue
        if behind.rms < LOST * before.rms if entry.op in CASTS else behind.rms == 0:
            return Finding(
                "loss-scale", Severity.FAULT, entry.module, str(study.tape.location(entry)),
                f"gradients of rms {before.rms:.3g} become {behind.rms:.3g} behind {entry.op}: the smallest number of "
                f"float16 is {SMALLEST:.3g}",
                (Evidence("rms of the gradient in float16", before.rms, NEAR), Evidence("rms behind it", behind.rms)),
                entry.index, modules=(entry.module,),
            )  # fmt: skip
    return None


def sick() -> Program:
    """Clipping before the gradients are divided by the scale."""
    return Program(lambda: _train(unscale=False))


def healthy() -> Program:
    """Clipping after it."""
    return Program(lambda: _train(unscale=True))


def _train(*, unscale: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 16)
    y = (x[:, :4] @ torch.randn(4, 4)).argmax(1)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    for _ in range(12):
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(model(x), y)).backward()
        if unscale:
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
