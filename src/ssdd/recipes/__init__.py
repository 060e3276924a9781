"""Full experiments as short typed Python: a name, a sentence, a config."""

from collections.abc import Callable

from ..training.config import TrainConfig
from .demo import demo_decoder, demo_encoder, demo_finetuning, demo_gpu

RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "demo-encoder": demo_encoder,
    "demo-decoder": demo_decoder,
    "demo-finetuning": demo_finetuning,
    "demo-gpu": demo_gpu,
}
"""Recipes of ``ssdd train``, by name."""
