"""Every experiment: its page, its principles, its stored result."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from tightrope.errors import TightropeError
from tightrope.lab import Claim, Experiment, Panel, Result, Series, Trial, all_experiments, get, show
from tightrope.page import Page

STORED = Path(__file__).resolve().parents[2] / "docs" / "lab"
NAMES = list(all_experiments())


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_is_found_by_its_name(name: str) -> None:
    experiment = get(name)
    assert experiment.function.__module__ == f"tightrope.lab.experiments.{name.replace('-', '_')}"
    assert all(len(p) == 3 and p[0] == "P" and 1 <= int(p[1:]) <= 33 for p in experiment.principles)
    assert not experiment.page.title.startswith(name) and experiment.page.title.endswith(".")


@pytest.mark.parametrize("name", NAMES)
def test_the_result_that_the_documentation_shows_is_of_this_experiment(name: str) -> None:
    stored = json.loads((STORED / f"{name}.json").read_text(encoding="utf-8"))
    assert stored["experiment"] == name and stored["title"] == get(name).page.title
    assert stored["claims"] and all(math.isfinite(claim["measured"]) for claim in stored["claims"])
    assert (STORED / f"{name}.svg").read_text(encoding="utf-8").startswith("<svg")


@pytest.mark.parametrize("name", ["softmax-shift", "affine-restores"])
def test_a_law_holds_when_it_is_run_again(name: str) -> None:
    outcome = get(name).run(Trial(quick=True))
    assert outcome.result.verdict == "holds", show.terminal(outcome)


def test_every_principle_has_an_experiment() -> None:
    proved = {principle for name in NAMES for principle in get(name).principles}
    assert proved == {f"P{number:02}" for number in range(1, 34)}


def test_random_states_are_left_as_they_were_and_a_seed_decides() -> None:
    def run(trial: Trial) -> Result:
        value = float(torch.rand(()))
        return Result((Claim.equal("a draw", value, value),), (), trial.seeds(2, 4))

    experiment = Experiment(Page("draw", "A draw.", {}), ("P01",), run)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again = experiment.run(Trial(seed=3)), experiment.run(Trial(seed=3))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.result.claims == again.result.claims and first.result.seeds == (3, 4)
    assert experiment.run(Trial(seed=4)).result.claims != first.result.claims


def test_an_unknown_name_is_an_error_that_lists_the_others() -> None:
    with pytest.raises(TightropeError, match="no such experiment"):
        get("no-such-law")


def test_the_page_is_offline_and_holds_the_figure_and_every_claim() -> None:
    def run(trial: Trial) -> Result:
        series = (Series("a", (1, 2), (1.0, 10.0), kind="law"), Series("a", (1, 2), (0.0, 9.0), (0.5, 0.5)))
        claims = (Claim.equal("a < b", 1.0, 1.0), Claim.below("the bound", 1.0, 2.0))
        return Result(claims, (Panel("one", "x", "y", series, log_y=True),))

    outcome = Experiment(Page("small", "A small one.", {"Law": "x^2 < y"}), ("P01",), run).run(Trial())
    page = show.page(outcome)
    assert "<svg" in page and "a &lt; b" in page and "x<sup>2</sup> &lt; y" in page and "fails" in page
    assert "src=" not in page and 'href="http' not in page
    text = show.terminal(outcome)
    assert "1 of 2 claims hold" in text and "≤ 1" in text
