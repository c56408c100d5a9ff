"""The laboratory: every law reproduced, predicted beside measured, with a verdict computed from the numbers."""

from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial
from tightrope.lab.registry import Experiment, Outcome, all_experiments, get

__all__ = ["Claim", "Experiment", "Outcome", "Panel", "Result", "Series", "Trial", "all_experiments", "get"]
