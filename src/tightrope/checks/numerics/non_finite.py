"""`non-finite`: an operation that turns finite numbers into NaN or infinity.

Law       a number of dtype t is finite below max(t) (65504 for float16, 3.4e38 for float32 and bfloat16); exp overflows
          beyond ln max(t) = 11.1 and 88.7; log 0, 0 / 0 and infinity minus infinity are undefined. One such element
          reaches every parameter in one backward pass.
Evidence  number and place of the non-finite elements in the first result whose own inputs are all finite; the range
          and dtype of those inputs. Parameters are looked at before operations, gradients last. Of a run every step is
          guarded: one whose loss or gradient is not finite is made again before its update, from the same random
          states and with the same weights.
Verdict   `fault`, always: the check counts, it does not estimate.
Remedy    advice: the stable form of the operation, a clamp, a wider dtype, a smaller scale (`stable-form`).
Limits    what is computed outside modules cannot be made again: that the outputs were finite and the loss was not is
          all that is said. On other devices than the CPU, and where calls cannot be made again, the step after it is
          recorded instead. Minus infinity that a mask put into logits is meant, and so is an overflowing gradient of a
          loss that a gradient scaler has multiplied: the scaler skips that step. Neither is reported. What is lost
          later in a run is an echo of the first. Data that are not finite to begin with are `non-finite-input`.
References  Goldberg (1991), What every computer scientist should know about floating-point arithmetic, ACM Comput.
          Surv. 23; Micikevicius et al. (2018), Mixed precision training, ICLR.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from tightrope.checks.trace import JOINS, VIEWS
from tightrope.finding import Evidence, Finding, Severity
from tightrope.measure.measurement import Measurement, Units
from tightrope.study import Study
from tightrope.subject import Subject
from tightrope.tape.tape import Entry, Kind, Tape

STAGE = "batch"
EXPLAINS = ("non-finite", "exploding-signal", "exploding-gradient", "loss-at-init", "learning-rate-too-high")
REMEDIES = ("stable-form",)

MASKING = frozenset(
    ("masked_fill", "where", "full", "full_like", "add", "mul", "triu", "tril", "log", "fill", "setitem")
)
"""Calls that can put minus infinity in place of what a softmax shall not see."""
TOLERANT = VIEWS | JOINS | MASKING | {"softmax", "log_softmax", "logsumexp", "max", "amax", "maximum", "topk", "argmax"}
"""Readers for which minus infinity is a number like any other."""
FILLING = frozenset(("isnan", "isfinite", "isinf", "nan_to_num", "where", "masked_fill", "nanmean", "nansum"))
"""Readers that find or replace what is not finite."""
UNDEFINED = frozenset(("empty", "empty_like", "new_empty", "empty_strided"))
"""Calls whose result holds whatever the memory held."""
SCALED = 2.0**8  # a tensor that multiplies the loss by as much is a gradient scaler's (it starts at 2^16)


def judge(study: Study) -> Iterator[Finding]:
    """At most one finding: the first place where a finite number was lost."""
    tape, measurement = study.tape, study.measurement
    if spoilt_data(tape, measurement) is not None:
        return  # another check's business, and nothing after it is a cause
    for value in tape.values.values():
        units = measurement.units.get(value.id)
        outside = value.producer is None and value.kind in (Kind.PARAMETER, Kind.BUFFER)
        if outside and units is not None and broken(tape, measurement, value.id):
            yield _outside(study, value.id, units)
            return
    for entry in tape.entries:
        for number in entry.outputs if entry.op not in UNDEFINED else ():
            if broken(tape, measurement, number) and not any(broken(tape, measurement, i) for i in entry.inputs):
                yield _operation(study, entry, number)
                return
    if not _scaled(tape, measurement):
        yield from _gradient(study)


def spoilt_data(tape: Tape, measurement: Measurement) -> tuple[int, Entry] | None:
    """The first data that are not finite and the call that makes a non-finite result of them."""
    for value in tape.value_of(Kind.INPUT):
        if value.producer is not None or not broken(tape, measurement, value.id):
            continue
        for reader in tape.readers.get(value.id, []):
            made = [measurement.units[i] for i in reader.outputs if i in measurement.units]
            if reader.op not in FILLING and any(units.nonfinite for units in made):
                return value.id, reader
    return None


def broken(tape: Tape, measurement: Measurement, number: int) -> bool:
    """Whether a value holds a NaN, or an infinity that is no mask."""
    units = measurement.units.get(number)
    if units is None or not units.nonfinite or tape.values[number].kind is Kind.KNOWN:
        return False  # known numbers (masks, positions) matter once they meet data
    readers = tape.readers.get(number, [])
    if readers and all(entry.op in FILLING for entry in readers):
        return False
    if units.masked < units.nonfinite:
        return True
    return not readers or not all(entry.op in TOLERANT for entry in readers)


def _scaled(tape: Tape, measurement: Measurement) -> bool:
    """Whether the loss was multiplied by a gradient scaler."""
    last = next((e for e in tape.entries if tape.loss in e.outputs), None)
    if last is None or last.op != "mul":
        return False
    outside = [i for i in last.inputs if tape.values[i].kind is not Kind.RESULT and i in measurement.units]
    return any(measurement.units[i].high >= SCALED for i in outside)


def _outside(study: Study, number: int, units: Units) -> Finding:
    value = study.tape.values[number]
    reader = next(iter(study.tape.readers.get(number, [])), None)
    return Finding(
        "non-finite", Severity.FAULT, reader.module if reader else "", str(reader.location) if reader else "",
        f"parameter {value.name}: {units.nonfinite} of its numbers are not finite, the first at {_at(units)}",
        (Evidence("non-finite elements", units.nonfinite, 0.0),), -1, modules=(reader.module,) if reader else (),
    )  # fmt: skip


def _operation(study: Study, entry: Entry, number: int) -> Finding:
    units, tape = study.measurement.units[number], study.tape
    evidence = [Evidence("non-finite elements", units.nonfinite, 0.0)]
    ranges: list[str] = []
    for i in dict.fromkeys(entry.inputs):
        found = study.measurement.units.get(i)
        if found is not None:
            evidence += [Evidence(f"smallest input {len(ranges) + 1}", found.low)]
            evidence += [Evidence(f"largest input {len(ranges) + 1}", found.high)]
            ranges.append(f"[{found.low:.3g}, {found.high:.3g}]")
    kind = str(tape.values[number].dtype).removeprefix("torch.")
    inputs = f" from inputs in {', '.join(ranges)}" if ranges else ""
    return Finding(
        "non-finite", Severity.FAULT, entry.module, str(entry.location),
        f"{entry.op} makes {units.nonfinite} non-finite element{'s' * (units.nonfinite > 1)} ({kind}), the first at "
        f"{_at(units)},{inputs}", tuple(evidence), entry.index, modules=(entry.module,),
    )  # fmt: skip


def _gradient(study: Study) -> Iterator[Finding]:
    """The last operation on the tape whose input's gradient is not finite though its output's is."""
    tape, gradients, broken = study.tape, study.measurement.gradients, study.measurement.broken
    for entry in reversed(tape.entries):
        came = [gradients[i] for i in entry.outputs if i in gradients]
        if broken.intersection(entry.inputs) and came and not broken.intersection(entry.outputs):
            found = study.measurement.units.get(entry.inputs[0])
            evidence = [Evidence("gradient's rms behind the operation", came[0].rms)]
            if found is not None:
                evidence += [Evidence("smallest input", found.low), Evidence("largest input", found.high)]
            where = f" on inputs in [{found.low:.3g}, {found.high:.3g}]" if found is not None else ""
            yield Finding(
                "non-finite", Severity.FAULT, entry.module, str(entry.location),
                f"the gradient of {entry.op} is not finite{where}", tuple(evidence), entry.index,
                modules=(entry.module,),
            )  # fmt: skip
            return


def _at(units: Units) -> str:
    return str(list(units.first_nonfinite or ()))


def sick() -> Subject:
    """The logarithm of numbers that may be negative."""
    return _net(0.0)


def healthy() -> Subject:
    """The logarithm of the same numbers, moved above zero."""
    return _net(8.0)


class _Log(nn.Module):
    def __init__(self, above: float) -> None:
        super().__init__()
        self.above = above

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log(x + self.above)


def _net(above: float) -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), _Log(above), nn.Linear(32, 1))
    x = torch.randn(64, 8)
    return Subject(model, (x, x[:, :1].clone()), nn.functional.mse_loss)
