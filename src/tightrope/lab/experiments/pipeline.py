"""`pipeline`: standardise, initialise, train: the sick script of the demo is cured without a line of it changed.

Law         a script whose inputs have an rms of 8, whose stem is drawn 62 times too wide and whose other layers have
            n Var(w) = 0.0255 passes on what differs between samples by the factor (0.0255 / 2)^1/2 = 0.113 a layer:
            half of the rectifiers are open. After standardising the data, and at 2 / n, the factor is 1, and what was
            noise is a classifier.
Setting     `tightrope run` on the demo's script, on scikit-learn's digits: once as it is, once with the safe remedies
            applied in memory at the first recorded step. The gain is that of six layers behind the first; two
            more end in the rounding of single precision beside their biases. The script prints its own test accuracy.
Band        of 64 rectifiers 32 ± 4 are open, which is 6 % of a layer's gain and 2.5 % of the mean over six; finite
            layers take 5 / (4 n) = 2 % off. Cured layers change their angles between samples too: 5 %. Accuracies are
            of 400 samples: chance is 10 % with a standard error of 1.5 %.
Reading     nothing about the script changes but the law of its input and of its weights; the same optimizer then does
            in one epoch what it did not do in twelve.
References  LeCun, Bottou, Orr, Müller (1998), Efficient backprop, in Neural networks: tricks of the trade; He, Zhang,
            Ren, Sun (2015), Delving deep into rectifiers, ICCV.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
from importlib.util import find_spec

from tightrope.errors import InputError
from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial
from tightrope.report.model import Report
from tightrope.run import Run
from tightrope.run import run as watch

PRINCIPLES = ("P32",)
SICK = 0.0255
"""n Var(w) of the script's layers: 64 times 0.02²."""
LAYERS, LAST, TAKEN = 9, 7, 6
"""Hidden layers after the stem, the last one whose signal is above the rounding of its bias, gains up to there."""
TESTED = 400
"""Test samples of the script."""


def run(trial: Trial) -> Result:
    """The signal's gain and the accuracy by epoch, of the script as it is and with its safe remedies."""
    runs = {name: _watched(fix=name == "cured") for name in ("sick", "cured")}
    (sick, sick_said), (cured, cured_said) = runs["sick"], runs["cured"]
    before, after = sick.report, cured.after
    if before is None or after is None:
        raise InputError("run the demo", "a report is missing", "Run: tightrope demo")
    signals = {"sick": _signal(before), "cured": _signal(after)}
    gains = {name: (s[LAST] / s[LAST - TAKEN]) ** (1 / TAKEN) for name, s in signals.items()}
    law = math.sqrt(SICK / 2)
    last = {name: accuracies[-1] for name, accuracies in (("sick", sick_said), ("cured", cured_said))}
    found = {name: float(sum(f.severity.value != "advice" for f in r.findings)) for name, r in
             (("sick", before), ("cured", after))}  # fmt: skip
    claims = (
        Claim.equal(
            "gain of what differs between samples a layer, sick",
            law,
            gains["sick"],
            law * 0.0625 / math.sqrt(TAKEN),
            within=0.02,
        ),
        Claim.equal("the same, cured", 1.0, gains["cured"], within=0.05),
        Claim.below("test accuracy of the sick script", 0.15, last["sick"], _error(last["sick"])),
        Claim.above("test accuracy of the cured script", 0.8, last["cured"], _error(last["cured"])),
        Claim.above("faults and warnings, sick", 2.0, found["sick"]),
        Claim.below("faults and warnings, cured", 0.0, found["cured"]),
    )
    depth = list(range(1, LAYERS + 1))
    panels = (
        Panel("signal behind the stem", "layer", "std between samples, first layer = 1", (
            Series("sick", depth, [law ** (d - 1) for d in depth], kind="law"),
            Series("sick", depth, [v / signals["sick"][1] for v in signals["sick"][1:]]),
            Series("cured", depth, [1.0] * LAYERS, kind="law"),
            Series("cured", depth, [v / signals["cured"][1] for v in signals["cured"][1:]]),
        ), log_y=True),
        Panel("digits", "epoch", "test accuracy", tuple(
            Series(name, list(range(1, len(said) + 1)), said, [_error(a) for a in said])
            for name, said in (("sick", sick_said), ("cured", cured_said))
        )),
    )  # fmt: skip
    return Result(claims, panels, (0,))


def _watched(*, fix: bool) -> tuple[Run, list[float]]:
    """The run, and the accuracies that the script printed."""
    spec = find_spec("tightrope.demo.sick")
    assert spec is not None and spec.origin is not None
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        made = watch(spec.origin, fix=fix)
    return made, [float(found) / 100 for found in re.findall(r"test accuracy ([\d.]+)%", said.getvalue())]


def _signal(report: Report) -> list[float]:
    """Standard deviations between samples of the ten pre-activations, first recorded step."""
    found = [row.measured.signal for row in report.laws if row.op == "linear" and row.measured is not None]
    return found[: LAYERS + 1]


def _error(share: float) -> float:
    return math.sqrt(max(share * (1 - share), 1 / TESTED) / TESTED)
