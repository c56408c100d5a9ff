"""What a check says: a finding with its evidence, and the remedy that goes with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from tightrope.edit import Edit


class Severity(Enum):
    """How bad a finding is; `rank` orders them, worst first."""

    FAULT = "fault"  # training cannot work, or works on garbage
    WARNING = "warning"  # training is measurably worse for it
    ADVICE = "advice"  # a better choice exists; nothing is broken

    @property
    def rank(self) -> int:
        """0 for the worst."""
        return ("fault", "warning", "advice").index(self.value)


class Safety(Enum):
    """How a remedy may be applied."""

    SAFE = "safe"  # may be applied without asking
    REVIEW = "needs-review"
    ADVICE = "advice"  # words only


@dataclass(frozen=True)
class Evidence:
    """One number that a finding rests on, beside what it should be.

    Attributes:
        quantity: what was measured, in the field's words.
        measured: the number.
        expected: what the law, or a healthy level, asks for; None when there is none.
        error: standard error of `measured`; None when it is exact.
        unit: of both numbers ("" for a ratio).
    """

    quantity: str
    measured: float
    expected: float | None = None
    error: float | None = None
    unit: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return dict(self.__dict__)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Evidence:
        """Rebuild from plain data, in which NaN and infinity may be words."""
        numbers = {n: float(data[n]) for n in ("measured", "expected", "error") if data.get(n) is not None}
        return cls(**{**data, **numbers})


@dataclass(frozen=True)
class Remedy:
    """A change that cures a finding, as data; `apply` carries it out on the live objects.

    Attributes:
        name: of the remedy (`initialize`).
        title: what it does, in the imperative.
        patch: the lines to change, as a user would write them.
        cost: what it costs (accuracy, time, compatibility), in one clause.
        safety: whether it may be applied unasked.
        edit: the change of the user's source, where it is one expression on a known line.
        whole: whether it acts on the whole program, so that one application serves every finding that asks for it.
        anytime: whether what was learnt survives it, so that it may be applied at any step of training.
        restart: whether what was learnt before it is lost already, so that training is to start again with it.
    """

    name: str
    title: str
    patch: str
    cost: str
    safety: Safety
    action: Callable[[], None] | None = field(default=None, repr=False, compare=False)
    edit: Edit | None = None
    whole: bool = False
    anytime: bool = False
    restart: bool = False

    def apply(self) -> None:
        """Carry the change out in memory.

        Raises:
            InputError: the remedy is advice only, or the report was loaded from a file.
        """
        from tightrope.errors import InputError

        if self.action is None:
            raise InputError(f"apply {self.name}", "it has no live model to act on", f"Change the source: {self.patch}")
        self.action()

    @property
    def change(self) -> list[str]:
        """The lines to change: what is taken away and what takes its place, else the patch."""
        if self.edit is None:
            return [line for line in self.patch.splitlines() if line.strip()]
        removed = [f"- {line}" for line in self.edit.before.splitlines()]
        return removed + [f"+ {line}" for line in self.edit.after.splitlines()]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "name": self.name, "title": self.title, "patch": self.patch, "cost": self.cost, "safety": self.safety.value,
            "edit": self.edit.to_dict() if self.edit else None,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Remedy:
        """Rebuild from plain data; the action is lost."""
        edit = Edit.from_dict(data["edit"]) if data.get("edit") else None
        return cls(**{**data, "safety": Safety(data["safety"]), "edit": edit})


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, with its evidence.

    Attributes:
        check: name of the check, as in `tightrope explain`.
        severity: see `Severity`.
        module: path of the module it stands in, or a span "net.0 … net.38"; "" at top level.
        location: `file:line` of the line a user would change; "" when unknown.
        summary: the fact, the number and the level it misses, in one line.
        evidence: the numbers, most telling first.
        index: order on the tape of the first entry concerned; -1 for what comes before all entries.
        cause_of: names of the checks whose findings follow from this one.
        caused_by: name of the check that explains this one; None for a cause.
        remedies: what cures it, best first.
        step: number of the training step it was seen at (1 is the first).
        modules: every module concerned.
    """

    check: str
    severity: Severity
    module: str
    location: str
    summary: str
    evidence: tuple[Evidence, ...] = ()
    index: int = -1
    cause_of: tuple[str, ...] = ()
    caused_by: str | None = None
    remedies: tuple[Remedy, ...] = ()
    step: int = 1
    modules: tuple[str, ...] = ()

    @property
    def remedy(self) -> Remedy | None:
        """The best remedy, if there is one."""
        return self.remedies[0] if self.remedies else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        data = dict(self.__dict__)
        data["severity"] = self.severity.value
        data["evidence"] = [item.to_dict() for item in self.evidence]
        data["remedies"] = [remedy.to_dict() for remedy in self.remedies]
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Finding:
        """Rebuild from plain data; remedies come back without their action."""
        fields = dict(data)
        fields["severity"] = Severity(data["severity"])
        fields["evidence"] = tuple(Evidence.from_dict(item) for item in data["evidence"])
        fields["remedies"] = tuple(Remedy.from_dict(item) for item in data["remedies"])
        for name in ("cause_of", "modules"):
            fields[name] = tuple(data[name])
        return cls(**fields)
