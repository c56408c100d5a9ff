"""Faults of normalisers."""
