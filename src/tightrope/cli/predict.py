"""`tightrope predict`."""

from __future__ import annotations

import sys

import click

from tightrope.cli.output import report_options, write


@click.command()
@report_options
@click.argument("factory")
def command(factory: str, style: str, html: str | None, json_file: str | None) -> int:
    """Predict the law of every tensor of what FACTORY returns; no sample runs through the model.

    FACTORY is named as for `tightrope check`; it may build the model on the meta device.
    """
    from tightrope.factory import predict_factory

    report, outlook = predict_factory(factory)
    write(report, style="none" if style == "text" else style, html=html, json_file=json_file, stream=sys.stdout)
    if style == "text":
        print(outlook)
    return 0 if outlook.in_range else 1
