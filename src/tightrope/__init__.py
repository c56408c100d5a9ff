"""tightrope: the law of every tensor of a training step, predicted, measured and corrected."""

from tightrope import nn
from tightrope.check import check
from tightrope.compare import Comparison, compare
from tightrope.errors import TightropeError
from tightrope.finding import Finding, Remedy
from tightrope.fix import Fix, fix
from tightrope.groups import param_groups
from tightrope.initialize import initialize
from tightrope.instruments import (
    BatchNoise,
    Curvature,
    CurvatureChange,
    JensenGap,
    NormEffect,
    NormEffects,
    Uncertainty,
    batch_noise,
    curvature,
    decompose,
    explain_norm,
    jensen_gap,
    stochastic,
    uncertainty,
)
from tightrope.law import Law
from tightrope.measure import Measurement
from tightrope.predict import Forecast
from tightrope.report.model import Report
from tightrope.scaling import Scaling, scaling
from tightrope.step import measure, predict
from tightrope.subject import Subject

__all__ = [
    "BatchNoise",
    "Comparison",
    "Curvature",
    "CurvatureChange",
    "Finding",
    "Fix",
    "Forecast",
    "JensenGap",
    "Law",
    "Measurement",
    "NormEffect",
    "NormEffects",
    "Remedy",
    "Report",
    "Scaling",
    "Subject",
    "TightropeError",
    "Uncertainty",
    "batch_noise",
    "check",
    "compare",
    "curvature",
    "decompose",
    "explain_norm",
    "fix",
    "initialize",
    "jensen_gap",
    "measure",
    "nn",
    "param_groups",
    "predict",
    "scaling",
    "stochastic",
    "uncertainty",
]
