"""The zoo's catalogue: complete, and true of the scripts that lie beside it."""

from __future__ import annotations

import importlib.util
import math
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tightrope.checks.registry import all_checks

ZOO = Path(__file__).parents[1] / "examples" / "zoo"

PLANNED = (
    "attention-bandwidth",
    "attention-saturation",
    "blocked-skip",
    "clipping-always",
    "constant-feature",
    "constant-head",
    "correlated-batch",
    "decayed-norm-or-bias",
    "detached-branch",
    "dropout-before-norm",
    "dropout-in-eval",
    "exploding-recurrence",
    "frozen-by-accident",
    "hidden-by-mask",
    "half-precision-overflow",
    "heavy-tailed-gradient",
    "input-shift",
    "l2-in-adam",
    "label-mismatch",
    "label-order",
    "last-layer-init",
    "learning-rate-too-high",
    "learning-rate-too-low",
    "loss-broadcast",
    "loss-scale",
    "missing-zero-grad",
    "naive-log",
    "naive-softmax",
    "non-finite-input",
    "outside-sweet-spot",
    "parameter-not-optimised",
    "rank-collapse",
    "sample-mixing",
    "shuffled-labels",
    "single-linear-stack",
    "target-outside-head-range",
    "time-drift",
    "tiny-batch-norm",
    "train-eval-mismatch",
    "unscaled-target",
    "unused-parameter",
    "wrong-mode",
    "wrong-norm-axis",
    "wrong-softmax-axis",
    "zero-gamma",
)
"""Names that a cause may have before its check is written."""


def _catalogue() -> ModuleType:
    spec = importlib.util.spec_from_file_location("zoo_catalogue", ZOO / "catalogue.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


catalogue = _catalogue()
SCRIPTS = catalogue.load()
SICK = [script for script in SCRIPTS if script.kind == "sick"]


@pytest.mark.parametrize("kind", catalogue.KINDS)
def test_every_script_is_in_the_catalogue_and_the_other_way_round(kind: str) -> None:
    assert {s.name for s in SCRIPTS if s.kind == kind} == {path.stem for path in (ZOO / kind).glob("*.py")}


def test_there_are_enough_of_both_kinds_and_parts() -> None:
    count = {(k, p): sum((s.kind, s.part) == (k, p) for s in SCRIPTS) for k in catalogue.KINDS for p in catalogue.PARTS}
    assert len(SICK) >= 80 and len(SCRIPTS) - len(SICK) >= 60
    assert min(count.values()) >= 20, count


def test_the_digest_of_the_name_decides_on_the_part() -> None:
    assert [s.name for s in SCRIPTS if s.part != catalogue.part_of(s.name)] == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.name)
def test_a_script_is_plain_and_ends_with_its_metric(script) -> None:  # type: ignore[no-untyped-def]
    source = script.path.read_text()
    compile(source, script.name, "exec")
    assert "tightrope" not in source
    assert re.search(rf'print\(f"{script.metric} \{{', source.rstrip().splitlines()[-1])


@pytest.mark.parametrize("script", SICK, ids=lambda s: s.name)
def test_a_sick_script_has_a_cause_and_a_twin_that_is_better(script) -> None:  # type: ignore[no-untyped-def]
    compile(script.twin_source(), script.name, "exec")
    assert script.twin_source() != script.path.read_text()
    unknown = set(script.causes) - set(all_checks()) - set(PLANNED)
    assert script.causes and not unknown, unknown
    assert script.better(script.twin_reached, script.reached) or script.harm
    assert not script.as_good(script.reached, script.twin_reached) or script.harm


def test_a_loss_may_be_as_low_and_an_accuracy_as_high() -> None:
    loss = catalogue.Script("a", "sick", "design", "loss", 1.0)
    accuracy = catalogue.Script("a", "sick", "design", "accuracy", 0.5)
    assert loss.as_good(1.04, 1.0) and not loss.as_good(1.06, 1.0) and loss.as_good(0.2, 1.0)
    assert accuracy.as_good(0.88, 0.9) and not accuracy.as_good(0.87, 0.9) and accuracy.as_good(0.95, 0.9)
    assert not loss.as_good(math.nan, 1.0) and loss.better(1.0, math.nan) and not loss.better(math.nan, math.nan)


def test_a_text_that_does_not_stand_once_is_an_error() -> None:
    script = catalogue.Script("mlp", "healthy", "design", "accuracy", 0.9, twin=(("no such line", ""),))
    with pytest.raises(ValueError, match="stands 0 times"):
        script.twin_source()
