"""Training objectives, each a small function or frozen module in a file of its own."""

from typing import Literal

LPIPSNetwork = Literal["vgg", "alex", "squeeze"]
"""Backbone of LPIPS."""
