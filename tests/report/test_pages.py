from __future__ import annotations

import dataclasses

import pytest

from tightrope.checks.registry import SECTIONS, Check, all_checks
from tightrope.report import pages


def make(name: str = "bad-scale", stage: str = "batch", law: str = "Var(z) = n Var(w) E[a^2]. It follows.") -> Check:
    page = {section: f"Text of {section} with `code < 1`." for section in SECTIONS} | {"Law": law}
    some = next(iter(all_checks().values()))
    return dataclasses.replace(some, name=name, title="a scale is wrong.", page=page, stage=stage)


def test_every_page_renders() -> None:
    for check in all_checks().values():
        text = pages.terminal(check, width=90)
        assert max(map(len, text.splitlines())) <= 90
        for section in SECTIONS:
            assert section in text
        assert [name for name, _ in pages.sections(check)] == list(SECTIONS)
        assert pages.law(check)


def test_law_is_the_first_statement() -> None:
    assert pages.law(make()) == "Var(z) = n Var(w) E[a^2]"
    assert pages.law(make(law="a rate of 0.5 a layer. More.")) == "A rate of 0.5 a layer"


@pytest.mark.parametrize(
    ("text", "markup"),
    [
        ("a < b & c", "a &lt; b &amp; c"),
        ("`x < 1`", "<code>x &lt; 1</code>"),
        ("E[a^2] and e^(-x)", "E[a<sup>2</sup>] and e<sup>-x</sup>"),
        ("`a^2`", "<code>a^2</code>"),
        ("<img src=x>", "&lt;img src=x&gt;"),
    ],
)
def test_text_becomes_safe_markup(text: str, markup: str) -> None:
    assert pages.inline(text) == markup


def test_catalogue_lists_by_stage() -> None:
    checks = [make("b-check"), make("a-check"), make("z-check", "graph")]
    lines = pages.catalogue(checks, width=80).splitlines()
    order = [line.split()[0] for line in lines if line]
    assert order == ["graph:", "z-check", "batch:", "a-check", "b-check"]
