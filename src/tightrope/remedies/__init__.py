"""Changes that cure findings."""
