"""Instruments that answer one question about a model: functions with a result that prints itself."""

import tightrope.instruments.stochastic as stochastic
from tightrope.instruments.batch_noise import BatchNoise, batch_noise
from tightrope.instruments.calibration import Calibration, calibration
from tightrope.instruments.compass import compass
from tightrope.instruments.coverage import Coverage, coverage
from tightrope.instruments.curvature import Curvature, CurvatureChange, curvature
from tightrope.instruments.expressivity import Expressivity, expressivity
from tightrope.instruments.heading import Compass, Heading
from tightrope.instruments.jensen import JensenGap, jensen_gap
from tightrope.instruments.margin import Margin, margin
from tightrope.instruments.norms import NormEffect, NormEffects, explain_norm
from tightrope.instruments.robustness import Attack, JacobianNorms, Lipschitz, Robustness, robustness
from tightrope.instruments.temperature import Temperature, temperature
from tightrope.instruments.uncertainty import Uncertainty, decompose, uncertainty
from tightrope.instruments.walk import Walk, walk

__all__ = [
    "Attack",
    "BatchNoise",
    "Calibration",
    "Compass",
    "Coverage",
    "Curvature",
    "CurvatureChange",
    "Expressivity",
    "Heading",
    "JacobianNorms",
    "JensenGap",
    "Lipschitz",
    "Margin",
    "NormEffect",
    "NormEffects",
    "Robustness",
    "Temperature",
    "Uncertainty",
    "Walk",
    "batch_noise",
    "calibration",
    "compass",
    "coverage",
    "curvature",
    "decompose",
    "explain_norm",
    "expressivity",
    "jensen_gap",
    "margin",
    "robustness",
    "stochastic",
    "temperature",
    "uncertainty",
    "walk",
]
