"""Checks on data."""
