"""Measurements of speed, each a comparison in one run."""
