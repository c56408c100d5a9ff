"""Renders findings and laws."""
