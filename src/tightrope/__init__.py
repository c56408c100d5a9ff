"""tightrope: the law of every tensor of a training step, predicted, measured and corrected."""

from tightrope import nn
from tightrope.check import check
from tightrope.compare import Comparison, compare
from tightrope.errors import TightropeError
from tightrope.finding import Finding, Remedy
from tightrope.fix import Fix, fix
from tightrope.groups import param_groups
from tightrope.initialize import initialize
from tightrope.law import Law
from tightrope.measure import Measurement
from tightrope.predict import Forecast
from tightrope.report.model import Report
from tightrope.scaling import Scaling, scaling
from tightrope.step import measure, predict
from tightrope.subject import Subject

__all__ = [
    "Comparison",
    "Finding",
    "Fix",
    "Forecast",
    "Law",
    "Measurement",
    "Remedy",
    "Report",
    "Scaling",
    "Subject",
    "TightropeError",
    "check",
    "compare",
    "fix",
    "initialize",
    "measure",
    "nn",
    "param_groups",
    "predict",
    "scaling",
]
