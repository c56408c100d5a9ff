"""Checks on graph."""
