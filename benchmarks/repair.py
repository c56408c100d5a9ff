"""Do the remedies cure? Broken, repaired and healthy training of the curable sick scripts of the zoo, in one table.

    python benchmarks/repair.py [NAME ...] [--part design|aside|all] [--draws N] [--jobs N]

Each script is trained three times: as it is, under `tightrope run --fix`, and as its healthy twin. Repaired means
within 2 points (5 % of a loss) of the twin, or better. Beside it random search over the same set of changes at the
same budget of training runs, one: instead of the diagnosis a random draw decides which change is made at the first
step. The set is every acting remedy of every check at every module that it can act on, and the learning rate times
0.1 or 10; first the kind of change is drawn, then the place. A change after which the script crashes is drawn again
and costs nothing. `--draws` such runs per script, with seeds 0, 1, …, give the share of single draws that repair, and
how many scripts the best of all draws repairs (that is, at a budget `--draws` times as large).
"""

from __future__ import annotations

import argparse
import math
import random
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "zoo"))

from catalogue import PARTS, Script, load
from diagnosis import mark, run

if TYPE_CHECKING:
    from tightrope.finding import Finding, Remedy
    from tightrope.study import Study

DRAW = "--draw"  # how this script calls itself for one run of random search
AGAIN = 5  # draws at most for one run that does not crash


@dataclass(frozen=True)
class Row:
    """The numbers that one script reached."""

    script: Script
    broken: float
    repaired: float
    twin: float
    applied: tuple[str, ...]
    drawn: tuple[float, ...]

    @property
    def cured(self) -> bool:
        return self.script.as_good(self.repaired, self.twin)

    @property
    def lucky(self) -> int:
        """How many random draws cure it."""
        return sum(self.script.as_good(value, self.twin) for value in self.drawn)


def metric(script: Script, done: subprocess.CompletedProcess[str] | None) -> float:
    """The number on the last line that a script printed; NaN where there is none."""
    lines = done.stdout.strip().splitlines() if done is not None else []
    word, _, number = lines[-1].partition(" ") if lines else ("", "", "")
    try:
        return float(number) if word == script.metric else math.nan
    except ValueError:
        return math.nan


def applied(done: subprocess.CompletedProcess[str] | None) -> tuple[str, ...]:
    """The checks whose remedies were applied, from what `--fix` says at its end."""
    _, found, after = (done.stderr if done is not None else "").partition("applied in memory; to keep it, change:")
    lines = after.splitlines() if found else []
    return tuple(line.strip().partition(":")[0] for line in lines if line[:2] == "  " and line[2:3].strip())


def row(script: Script, draws: int) -> Row:
    """All runs of one script."""
    with tempfile.TemporaryDirectory() as folder:
        twin = Path(folder) / f"{script.name}.py"
        twin.write_text(script.twin_source())
        broken, _ = run([str(script.path)])
        fixed, _ = run(["-m", "tightrope", "run", "--fix", "--format", "none", str(script.path)])
        healthy, _ = run([str(twin)])
        drawn = [survivor(script, seed) for seed in range(draws)]
    reached = [metric(script, done) for done in (broken, fixed, healthy)]
    return Row(script, *reached, applied(fixed), tuple(metric(script, done) for done in drawn))


def survivor(script: Script, seed: int) -> subprocess.CompletedProcess[str] | None:
    """The first run with a random change that the script survives; None where there is none."""
    for again in range(AGAIN):
        done, _ = run([__file__, DRAW, str(seed + 1000 * again), str(script.path)])
        if done is not None and not done.returncode:
            return done
    return None


# -- one run of random search, in a process of its own -------------------------------------------------------------


def changes(study: Study) -> dict[str, list[Remedy]]:
    """Every change that could be made at the first step, by kind."""
    from tightrope.checks.registry import all_checks
    from tightrope.finding import Finding, Remedy, Safety, Severity
    from tightrope.remedies.registry import prescribe

    index = {entry.module: entry.index for entry in study.tape.entries}
    found: dict[str, list[Remedy]] = {}
    for check in all_checks().values():
        for module in ["", *index]:
            place = Finding(check.name, Severity.WARNING, module, "", "drawn", index=index.get(module, -1))
            for name in check.remedies:
                try:
                    made = prescribe(study, place, [name])
                except Exception:  # it needs what only its own finding knows: it cannot be drawn here
                    continue
                found.setdefault(name, []).extend(remedy for remedy in made if remedy.action is not None)
    for factor in (0.1, 10.0):
        rate = Remedy(f"rate x {factor:g}", "", "", "", Safety.SAFE, lambda factor=factor: scale_rates(study, factor))
        found[rate.name] = [rate]
    return {name: made for name, made in found.items() if made}


def scale_rates(study: Study, factor: float) -> None:
    """Multiply the learning rates of all optimizers."""
    for optimizer in study.optimizers.items:
        for group in optimizer.param_groups:
            group["lr"] *= factor


def draw(seed: int, path: str) -> None:
    """Train a script with one random change after its first step instead of a diagnosis."""
    from dataclasses import replace

    import tightrope.watch.judge
    from tightrope.finding import Finding, Safety, Severity
    from tightrope.run import run as watch

    generator = random.Random(f"{seed} {Path(path).stem}")
    done: list[str] = []

    def choose(studies: list[Study], stages: object = None) -> list[Finding]:
        if done:
            return []
        kinds = changes(studies[0])
        name = generator.choice(sorted(kinds))
        change = replace(generator.choice(kinds[name]), safety=Safety.SAFE)
        done.append(change.name)
        return [Finding("drawn", Severity.WARNING, "", "", change.name, remedies=(change,))]

    tightrope.watch.judge.diagnose = choose  # type: ignore[assignment]
    outcome = watch(path, record=[1], fix=True).outcome
    print(f"drawn: {', '.join(done)}", file=sys.stderr)
    sys.exit(outcome.code)


def main() -> None:
    if sys.argv[1:2] == [DRAW]:
        draw(int(sys.argv[2]), sys.argv[3])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="parts of names; all curable scripts without any")
    parser.add_argument("--part", choices=(*PARTS, "all"), default="all")
    parser.add_argument("--draws", type=int, default=3, help="runs of random search per script (default 3)")
    parser.add_argument("--jobs", type=int, default=2, help="scripts at a time (default 2)")
    options = parser.parse_args()
    scripts = [s for s in load() if s.curable and options.part in (s.part, "all")]
    if options.names:
        scripts = [s for s in scripts if any(name in s.name for name in options.names)]
    head = f"{'script':34} {'metric':9}{'broken':>9}{'repaired':>9}{'twin':>9}  {'cured':6}random  applied for"
    print(head, flush=True)
    rows = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for one in pool.map(lambda script: row(script, options.draws), scripts):
            rows.append(one)
            numbers = "".join(f"{value:9.3g}" for value in (one.broken, one.repaired, one.twin))
            name, luck = one.script.name, f"{one.lucky}/{len(one.drawn)}"
            why = ", ".join(one.applied) or "nothing"
            print(f"{name:34} {one.script.metric:9}{numbers}  {mark(one.cured):6}{luck:6}  {why}", flush=True)
    print("\n" + totals(rows, options.draws))


def totals(rows: list[Row], draws: int) -> str:
    """Shares of cured scripts beside those of random search."""
    acted = [one for one in rows if one.applied]
    lines = [f"{len(rows)} scripts that a change of the live objects can cure"]

    def line(text: str, count: float, of: int) -> None:
        lines.append(f"  {text:52} {count:5.3g} of {of:3}  {count / max(of, 1):6.1%}")

    line("a remedy acted", len(acted), len(rows))
    line("cured, of those in which a remedy acted (bar 90 %)", sum(one.cured for one in acted), len(acted))
    line("cured, of all", sum(one.cured for one in rows), len(rows))
    if draws:
        line("cured by one random change, on average", sum(one.lucky for one in rows) / draws, len(rows))
        line(f"cured by the best of {draws} random changes", sum(one.lucky > 0 for one in rows), len(rows))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
