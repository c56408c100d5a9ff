"""`tightrope fix`."""

from __future__ import annotations

import sys

import click

from tightrope.cli.output import changes, diff_option, report_options, write


@click.command()
@diff_option
@report_options
@click.argument("factory")
def command(factory: str, style: str, html: str | None, json_file: str | None, diff_file: str | None) -> int:
    """Check what FACTORY returns, apply the safe remedies to the live model and check again.

    FACTORY is named as for `tightrope check`. The files and the exit code speak of the repaired model.
    """
    from tightrope.factory import fix_factory

    made = fix_factory(factory)
    if style == "text":
        print("before")
        write(made.before, style=style, html=None, json_file=None, stream=sys.stdout)
        print("\nafter")
    write(made.after, style=style, html=html, json_file=json_file, stream=sys.stdout)
    if style == "text" or diff_file:
        changes(made.applied, sys.stdout if style == "text" else sys.stderr, diff_file)
    return 0 if made.after.healthy else 1
