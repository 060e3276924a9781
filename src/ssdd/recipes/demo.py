"""How ``ssdd-f8c4-demo`` was begun, on one CPU core in an hour and a half; its card has the parts that followed."""

from dataclasses import replace

from ..training.config import AverageConfig, FlowConfig
from .registry import Axes, recipe
from .stages import encoder


@recipe()
def demo() -> FlowConfig:
    """``ssdd-f8c4-demo``: encoder and XXS decoder together from scratch at 64 px, by flow matching + LPIPS + KL."""
    config = encoder(Axes(scale="cpu"))
    return replace(
        config,
        total_images=57_600,
        optimizer=replace(config.optimizer, decay_images=24_000, weight_decay=0.01),
        average=AverageConfig(halflife_images=2500),
    )
