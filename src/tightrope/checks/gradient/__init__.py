"""Checks on gradient."""
