from __future__ import annotations

import dataclasses
import itertools
import math
from types import SimpleNamespace

import pytest

from tightrope.law import Law
from tightrope.report import picture, story, wire
from tightrope.report.model import Report


@pytest.mark.parametrize("factor", [0.3, 1.0, 1.7])
def test_factor_per_layer_is_the_one_the_rows_were_made_with(made: SimpleNamespace, factor: float) -> None:
    drawn = wire.build(made.report(factor=factor))
    assert drawn.layers == 20
    assert drawn.signal.trend.measured == pytest.approx(factor)
    assert drawn.signal.trend.predicted == pytest.approx(factor)
    assert drawn.gradient.trend.measured == pytest.approx(factor)  # made to shrink by it on the way back
    assert drawn.signal.start == pytest.approx(1.0)
    assert drawn.signal.end == pytest.approx(factor**19)


def test_depth_counts_weights_not_rows(made: SimpleNamespace) -> None:
    rows = []
    for layer in range(10):
        rows += [made.row(3 * layer, factor=0.8), made.row(3 * layer + 1, op="relu", factor=0.8)]
        rows += [made.row(3 * layer + 2, op="view", factor=0.8, trivial=True)]
    drawn = wire.build(dataclasses.replace(made.report(), laws=tuple(rows)))
    assert drawn.layers == 10
    assert len(drawn.points) == 20
    assert drawn.signal.trend.measured == pytest.approx(0.8**3)


def test_products_count_where_a_network_has_no_layers(made: SimpleNamespace) -> None:
    rows = tuple(made.row(i, op="matmul", factor=0.5) for i in range(5))
    assert wire.build(dataclasses.replace(made.report(), laws=rows)).layers == 5


def test_one_odd_layer_does_not_move_the_factor(made: SimpleNamespace) -> None:
    rows = [made.row(i, factor=0.5) for i in range(20)]
    rows[-1] = made.row(20, measured=Law(0.0, residual=100.0))
    drawn = wire.build(dataclasses.replace(made.report(), laws=tuple(rows)))
    assert drawn.signal.trend.measured == pytest.approx(0.5, rel=0.02)


def test_a_bias_does_not_hide_a_fading_signal(made: SimpleNamespace) -> None:
    laws = [Law(0.0, constant=1.0, residual=0.25**i, error=0.01) for i in range(20)]
    rows = tuple(made.row(i, predicted=law, measured=law) for i, law in enumerate(laws))
    drawn = wire.build(dataclasses.replace(made.report(), laws=rows))
    assert drawn.signal.unit == "std between samples"
    assert drawn.signal.trend.measured == pytest.approx(0.5)


def test_reading_has_its_band() -> None:
    reading = wire.reading(Law(0.0, residual=4.0, error=0.1))
    assert reading is not None
    assert reading.value == 2.0
    assert math.log(reading.high / reading.value) == pytest.approx(0.2)
    assert wire.reading(Law(3.0)) is None
    assert wire.reading(Law(3.0), "rms") is not None
    assert wire.reading(Law(0.0, residual=math.inf)) is None
    assert wire.reading(None) is None


def test_blocks_are_runs_of_modules(made: SimpleNamespace) -> None:
    names = ["stem", "layers.0.a", "layers.0.b", "layers.0", "layers.1.a", "layers.1.b", "head"]
    rows = tuple(made.row(i, module=name) for i, name in enumerate(names))
    drawn = wire.build(dataclasses.replace(made.report(), laws=rows))
    outer = [(block.name, block.first, block.last) for block in drawn.blocks if block.level == 0]
    assert outer == [("stem", 0, 0), ("layers.0", 1, 3), ("layers.1", 4, 5), ("head", 6, 6)]


def test_flags_stand_at_their_entry_and_span_their_modules(made: SimpleNamespace) -> None:
    findings = (
        made.finding(index=4, modules=("net.4", "net.9")),
        made.finding("unscaled-input", index=-1, modules=()),
        made.finding("vanishing-gradient", index=0, modules=("net.0",)),
    )
    flags = wire.build(made.report(*findings)).flags
    assert [(flag.position, flag.first, flag.last, flag.side) for flag in flags] == [
        (4, 4, 9, "signal"), (-1, -1, -1, "signal"), (0, 0, 0, "gradient"),
    ]  # fmt: skip


def test_non_finite_points_are_marked(broken: Report) -> None:
    drawn = wire.build(broken)
    assert next(point.op for point in drawn.points if not point.finite) == "log"
    shown = picture.draw(drawn, story.groups(broken.findings), frozenset())
    assert shown.signal.broken
    assert shown.gradient.empty


def test_picture_holds_every_point_inside(report: Report) -> None:
    drawn = wire.build(report)
    for narrow in (False, True):
        shown = picture.draw(drawn, story.groups(report.findings), frozenset(), narrow=narrow)
        for panel in (shown.signal, shown.gradient):
            dots = (panel.measured + panel.outside).split("M")[1:]
            heights = [float(dot.split()[1].removesuffix("h.001")) for dot in dots]
            assert all(0 <= y <= panel.height for y in heights)
            assert panel.top + panel.height <= shown.height
        for pennant in shown.pennants:
            assert 9 <= pennant.y <= shown.height - 9
            assert shown.left <= pennant.pixel <= shown.left + shown.plot


def test_crowded_flags_do_not_cover_each_other(made: SimpleNamespace) -> None:
    findings = [made.finding(f"check-{i}", index=i, modules=(f"net.{i}",)) for i in range(20)]
    report = made.report(*findings, rows=200)
    shown = picture.draw(wire.build(report), story.groups(report.findings), frozenset())
    for i, one in enumerate(shown.pennants):
        for other in shown.pennants[i + 1 :]:
            assert abs(one.pixel - other.pixel) >= 22 or abs(one.y - other.y) >= 18


def test_labels_of_a_level_do_not_overlap(made: SimpleNamespace) -> None:
    shown = picture.draw(wire.build(made.report(rows=600, factor=1.01)), [], frozenset())
    edges = sorted((label.pixel, len(label.shown) * picture.CHARACTER / 2) for label in shown.labels if label.shown)
    assert len(edges) > 5
    for (left, half), (right, other) in itertools.pairwise(edges):
        assert left + half <= right - other


def test_points_off_their_prediction_are_told_apart(made: SimpleNamespace) -> None:
    law = Law(0.0, residual=1.0, error=0.01)
    near, far = Law(0.0, residual=1.04**2, error=0.01), Law(0.0, residual=1.06**2, error=0.01)  # 2.8 and 4.1 errors
    rows = (made.row(0, predicted=law, measured=near), made.row(1, predicted=law, measured=far))
    panel = picture.draw(wire.build(dataclasses.replace(made.report(), laws=rows)), [], frozenset()).signal
    assert panel.measured.startswith("M0.5 ")
    assert panel.outside.startswith("M1.5 ")
    guessed = picture.draw(wire.build(dataclasses.replace(made.report(), laws=rows)), [], frozenset({0, 1})).signal
    assert guessed.simulated.count("M") == 2
