"""Examples of the pages run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"


INSTRUMENTS = (
    "batch-noise",
    "compass",
    "curvature",
    "estimators",
    "expressivity",
    "margin",
    "robustness",
    "uncertainty",
)
PAGES = ("layers.md", *(f"instruments/{name}.md" for name in INSTRUMENTS))


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_are_one_program(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    assert blocks
    exec(compile("\n".join(blocks), page, "exec"), {"__name__": page})
    assert capsys.readouterr().out
