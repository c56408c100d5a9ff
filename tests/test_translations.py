"""The Chinese pages say what the English ones say: same parts, same code, same figures."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WHOLE = ("README", "doctor", "faq", "forecast", "layers", "tour")
"""Pages with a Chinese version of the same parts."""
FENCE = re.compile(r"^```.*?^```", flags=re.M | re.S)


def pair(name: str) -> tuple[str, str]:
    english, chinese = ("README.md", "README.zh.md") if name == "README" else (f"docs/{name}.md", f"docs/zh/{name}.md")
    return (ROOT / english).read_text(encoding="utf-8"), (ROOT / chinese).read_text(encoding="utf-8")


def blocks(text: str) -> list[str]:
    """Fenced blocks without their comments, which are translated."""
    return [re.sub(r" *# .*$", "", block, flags=re.M) for block in FENCE.findall(text)]


def sections(text: str) -> list[tuple[str, str]]:
    """Level of each heading, and the text below it without code."""
    parts = re.split(r"^(#+) ", FENCE.sub("", text), flags=re.M)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def figures(text: str) -> list[str]:
    """Numbers of a text, but not those of link targets."""
    return re.findall(r"\d+(?:[.,]\d+)*(?:e-?\d+)?", re.sub(r"\]\([^)]*\)", "]", text))


def rows(text: str) -> list[list[str]]:
    """Figures of each row of each table."""
    return [figures(line) for line in FENCE.sub("", text).splitlines() if line.startswith("|")]


@pytest.mark.parametrize("name", WHOLE)
def test_headings_code_and_tables_are_the_same(name: str) -> None:
    english, chinese = pair(name)
    assert [level for level, _ in sections(chinese)] == [level for level, _ in sections(english)]
    assert blocks(chinese) == blocks(english)
    assert rows(chinese) == rows(english)


@pytest.mark.parametrize("name", WHOLE)
def test_figures_of_each_section_are_the_same(name: str) -> None:
    english, chinese = pair(name)
    for (_, theirs), (_, ours) in zip(sections(english), sections(chinese), strict=True):
        assert Counter(figures(ours)) == Counter(figures(theirs)), theirs.splitlines()[0]


def test_code_and_figures_of_the_page_of_instruments_are_those_of_their_own_pages() -> None:
    chinese = (ROOT / "docs/zh/instruments.md").read_text(encoding="utf-8")
    pages = [(ROOT / "docs/zh" / link).read_text(encoding="utf-8") for link in re.findall(r"\]\(([^)]*)\)", chinese)]
    english = "\n".join(pages)
    lines = {line.strip() for page in pages for block in blocks(page) for line in block.split("\n")}
    for block in blocks(chinese):
        for line in block.split("\n"):
            assert line.strip() in lines, line
    assert set(figures(FENCE.sub("", chinese))) <= set(figures(english))
