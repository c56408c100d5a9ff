"""Checks on attention."""
