"""The command line: one file a verb, read only when the verb is used."""

from __future__ import annotations

import importlib
import sys
import traceback

import click

from tightrope.errors import TightropeError
from tightrope.version import VERSION

VERBS = {
    "run": "Run a training script unchanged; find what is wrong while it trains.",
    "check": "Record one step of a factory's model and diagnose it.",
    "predict": "Predict the law of every tensor from theory alone.",
    "fix": "Check, apply the safe remedies, check again.",
    "explain": "Print the page of a check.",
    "lab": "Reproduce a law: predicted beside measured, with a figure.",
    "demo": "Run a sick training script, then the same script repaired.",
}
HEALTHY, FINDINGS, ERROR = 0, 1, 2  # exit codes


class Verbs(click.Group):
    """The verbs, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f"tightrope.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="tightrope")
def group() -> None:
    r"""The law of every tensor of a training step: predicted, measured, compared and corrected.

    \b
    Exit codes: 0 healthy, 1 findings, 2 usage or internal error; `run` passes the script's own on.
    """


def main() -> None:
    """Entry point of the `tightrope` command."""
    try:
        code = group.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(ERROR)
    except TightropeError as error:
        print(f"tightrope: {error}", file=sys.stderr)
        sys.exit(ERROR)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except Exception:
        traceback.print_exc()
        print("tightrope: internal error; please report the lines above", file=sys.stderr)
        sys.exit(ERROR)
    sys.exit(code if isinstance(code, int) else HEALTHY)


__all__ = ["main"]
