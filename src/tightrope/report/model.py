"""The report as plain data: what renderers render and `--json` writes."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tightrope.diagnose import diagnose
from tightrope.finding import Finding
from tightrope.law import Law
from tightrope.study import Study

SCHEMA = "tightrope.report/1"


@dataclass(frozen=True)
class LawRow:
    """One floating-point result of the recorded step: predicted beside measured.

    Attributes:
        index, op, module, location: which call made it.
        shape: of the real tensor.
        trivial: its law is its input's by construction.
        predicted, measured: law of the tensor; None where there is none.
        predicted_gradient, measured_gradient: law of the loss's gradient with respect to it.
        z: ln(measured / predicted std) in standard errors.
        simulated: the operation had no rule and was evaluated numerically.
    """

    index: int
    op: str
    module: str
    location: str
    shape: tuple[int, ...]
    trivial: bool
    predicted: Law | None
    measured: Law | None
    predicted_gradient: Law | None
    measured_gradient: Law | None
    z: float | None
    simulated: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        data = dict(self.__dict__)
        for name in ("predicted", "measured", "predicted_gradient", "measured_gradient"):
            data[name] = data[name].to_dict() if data[name] else None
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LawRow:
        """Rebuild from plain data."""
        fields = dict(data)
        for name in ("predicted", "measured", "predicted_gradient", "measured_gradient"):
            fields[name] = Law.from_dict(data[name]) if data[name] else None
        fields["shape"] = tuple(data["shape"])
        fields["z"] = None if data["z"] is None else float(data["z"])
        return cls(**fields)


@dataclass(frozen=True)
class Report:
    """Findings and laws of one or several recorded steps.

    Attributes:
        findings: worst first, causes before their echoes.
        laws: rows of the first recorded step, in the order of the tape.
        title: what was examined (script, factory, class).
        steps: numbers of the recorded steps.
        tensors: how many results were predicted, simulated, unknown (`{"predicted": …}`).
        unknown: what could not be predicted, and why.
        loss: the recorded losses, by step.
        versions: of Python, torch and tightrope.
        command: how to reproduce it.
        seconds: wall time of recording and diagnosis.
        notes: plain sentences a reader must know (a crash, steps that differ).
        schema: version of this data.
    """

    findings: tuple[Finding, ...]
    laws: tuple[LawRow, ...]
    title: str = ""
    steps: tuple[int, ...] = (1,)
    tensors: dict[str, int] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    loss: dict[int, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    command: str = ""
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    schema: str = SCHEMA

    @property
    def healthy(self) -> bool:
        """Whether nothing above advice was found."""
        return all(finding.severity.value == "advice" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        data = dict(self.__dict__)
        data["findings"] = [finding.to_dict() for finding in self.findings]
        data["laws"] = [row.to_dict() for row in self.laws]
        data["loss"] = {str(step): value for step, value in self.loss.items()}
        return data

    def to_json(self) -> str:
        """The report as JSON; NaN and infinity become strings."""
        return json.dumps(_finite(self.to_dict()), indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Rebuild a report from `to_json`'s text; remedies come back without their action."""
        data = json.loads(text)
        fields = dict(data)
        fields["findings"] = tuple(Finding.from_dict(item) for item in data["findings"])
        fields["laws"] = tuple(LawRow.from_dict(item) for item in data["laws"])
        fields["loss"] = {int(step): float(value) for step, value in data["loss"].items()}
        fields["seconds"] = float(data["seconds"])
        for name in ("steps", "unknown", "notes"):
            fields[name] = tuple(data[name])
        return cls(**fields)

    def to_html(self) -> str:
        """The report as one offline HTML file."""
        from tightrope.report.html import render

        return render(self)

    def _repr_html_(self) -> str:
        from tightrope.report.html import notebook

        return notebook(self)

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from tightrope.report.terminal import Screen

        return Screen(self).__rich_console__(console, options)

    def __str__(self) -> str:
        from tightrope.report.terminal import render

        return render(self)

    def __repr__(self) -> str:
        return str(self)  # what a Python prompt shows


def make_report(
    studies: Sequence[Study], *, title: str = "", findings: Sequence[Finding] | None = None, **facts: Any
) -> Report:
    """Gather the report of the studied steps; they are diagnosed now unless their findings are given."""
    findings = tuple(diagnose(studies) if findings is None else findings)
    first = studies[0]
    laws = tuple(rows(first))
    forecast = first.forecast
    simulated = sum(row.simulated for row in laws)
    tensors = {
        "recorded": len(laws),
        "predicted": sum(row.predicted is not None and not row.simulated for row in laws),
        "simulated": simulated,
        "unknown": sum(row.predicted is None for row in laws),
    }
    unknown = tuple(f"{e.op} in {e.module or 'the script'} ({e.location}): {why}" for e, why in forecast.unknown)
    unknown += tuple(f"{e.op} in {e.module or 'the script'} ({e.location}): simulated" for e in forecast.simulated)
    loss = {study.step: study.measurement.loss for study in studies if study.measurement.loss is not None}
    from tightrope.version import VERSION

    command = "" if "ipykernel" in sys.argv[0] else " ".join(sys.argv)  # a kernel's own arguments repeat nothing
    versions = {"python": platform.python_version(), "torch": torch.__version__, "tightrope": VERSION}
    return Report(
        findings, laws, title=title or type(next(iter(first.models.roots.values()), None)).__name__,
        steps=tuple(dict.fromkeys(study.step for study in studies)), tensors=tensors, unknown=unknown, loss=loss,
        versions=versions, command=facts.pop("command", command), **facts,
    )  # fmt: skip


def rows(study: Study) -> list[LawRow]:
    """Predicted beside measured for every floating-point result of a study's tape."""
    made = []
    simulated = {entry.index for entry in study.forecast.simulated}
    z = {row.index: row.z for row in study.comparison.rows}
    for entry in study.tape.entries:
        for number in entry.outputs:
            value = study.tape.values[number]
            if value.is_float and (number in study.measurement.laws or number in study.forecast.laws):
                row = LawRow(
                    entry.index, entry.op, entry.module, str(study.tape.location(entry)), value.shape,
                    entry.index in study.forecast.trivial, study.forecast.laws.get(number),
                    study.measurement.laws.get(number), study.forecast.gradients.get(number),
                    study.measurement.gradients.get(number), z.get(entry.index), entry.index in simulated,
                )  # fmt: skip
                made.append(row)
    return made


def _finite(data: Any) -> Any:
    if isinstance(data, float) and data != data:
        return "nan"
    if isinstance(data, float) and data in (float("inf"), float("-inf")):
        return "inf" if data > 0 else "-inf"
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    return [_finite(value) for value in data] if isinstance(data, (list, tuple)) else data
