"""Measuring and showing reconstructions."""
