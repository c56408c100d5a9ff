"""Checks on modes: training, evaluation, and what differs between them."""
