"""Imports go one way: from the nouns at the bottom to the command line at the top."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import tightrope

ROOT = Path(tightrope.__file__).parent
LAYERS = (
    ("edit", "errors", "groups", "isolation", "law", "page", "roles", "version"),
    ("nn", "tape"),
    ("rules",),
    ("predict",),
    ("measure",),
    ("compare",),
    ("evaluation", "finding", "inputs", "replay", "study", "subject"),
    ("loader", "step"),
    ("checks",),
    ("initialize",),
    ("remedies",),
    ("diagnose", "repair"),
    ("report",),
    ("check", "instruments", "outlook", "precision", "scaling", "variants", "watch"),
    ("fix", "run"),
    ("factory", "lab"),
    ("cli",),
)
RENDERERS = {"tightrope.report.html", "tightrope.report.terminal"}
"""What a noun may import inside a function, to show itself."""
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] not in ("__init__", "__main__", "demo"):
            yield parts[0], path


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Full names of the package's own modules that a file imports, anywhere in it, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            if node.module == "tightrope":
                yield from ((f"tightrope.{alias.name}", node.lineno) for alias in node.names)
            elif node.module and node.module.startswith("tightrope."):
                yield node.module, node.lineno
        elif isinstance(node, ast.Import):
            yield from ((a.name, node.lineno) for a in node.names if a.name.startswith("tightrope"))


def test_every_module_has_a_layer() -> None:
    assert {name for name, _ in modules()} <= set(LEVEL)


def test_imports_point_downwards() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {target}"
        for name, path in modules()
        for target, line in imported(path)
        if target not in RENDERERS and LEVEL.get(target.split(".")[1], -1) > LEVEL[name]
    ]
    assert not wrong, "\n".join(wrong)


def test_renderers_are_imported_inside_functions_only() -> None:
    for _, path in modules():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = {n.module for n in tree.body if isinstance(n, ast.ImportFrom)}
        assert not top & RENDERERS or path.parent.name in ("report", "cli"), path


def test_no_cycle_between_modules_at_import_time() -> None:
    graph = {}
    for path in ROOT.rglob("*.py"):
        name = ".".join(("tightrope", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        graph[name] = {n.module for n in tree.body if isinstance(n, ast.ImportFrom) and n.module}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way, name))
        if name in done or name not in graph:
            return
        for target in graph[name]:
            if not name.startswith(f"{target}."):  # a package is open while its own modules load
                visit(target, (*way, name))
        done.add(name)

    for name in graph:
        if name != "tightrope":
            visit(name, ())
