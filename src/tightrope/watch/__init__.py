"""Watches a script while it trains: which steps are recorded, what is judged in them, what is repaired."""
