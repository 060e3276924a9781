"""Latent DiTs: one for two CPU cores, one for a GPU and an afternoon's data, and the published sizes.

The first two have LightningDiT's block, and patches as the latents ask for; the others are the published DiT.
"""

from collections.abc import Callable
from functools import partial

from ..generation.config import GenerationConfig
from ..training.config import AverageConfig, LogConfig, OptimizerConfig

_PUBLISHED = ("XL/2", "L/2", "B/2", "S/2")
_IMAGENET_BATCH = 256


def tiny() -> GenerationConfig:
    """Four blocks of width 128, minutes on two CPU cores: layout and colours of a few classes."""
    return GenerationConfig(
        network="lightning",
        size="tiny",
        optimizer=OptimizerConfig(
            learning_rate=4e-3, betas=(0.9, 0.99), weight_decay=0.0, warmup_images=1000, decay_images=10_000
        ),
        average=AverageConfig(halflife_images=3000),
        log=LogConfig(stats_images=1000, sample_images=20_000, sample_count=8, checkpoint_images=10_000),
        total_images=40_000,
        batch_size=32,
        workers=1,
        precision="fp32",
    )


def gpu() -> GenerationConfig:
    """LightningDiT-S for some thousand images in some dozens of classes, and one GPU."""
    # At 16 x 16 latents (64 tokens) a training image of S/2 is 8.5 GFLOP: six million are 5e16 operations, ten minutes
    # of a data centre's GPU at 100 TFLOP/s. Ten thousand latents are seen 600 times: more would be learnt by heart.
    return GenerationConfig(
        network="lightning",
        size="S",
        optimizer=OptimizerConfig(
            learning_rate=4e-4, betas=(0.9, 0.99), weight_decay=0.0, warmup_images=100_000, decay_images=1_000_000
        ),
        average=AverageConfig(halflife_images=200_000),
        log=LogConfig(stats_images=51_200, sample_images=500_000, sample_count=16, checkpoint_images=500_000),
        total_images=6_000_000,
        batch_size=512,
        workers=8,
        compile=True,
    )


def published(size: str) -> GenerationConfig:
    """A published size at its published batch and rate (Peebles & Xie 2023), 400,000 updates."""
    return GenerationConfig(
        network="dit",
        size=size,
        average=AverageConfig(halflife_images=_IMAGENET_BATCH * 6931),  # 0.9999 an update
        log=LogConfig(
            stats_images=100 * _IMAGENET_BATCH,
            sample_images=10_000 * _IMAGENET_BATCH,
            checkpoint_images=5000 * _IMAGENET_BATCH,
            milestone_images=100_000 * _IMAGENET_BATCH,
        ),
        total_images=400_000 * _IMAGENET_BATCH,
        batch_size=_IMAGENET_BATCH,
        workers=12,
        compile=True,
    )


GENERATION_RECIPES: dict[str, Callable[[], GenerationConfig]] = {
    "tiny": tiny,
    "gpu": gpu,
    **{f"DiT-{size}": partial(published, size) for size in _PUBLISHED},
}
"""Recipes of ``ssdd generate train``, by name."""


def summary(name: str) -> str:
    """Return a recipe in a sentence."""
    recipe = GENERATION_RECIPES[name]
    function = recipe.func if isinstance(recipe, partial) else recipe
    return (function.__doc__ or "").strip().partition("\n")[0]
