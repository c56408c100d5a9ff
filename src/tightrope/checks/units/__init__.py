"""Checks on single units: which of them still carry signal and gradient."""
