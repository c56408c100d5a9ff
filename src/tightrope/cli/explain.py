"""`tightrope explain`."""

from __future__ import annotations

import click


@click.command()
@click.option("--list", "everything", is_flag=True, help="List all checks.")
@click.option("--format", "style", type=click.Choice(["text", "json"]), default="text", help="What to print.")
@click.argument("check", required=False)
def command(check: str | None, everything: bool, style: str) -> int:
    """Print the page of CHECK: its law, evidence, verdict, remedy, limits and references."""
    import json

    from tightrope.checks.registry import all_checks, get
    from tightrope.report import pages

    if everything == (check is not None):
        raise click.UsageError("name one check, or pass --list")
    if check is None:
        found = all_checks().values()
        print(json.dumps({c.name: c.title for c in found}, indent=1) if style == "json" else pages.catalogue(found))
        return 0
    page = get(check)
    if style == "json":
        print(json.dumps({"check": page.name, "title": page.title, "stage": page.stage, **page.page}, indent=1))
    else:
        print(pages.terminal(page))
    return 0
