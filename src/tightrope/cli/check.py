"""`tightrope check`."""

from __future__ import annotations

import sys

import click

from tightrope.cli.output import report_options, write


@click.command()
@report_options
@click.argument("factory")
def command(factory: str, style: str, html: str | None, json_file: str | None) -> int:
    """Record one step of what FACTORY returns, and diagnose it.

    FACTORY is pkg.module:name or path/to/file.py:name. It returns a tightrope.Subject, or a tuple
    (model, batch[, loss[, optimizer]]).
    """
    from tightrope.factory import check_factory

    report = check_factory(factory)
    write(report, style=style, html=html, json_file=json_file, stream=sys.stdout)
    return 0 if report.healthy else 1
