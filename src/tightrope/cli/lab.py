"""`tightrope lab`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from tightrope.lab import Outcome


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1)
@click.option("--list", "listed", is_flag=True, help="Print the names of all experiments, a line each.")
@click.option("--all", "everything", is_flag=True, help="Run all of them.")
@click.option("--quick", is_flag=True, help="Smaller samples: seconds instead of minutes.")
@click.option("--seed", default=0, show_default=True, help="The first of an experiment's seeds.")
@click.option("--html", is_flag=False, flag_value="", metavar="[FILE]", help="Write a page with the figure: NAME.html.")
@click.option("--out", metavar="FOLDER", help="Write NAME.svg and NAME.json of every experiment that is run.")
@click.option("--format", "style", type=click.Choice(["text", "json"]), default="text", help="What to print.")
def command(
    names: tuple[str, ...], listed: bool, everything: bool, quick: bool, seed: int, html: str | None, out: str | None,
    style: str,
) -> int:  # fmt: skip
    """Reproduce the law of NAME: predicted beside measured, with error bars, a figure and a verdict.

    Ends 0 when every law holds within its band, else 1.
    """
    import json

    from tightrope.lab import Trial, all_experiments, get, show

    if sum((bool(names), listed, everything)) != 1:
        raise click.UsageError("name an experiment, or pass --list or --all")
    if html and len(names) != 1:
        raise click.UsageError("a file for --html takes one experiment; pass --html alone for a page each")
    if listed:
        print(show.listing(list(all_experiments().values())))
        return 0
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
    outcomes = []
    for experiment in [get(name) for name in names] or list(all_experiments().values()):
        outcome = experiment.run(Trial(quick, seed))
        outcomes.append(outcome)
        _write(outcome, html, out)
        if style == "text":
            print(show.line(outcome) if everything else show.terminal(outcome), flush=True)
    if style == "json":
        print(json.dumps([show.data(outcome) for outcome in outcomes], indent=1))
    held = sum(outcome.result.verdict == "holds" for outcome in outcomes)
    if everything and style == "text":
        print(f"\n{held} of {len(outcomes)} laws hold · {sum(o.seconds for o in outcomes):.0f} s")
    return 0 if held == len(outcomes) else 1


def _write(outcome: Outcome, html: str | None, out: str | None) -> None:
    import json

    from tightrope.cli.output import save
    from tightrope.lab import chart, show

    name = outcome.experiment.name
    if html is not None:
        save(html or f"{name}.html", show.page(outcome))
    if out is not None:
        save(str(Path(out) / f"{name}.svg"), chart.svg(outcome.result.panels))
        save(str(Path(out) / f"{name}.json"), json.dumps(show.data(outcome), indent=1) + "\n")
