"""Experiments as short typed Python: a function from axes to a config, and a name.

The stages of the method (``stages``) take axes: latent, decoder, resolution, scale. The small recipes (``demo``) are
one experiment each. A recipe of your own is any such function: ``ssdd train file.py:function``.
"""

from ..training.config import TrainConfig
from . import demo, stages
from .registry import RECIPES, Axes, Recipe, ScaleName

__all__ = ["RECIPES", "Axes", "Recipe", "ScaleName", "TrainConfig", "demo", "stages"]
