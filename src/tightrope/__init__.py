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
    Attack,
    BatchNoise,
    Calibration,
    Compass,
    Coverage,
    Curvature,
    CurvatureChange,
    Expressivity,
    Heading,
    JacobianNorms,
    JensenGap,
    Lipschitz,
    Margin,
    NormEffect,
    NormEffects,
    Robustness,
    Temperature,
    Uncertainty,
    Walk,
    batch_noise,
    calibration,
    compass,
    coverage,
    curvature,
    decompose,
    explain_norm,
    expressivity,
    jensen_gap,
    margin,
    robustness,
    stochastic,
    temperature,
    uncertainty,
    walk,
)
from tightrope.law import Law
from tightrope.measure import Measurement
from tightrope.predict import Forecast
from tightrope.report.model import Report
from tightrope.scaling import Scaling, scaling
from tightrope.step import measure, predict
from tightrope.subject import Subject

__all__ = [
    "Attack",
    "BatchNoise",
    "Calibration",
    "Comparison",
    "Compass",
    "Coverage",
    "Curvature",
    "CurvatureChange",
    "Expressivity",
    "Finding",
    "Fix",
    "Forecast",
    "Heading",
    "JacobianNorms",
    "JensenGap",
    "Law",
    "Lipschitz",
    "Margin",
    "Measurement",
    "NormEffect",
    "NormEffects",
    "Remedy",
    "Report",
    "Robustness",
    "Scaling",
    "Subject",
    "Temperature",
    "TightropeError",
    "Uncertainty",
    "Walk",
    "batch_noise",
    "calibration",
    "check",
    "compare",
    "compass",
    "coverage",
    "curvature",
    "decompose",
    "explain_norm",
    "expressivity",
    "fix",
    "initialize",
    "jensen_gap",
    "margin",
    "measure",
    "nn",
    "param_groups",
    "predict",
    "robustness",
    "scaling",
    "stochastic",
    "temperature",
    "uncertainty",
    "walk",
]
