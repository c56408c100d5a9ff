"""Checks on the numbers themselves: what overflows, what is undefined."""
