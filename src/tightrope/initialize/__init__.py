"""Solve every weight of a net from the laws of its step: no training, and of the data only their law."""

from tightrope.initialize.result import Change, Initialization
from tightrope.initialize.solver import CRITERIA, initialize, solve

__all__ = ["CRITERIA", "Change", "Initialization", "initialize", "solve"]
