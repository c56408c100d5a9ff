"""Pages that are made from the code when the documentation is built, so that they cannot fall behind it."""

from __future__ import annotations

import inspect
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import tightrope
from tightrope.checks.registry import SECTIONS, Check, all_checks
from tightrope.lab import Claim, Experiment, all_experiments, show
from tightrope.report.pages import STAGES
from tightrope.rules.registry import known_ops

ROOT = Path(__file__).resolve().parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {
        "index.md": home(),
        "zh/index.md": chinese_home(),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        "contributing.md": relative((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")),
        "checks.md": checks_page(),
        "python.md": python_page(),
        "operations.md": operations_page(),
        "lab.md": lab_page(),
        **{f"checks/{check.name}.md": check_page(check) for check in all_checks().values()},
        **{f"lab/{name}.md": experiment_page(experiment) for name, experiment in all_experiments().items()},
    }
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A page and its Chinese version name each other under their titles."""
    here = page.file.src_uri
    if here.startswith("zh/"):
        there, name = here.removeprefix("zh/"), "English"
    else:
        there, name = "zh/instruments.md" if here.startswith("instruments/") else f"zh/{here}", "中文"
    if files.get_file_from_path(there) is None:
        return markdown
    title, rest = markdown.split("\n", 1)
    return f"{title}\n\n[{name}]({posixpath.relpath(there, posixpath.dirname(here))})\n{rest}"


def home() -> str:
    """The README, its links seen from here."""
    return relative((ROOT / "README.md").read_text(encoding="utf-8"))


def chinese_home() -> str:
    """The Chinese README, its links seen from `docs/zh/`: what has no Chinese page is a folder higher."""
    text = re.sub(r"\]\(docs/(?!zh/)", "](docs/../", (ROOT / "README.zh.md").read_text(encoding="utf-8"))
    for name in ("CHANGELOG", "CONTRIBUTING"):
        text = text.replace(f"]({name}.md", f"](../{name.lower()}.md")
    return relative(text.replace("](docs/zh/", "]("))


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
    """The catalogue of checks, by the stage at which they can be judged."""
    checks = all_checks()
    lines = [
        "# Checks",
        "",
        "Each check is one file whose docstring is its page; `tightrope explain NAME` prints it in a terminal, "
        "`tightrope explain --list` this catalogue. How findings are ordered and what they may say: "
        "[The doctor](doctor.md).",
        "",
    ]
    for stage, when in STAGES.items():
        here = [check for check in checks.values() if check.stage == stage]
        lines += [f"## Judged {when}", "", "| check | what it finds |", "| --- | --- |"]
        lines += [f"| [`{check.name}`](checks/{check.name}.md) | {escaped(check.title)} |" for check in here]
        lines += [""]
    return "\n".join(lines)


def check_page(check: Check) -> str:
    """One check's page."""
    lines = [f"# {check.name}", "", f"*{escaped(check.title)}*", ""]
    for name in SECTIONS:
        lines += [f"**{name}.** {escaped(check.page[name])}", ""]
    known = all_checks()
    explains = ", ".join(f"[`{name}`]({name}.md)" for name in check.explains if name in known)
    if explains:
        lines += [f"**Explains.** Findings of {explains} that follow from it are listed below it.", ""]
    causes = ", ".join(f"[`{c.name}`]({c.name}.md)" for c in known.values() if check.name in c.explains)
    if causes:
        lines += [f"**May follow from.** {causes}.", ""]
    lines += [f"Judged {STAGES[check.stage]}. [All checks](../checks.md)", ""]
    return "\n".join(lines)


def lab_page() -> str:
    """All experiments, with what they found last."""
    lines = [
        "# The laboratory",
        "",
        "Every law that tightrope relies on is an experiment: predicted beside measured, with an error bar, and a "
        "verdict that is computed from the two numbers. `tightrope lab NAME --quick` runs one in seconds, "
        "`tightrope lab --all --quick` all of them, `--html` writes a page with the figure. A claim holds when the "
        "two numbers differ by no more than the band that the page states and three standard errors; it is "
        "unresolved where those errors are too large to decide.",
        "",
        "| | experiment | law | claims | verdict |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, experiment in all_experiments().items():
        found = stored(name)
        held = sum(claim["verdict"] == "holds" for claim in found["claims"])
        lines.append(
            f"| {', '.join(experiment.principles)} | [{name}](lab/{name}.md) | {escaped(experiment.page.title)} "
            f"| {held} of {len(found['claims'])} | {found['verdict']} |"
        )
    return "\n".join([*lines, ""])


def stored(name: str) -> dict[str, Any]:
    """What an experiment found when `tightrope lab --all --quick --out docs/lab` was last run."""
    content: dict[str, Any] = json.loads((ROOT / "docs" / "lab" / f"{name}.json").read_text(encoding="utf-8"))
    return content


def experiment_page(experiment: Experiment) -> str:
    """One experiment's page."""
    found = stored(experiment.name)
    size = " --quick" if found["quick"] else ""
    seeds = found["seeds"]
    lines = [f"# {experiment.name}", "", f"*{escaped(experiment.page.title)}*", ""]
    lines += [f"![Predicted and measured]({experiment.name}.svg)", ""]
    lines += ["| claim | predicted | measured | band | verdict |", "| --- | --- | --- | --- | --- |"]
    for row in found["claims"]:
        claim = Claim(**{key: row[key] for key in ("text", "predicted", "measured", "error", "band", "relation")})
        cells = (show.SIGNS[claim.relation] + show.number(claim.predicted), show.measured(claim), show.band(claim))
        lines.append(f"| {escaped(claim.text)} | {' | '.join(cells)} | {claim.verdict} |")
    lines += ["", "Lines are the law, points the measurement with bars of two standard errors.", ""]
    for name, text in experiment.page.sections.items():
        lines += [f"**{name}.** {escaped(text)}", ""]
    run = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
    lines += [f"`tightrope lab {experiment.name}{size}` · {', '.join(experiment.principles)} · {run}, "
              f"{found['seconds']:.0f} s. [All experiments](../lab.md)", ""]  # fmt: skip
    return "\n".join(lines)


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
