"""What a run of an experiment shows: text for the terminal, one offline page, plain data."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tightrope.lab import chart
from tightrope.lab.experiment import SIGMAS, Claim
from tightrope.lab.registry import Experiment, Outcome
from tightrope.report.pages import inline
from tightrope.version import VERSION

SIGNS = {"=": "", "<=": "≤ ", ">=": "≥ "}


def listing(experiments: Sequence[Experiment]) -> str:
    """Names, a line each."""
    return "\n".join(experiment.name for experiment in experiments)


def terminal(outcome: Outcome, *, width: int = 100) -> str:
    """The claims of one experiment as text of at most `width` columns."""
    experiment, result = outcome.experiment, outcome.result
    head = f"{experiment.name} ({', '.join(experiment.principles)}): {experiment.page.title}"
    lines = [textwrap.fill(head, width), "", f"  {'predicted':>12}  {'measured':>20}  {'band':>9}  verdict"]
    for claim in result.claims:
        low, high = number(claim.predicted), measured(claim)
        lines.append(f"  {SIGNS[claim.relation] + low:>12}  {high:>20}  {band(claim):>9}  {claim.verdict}")
        lines.append(textwrap.fill(claim.text, width, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return "\n".join([*lines, "", f"  {summary(outcome)}"])


def line(outcome: Outcome) -> str:
    """One experiment in one line."""
    worst = max(outcome.result.claims, key=lambda claim: claim.excess)
    return f"{outcome.result.verdict:<10}  {outcome.experiment.name:<22} {outcome.seconds:6.1f} s  {_words(worst)}"


def summary(outcome: Outcome) -> str:
    """How many claims hold, the time, the seeds."""
    claims, seeds = outcome.result.claims, outcome.result.seeds
    held = sum(claim.verdict == "holds" for claim in claims)
    run = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    word = "seed" if len(seeds) == 1 else "seeds"
    size = "quick" if outcome.trial.quick else "full"
    return f"{held} of {len(claims)} claims hold · {outcome.seconds:.1f} s · {word} {run} · {size}"


def page(outcome: Outcome) -> str:
    """One offline HTML page with the figure, the claims and the experiment's page."""
    environment = Environment(
        loader=PackageLoader("tightrope.lab", "assets"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    sections = [(name, Markup(inline(text))) for name, text in outcome.experiment.page.sections.items()]
    return environment.get_template("lab.html").render(
        experiment=outcome.experiment, outcome=outcome, figure=Markup(chart.svg(outcome.result.panels)),
        sections=sections, summary=summary(outcome), signs=SIGNS, number=number, measured=measured, band=band,
        sigmas=f"{SIGMAS:g}", version=VERSION,
    )  # fmt: skip


def data(outcome: Outcome) -> dict[str, Any]:
    """The claims as plain data."""
    return {
        "experiment": outcome.experiment.name,
        "principles": list(outcome.experiment.principles),
        "title": outcome.experiment.page.title,
        "verdict": outcome.result.verdict,
        "quick": outcome.trial.quick,
        "seeds": list(outcome.result.seeds),
        "seconds": round(outcome.seconds, 1),
        "claims": [
            {
                "text": claim.text, "relation": claim.relation, "predicted": claim.predicted,
                "measured": claim.measured, "error": claim.error, "band": claim.band, "verdict": claim.verdict,
            }
            for claim in outcome.result.claims
        ],
    }  # fmt: skip


def number(value: float) -> str:
    """Four significant digits."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.4g}" if 1e-3 <= abs(value) < 1e5 else f"{value:.3e}"


def measured(claim: Claim) -> str:
    """What was measured, with its standard error."""
    return number(claim.measured) + (f" ± {claim.error:.2g}" if claim.error else "")


def band(claim: Claim) -> str:
    """How far the law may be off: as a share of the prediction, or in its units where it is about zero."""
    if claim.relation != "=":
        return "bound"
    if not claim.band:
        return "exact"
    share = claim.band / abs(claim.predicted) if claim.predicted else math.inf
    return f"{100 * share:.2g} %" if share <= 0.5 else f"± {claim.band:.2g}"


def _words(claim: Claim) -> str:
    sign = {"=": "predicted", "<=": "at most", ">=": "at least"}[claim.relation]
    return f"{claim.text}: {measured(claim)}, {sign} {number(claim.predicted)}"
