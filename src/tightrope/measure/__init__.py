"""Estimate laws from real tensors."""

from tightrope.measure.laws import estimate
from tightrope.measure.measurement import Measurement, Meter, Units

__all__ = ["Measurement", "Meter", "Units", "estimate"]
