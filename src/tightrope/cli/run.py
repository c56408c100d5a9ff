"""`tightrope run`."""

from __future__ import annotations

import sys

import click

from tightrope.cli.output import changes, diff_option, report_options, say, write


def steps(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    """Numbers of steps, from `1,10,100`."""
    try:
        numbers = tuple(dict.fromkeys(int(part) for part in value.split(",")))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise click.BadParameter(f"{value!r} is no list of step numbers from 1 on; write for example 1,10,100")
    return numbers


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.option("-m", "module", is_flag=True, help="TARGET is a module, as for `python -m`.")
@click.option("--record", callback=steps, default="1,10,100", show_default=True, metavar="STEPS", help="Which steps.")
@click.option("--fix", is_flag=True, help="Apply the safe remedies in memory at the first recorded step.")
@diff_option
@report_options
@click.argument("target")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(
    module: bool, record: tuple[int, ...], fix: bool, target: str, arguments: tuple[str, ...],
    style: str, html: str | None, json_file: str | None, diff_file: str | None,
) -> int:  # fmt: skip
    """Run the training script TARGET with its own ARGUMENTS, not a line of it changed.

    The script's standard output, exit code and exceptions pass through; findings go to standard error.
    """
    from tightrope.run import run

    if diff_file and not fix:
        raise click.UsageError("--diff writes what --fix applies: pass both")
    result = run(target, arguments, module=module, record=record, fix=fix, say=say)
    sys.stdout.flush()
    report = result.after or result.report
    if result.report is not None and result.after is not None and style == "text":
        say("before the remedies")
        write(result.report, style=style, html=None, json_file=None, stream=sys.stderr)
        say("after them")
    if report is not None:
        write(report, style=style, html=html, json_file=json_file, stream=sys.stderr)
    if fix and result.report is not None:
        changes(result.applied, sys.stderr, diff_file)
    return result.code
