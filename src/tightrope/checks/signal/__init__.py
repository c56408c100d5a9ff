"""Checks on signal."""
