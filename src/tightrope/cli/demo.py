"""`tightrope demo`."""

from __future__ import annotations

import sys
import time

import click

from tightrope.cli.output import changes, say, write


@click.command()
def command() -> int:
    """Run a sick training script on real digits, unmodified; then again with the safe remedies.

    Writes tightrope-report.html and tightrope-report.json into the current folder.
    """
    from rich.console import Console
    from rich.table import Table

    from tightrope.demo import SCRIPT, table, trial

    begin = time.perf_counter()
    say(f"1 of 2: tightrope run {SCRIPT.name}   ({SCRIPT})")
    before = trial(fix=False, say=say)
    html, data = "tightrope-report.html", "tightrope-report.json"
    write(before.report, style="text", html=html, json_file=data, stream=sys.stdout)
    print(f" written: {html}, {data}\n", flush=True)
    say(f"2 of 2: tightrope run --fix {SCRIPT.name}")
    after = trial(fix=True, say=say)
    changes(after.run.applied, sys.stdout)
    view = Table(title=f"{SCRIPT.name}, not a line of it changed", title_justify="left")
    for heading in ("", "before", "after"):
        view.add_column(heading, justify="right" if heading else "left")
    for row in table(before, after):
        view.add_row(*row)
    print()
    Console(width=80).print(view)
    print(f"{time.perf_counter() - begin:.0f} s in all; open {html}")
    return 0
