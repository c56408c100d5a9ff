"""Checks on initial weights."""
