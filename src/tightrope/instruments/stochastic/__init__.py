"""Gradients through random variables: estimators compared, and laws of stacks of stochastic layers."""

from tightrope.instruments.stochastic.compare import compare_estimators
from tightrope.instruments.stochastic.result import EstimatorComparison, GradientEstimator
from tightrope.instruments.stochastic.stack import Moments, StackLaw, stack_law

__all__ = ["EstimatorComparison", "GradientEstimator", "Moments", "StackLaw", "compare_estimators", "stack_law"]
