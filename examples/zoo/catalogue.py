"""What is known of every script of the zoo: `load` reads `catalogue.toml`, which says it in one place."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
KINDS = ("sick", "healthy")
PARTS = ("design", "aside")
MORE_IS_BETTER = ("accuracy", "r2", "reward")  # metrics of which more is better; of a loss, less is


def part_of(name: str) -> str:
    """Part of a script: the digest of its name decides, so it is nobody's choice."""
    return PARTS[int(hashlib.sha256(name.encode()).hexdigest(), 16) % 3 == 0]


@dataclass(frozen=True)
class Script:
    """One script.

    Attributes:
        name: of the file, without its ending.
        kind: "sick" or "healthy".
        part: "design", or "aside": looked at only when the checks are finished.
        metric: first word of the last line that it prints; the number follows.
        reached: that number.
        causes: checks that name the fault, any of them; of a healthy script none.
        twin: texts to replace, each once, to make it healthy.
        twin_reached: the number of the healthy twin.
        curable: whether a change of the live objects (weights, layers, rates, groups) cures it, the source untouched.
        harm: what the fault costs, where the metric alone does not show it.
    """

    name: str
    kind: str
    part: str
    metric: str
    reached: float
    causes: tuple[str, ...] = ()
    twin: tuple[tuple[str, str], ...] = ()
    twin_reached: float = float("nan")
    curable: bool = False
    harm: str = ""

    @property
    def path(self) -> Path:
        """The file."""
        return HERE / self.kind / f"{self.name}.py"

    def twin_source(self) -> str:
        """Source text of the healthy twin.

        Raises:
            ValueError: a text to replace does not stand in the script exactly once.
        """
        source = self.path.read_text()
        for old, new in self.twin:
            if source.count(old) != 1:
                raise ValueError(f"{self.name}: {old!r} stands {source.count(old)} times")
            source = source.replace(old, new)
        return source

    def better(self, one: float, other: float) -> bool:
        """Whether the first number of this script's metric is better than the second; NaN is worst."""
        if one != one or other != other:
            return one == one
        return one > other if self.metric in MORE_IS_BETTER else one < other

    def as_good(self, reached: float, goal: float) -> bool:
        """Whether a number lies within 2 points (or 5 % of a loss) of the goal, or beyond it."""
        margin = 0.02 if self.metric in MORE_IS_BETTER else 0.05 * abs(goal)
        return self.better(reached, goal) or abs(reached - goal) <= margin + 1e-9


def load() -> list[Script]:
    """All scripts: the sick, then the healthy, by name."""
    data = tomllib.loads((HERE / "catalogue.toml").read_text())
    scripts = []
    for kind in KINDS:
        for name, entry in sorted(data[kind].items()):
            fields = {**entry, "causes": tuple(entry.get("causes", ()))}
            fields["twin"] = tuple((old, new) for old, new in entry.get("twin", ()))
            scripts.append(Script(name, kind, **fields))
    return scripts
