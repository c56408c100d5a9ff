"""`tightrope predict`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from tightrope.cli.output import report_options, save, write

if TYPE_CHECKING:
    from tightrope.predict import Weights


@click.command()
@report_options
@click.option("--weights", type=click.Choice(["actual", "laws"]), help="Predict from these; default: the better one.")
@click.option("--scale/--no-scale", default=True, help="Predict also at twice the width and depth.")
@click.option("--samples", default=4, show_default=True, help="Samples of a batch of tokens (for a configuration).")
@click.option("--length", default=256, show_default=True, help="Tokens of a sample (for a configuration).")
@click.option("--outlook", "outlook_file", metavar="FILE", help="Write what is told as data (JSON).")
@click.argument("factory")
def command(
    factory: str,
    style: str,
    html: str | None,
    json_file: str | None,
    weights: Weights | None,
    scale: bool,
    samples: int,
    length: int,
    outlook_file: str | None,
) -> int:
    """Predict the law of every tensor of what FACTORY returns; no sample runs through the model.

    FACTORY is named as for `tightrope check`; it may build the model on the meta device. It may also be a
    configuration of transformers: a JSON file, or a folder with a config.json. Parameters of the factory called
    `width` and `depth`, or the model's own configuration, say how it grows.
    """
    from tightrope.factory import predict_factory

    report, outlook = predict_factory(factory, weights=weights, scale=scale, samples=samples, length=length)
    write(report, style="none" if style == "text" else style, html=html, json_file=json_file, stream=sys.stdout)
    if outlook_file:
        save(outlook_file, json.dumps(outlook.to_dict(), indent=1))
    if style == "text":
        print(outlook)
    return 0 if outlook.in_range else 1
