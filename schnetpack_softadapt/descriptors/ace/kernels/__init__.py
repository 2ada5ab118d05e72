"""The cluster expansion by compiled loops."""
