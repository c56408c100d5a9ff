"""Checks on loss."""
