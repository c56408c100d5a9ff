"""Layers that cure what the checks find."""

from tightrope.nn.standardize import Standardize

__all__ = ["Standardize"]
