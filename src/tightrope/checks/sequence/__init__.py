"""Checks on sequences."""
