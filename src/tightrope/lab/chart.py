"""The figure of an experiment: its panels as a Vega-Lite chart, drawn offline."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from tightrope.errors import InputError
from tightrope.lab.experiment import Panel, Series

WIDTH, HEIGHT = 340, 240
COLOURS = ("#0b6bcb", "#d1620a", "#2e8b57", "#a3348c", "#6b5b1e", "#b3262e", "#0f8a9d", "#555c66")
"""Told apart on white with every common colour blindness up to the first five."""


def spec(panels: Sequence[Panel], title: str = "") -> dict[str, Any]:
    """The panels, two in a row, as a Vega-Lite specification."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "title": {"text": title, "anchor": "start", "fontSize": 15} if title else "",
        "background": "white",
        "config": {
            "aria": False,
            "view": {"stroke": "#c8ccd2"},
            "axis": {"gridColor": "#eceef1", "domainColor": "#8a919c", "labelFontSize": 11, "titleFontSize": 12,
                     "titleFontWeight": "normal"},
            "legend": {"labelFontSize": 11, "title": None, "orient": "bottom", "columns": 3, "labelLimit": 240},
        },
        "concat": [_panel(panel) for panel in panels],
        "columns": 2,
        "spacing": 28,
        "resolve": {"scale": {"color": "independent"}},
    }  # fmt: skip


def svg(panels: Sequence[Panel], title: str = "") -> str:
    """The figure as SVG text."""
    text = _converter().vegalite_to_svg(json.dumps(spec(panels, title)), vl_version="5.20")
    return str(text)


def png(panels: Sequence[Panel], title: str = "", *, scale: float = 1.5) -> bytes:
    """The figure as a PNG image."""
    return bytes(_converter().vegalite_to_png(json.dumps(spec(panels, title)), vl_version="5.20", scale=scale))


def _converter() -> Any:
    try:
        import vl_convert
    except ImportError as error:
        raise InputError(
            "draw a figure", "vl-convert-python is not installed", 'Run: pip install "tightrope[lab]"'
        ) from error
    return vl_convert


def _panel(panel: Panel) -> dict[str, Any]:
    names = list(dict.fromkeys(series.name for series in panel.series))
    colour: dict[str, Any] = {
        "field": "name", "type": "nominal",
        "scale": {"domain": names, "range": [COLOURS[n % len(COLOURS)] for n in range(len(names))]},
    }  # fmt: skip
    if len(names) == 1 and not names[0]:
        colour["legend"] = None
    x = {"field": "x", "type": "quantitative", "title": panel.x, "scale": _scale(panel.log_x)}
    y = {"field": "y", "type": "quantitative", "title": panel.y, "scale": _scale(panel.log_y)}
    for axis, logarithmic in ((x, panel.log_x), (y, panel.log_y)):
        axis["axis"] = {"format": ".4~g", "tickCount": 6} if logarithmic else {"tickCount": 6}
    if panel.ticks:
        x["axis"] = {"values": list(range(len(panel.ticks))), "labelExpr": f"{json.dumps(panel.ticks)}[datum.value]",
                     "labelAngle": -35, "labelOverlap": False, "labelLimit": 140, "grid": False}  # fmt: skip
        x["scale"] = {"domain": [-0.5, len(panel.ticks) - 0.5], "nice": False}
    layers = []
    for series in panel.series:
        common = {"x": x, "y": y, "color": colour}
        data = {"values": _rows(series, panel)}
        if series.kind == "measured":
            if len(series.errors):
                bars = {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour}
                layers.append({"data": data, "mark": {"type": "rule", "strokeWidth": 1.2}, "encoding": bars})
            mark = {"type": "point", "filled": True, "size": 34, "opacity": 0.9}
        elif panel.ticks and series.kind == "law":
            mark = {"type": "tick", "orient": "horizontal", "thickness": 2.5, "width": 12, "opacity": 0.75}
        else:
            dash = [5, 4] if series.kind == "reference" else [1, 0]
            mark = {"type": "line", "strokeWidth": 1.8, "strokeDash": dash, "opacity": 0.75}
        layers.append({"data": data, "mark": mark, "encoding": {**common, "order": {"field": "n"}}})
    return {"title": {"text": panel.title, "fontWeight": "normal", "fontSize": 13}, "width": WIDTH, "height": HEIGHT,
            "layer": layers}  # fmt: skip


def _scale(logarithmic: bool) -> dict[str, Any]:
    return {"type": "log"} if logarithmic else {"zero": False, "nice": True}


def _rows(series: Series, panel: Panel) -> list[dict[str, Any]]:
    rows = []
    errors = list(series.errors) or [0.0] * len(series.y)
    for n, (x, y, error) in enumerate(zip(map(float, series.x), map(float, series.y), errors, strict=True)):
        if not (math.isfinite(x) and math.isfinite(y)) or (panel.log_x and x <= 0) or (panel.log_y and y <= 0):
            continue
        low, high = y - 2 * float(error), y + 2 * float(error)
        if panel.log_y and low <= 0:
            low = y / 2
        rows.append({"n": n, "name": series.name, "x": x, "y": y, "low": low, "high": high})
    return rows
