"""One fault per file: what is read, what is judged, and the page that explains it."""
