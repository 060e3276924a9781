"""The whole method in minutes on two CPU cores: every stage, small, on any folder of photographs.

For learning how the stages fit together, and for tests. The pictures are grainy and pale, but recognisable; the demo
recipes train longer, the paper's properly.
"""

from dataclasses import replace

from ..training.config import (
    AverageConfig,
    DataConfig,
    LogConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)

_TINY = TrainConfig(
    model=ModelConfig("f4c4", encoder_width=32, encoder_groups=8, decoder="XXS"),  # f8 takes longer to learn
    data=DataConfig(resolution=32, scale=2.0, workers=1),
    loss=LossConfig(lpips_network="squeeze"),
    optimizer=OptimizerConfig(learning_rate=1.5e-3, warmup_images=640, decay_images=3200),
    average=AverageConfig(halflife_images=200),
    log=LogConfig(stats_images=320, sample_images=1600, checkpoint_images=1600),
    total_images=6400,
    batch_size=8,
)


def tiny_encoder() -> TrainConfig:
    """Encoder and XXS decoder together at 32 px, by flow matching + LPIPS + KL."""
    return _TINY


def tiny_pretraining() -> TrainConfig:
    """XXS decoder on the frozen encoder of ``tiny-encoder``, at 32 px."""
    return replace(_TINY, model=ModelConfig("runs/tiny-encoder", decoder="XXS", train_encoder=False))


def tiny_finetuning() -> TrainConfig:
    """The decoder of ``tiny-pretraining`` at 64 px, without scale augmentation."""
    return replace(
        _TINY,
        model=ModelConfig(start_from="runs/tiny-pretraining", train_encoder=False),
        data=DataConfig(resolution=64, scale=1.0, workers=1),
        optimizer=OptimizerConfig(learning_rate=5e-4, warmup_images=160, decay_images=800),
        total_images=1600,
    )


def tiny_distillation() -> TrainConfig:
    """The decoder of ``tiny-finetuning`` to one step."""
    config = tiny_finetuning()
    model = replace(config.model, start_from="runs/tiny-finetuning")
    return replace(config, stage="distillation", model=model, total_images=800)


def tiny_kl_vae() -> TrainConfig:
    """The baseline: KL-VAE with the encoder's architecture, a PatchGAN in the second half, at 32 px."""
    loss = LossConfig(lpips=1.0, lpips_network="squeeze", adversarial=0.5, adversarial_from_images=3200)
    return replace(_TINY, stage="kl-vae", loss=loss)
