"""Training of the embedded default; not needed to serve."""
