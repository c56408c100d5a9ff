"""Pages that are made from the code when the documentation is built, so that they cannot fall behind it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import tightrope
from tightrope.checks.registry import SECTIONS, Check, all_checks
from tightrope.rules.registry import known_ops

ROOT = Path(__file__).resolve().parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {
        "index.md": home(),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        "contributing.md": relative((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")),
        "checks.md": checks_page(),
        "python.md": python_page(),
        "operations.md": operations_page(),
    }
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def home() -> str:
    """The README, its links seen from here."""
    return relative((ROOT / "README.md").read_text(encoding="utf-8"))


def relative(text: str) -> str:
    """Links of a file at the top of the repository, seen from `docs/`."""
    text = text.replace("](docs/", "](").replace('src="docs/', 'src="')
    for name in ("CHANGELOG", "CONTRIBUTING"):
        text = text.replace(f"]({name}.md", f"]({name.lower()}.md")
    # What is not part of these pages stays a name.
    return re.sub(
        r"\[([^\]]+)\]\((?:README[^)]*|LICENSE|src/[^)]*|tests/[^)]*|examples/[^)]*|benchmarks/[^)]*)\)", r"\1", text
    )


def checks_page() -> str:
    """Every check's own page, one below the other."""
    checks = all_checks()
    lines = [
        "# Checks",
        "",
        "Each check is one file whose docstring is the text below; `tightrope explain NAME` prints it in a terminal.",
        "",
        "| check | what it finds |",
        "| --- | --- |",
        *(f"| [`{check.name}`](#{check.name}) | {escaped(check.title)} |" for check in checks.values()),
        "",
    ]
    for check in checks.values():
        lines += section(check, set(checks))
    return "\n".join(lines)


def section(check: Check, known: set[str]) -> list[str]:
    """One check's page."""
    lines = [f"## {check.name} {{#{check.name}}}", "", f"*{escaped(check.title)}*", ""]
    for name in SECTIONS:
        lines += [f"**{name}.** {escaped(check.page[name])}", ""]
    explains = [name for name in check.explains if name in known]
    if explains:
        links = ", ".join(f"[`{name}`](#{name})" for name in explains)
        lines += [f"**Explains.** Findings of {links} that follow from it are listed below it.", ""]
    return lines


def escaped(text: str) -> str:
    """Docstring text as Markdown: formulas keep their stars and brackets, names in backticks stay code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([*_\[\]<>|~^])", r"\\\1", p) for p in parts)


def python_page() -> str:
    """Signature and docstring of every public name."""
    lines = ["# Python", "", "```python", "import tightrope as tr", "```", ""]
    for name in tightrope.__all__:
        thing: Any = getattr(tightrope, name)
        lines += [f"## tr.{name} {{#{name}}}", ""]
        if inspect.isfunction(thing):
            lines += ["```python", f"{name}{inspect.signature(thing)}", "```", ""]
        lines += ["```text", inspect.getdoc(thing) or "", "```", ""]
    return "\n".join(lines)


def operations_page() -> str:
    """The operations with a rule."""
    names = ", ".join(f"`{name}`" for name in known_ops())
    return (
        "# Operations with a rule\n\n"
        "Names are those of the tape: `torch.add`, `x + y` and `Tensor.add_` are all `add`. "
        "An operation that is not listed is evaluated numerically on its predicted input law, and marked so.\n\n"
        f"{names}\n"
    )
