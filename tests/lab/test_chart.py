"""The figure's specification: where x is a list of names."""

from __future__ import annotations

from tightrope.lab import Panel, Series
from tightrope.lab.chart import spec


def test_named_settings_are_ticks_of_the_axis_and_laws_are_dashes() -> None:
    series = (Series("a", (0, 1), (1.0, 2.0), kind="law"), Series("a", (0, 1), (1.1, 2.1), (0.1, 0.1)))
    (named,) = spec([Panel("one", "", "y", series, ticks=("tanh", "ReLU"))])["concat"]
    x = named["layer"][0]["encoding"]["x"]
    assert x["axis"]["values"] == [0, 1] and x["axis"]["labelExpr"] == '["tanh", "ReLU"][datum.value]'
    assert x["scale"]["domain"] == [-0.5, 1.5]
    assert named["layer"][0]["mark"]["type"] == "tick"
    (plain,) = spec([Panel("one", "x", "y", series)])["concat"]
    assert plain["layer"][0]["mark"]["type"] == "line" and "labelExpr" not in plain["layer"][0]["encoding"]["x"]["axis"]
