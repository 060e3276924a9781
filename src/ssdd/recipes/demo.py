"""The embedded demo model, in stages that two CPU cores finish within some hours.

First the encoder, as part of a small KL-VAE; then, the encoder frozen, the diffusion decoder on its latents, at 64 px
and for a short time at 128 px, where the attention window is as large as it will be in any image; then both together,
at 64 and at 128 px. With a GPU, all of it in one run: ``demo_gpu``.
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


def demo_encoder() -> TrainConfig:
    """Small f8c4 KL-VAE by L1 + LPIPS + KL at 64 px: gives the demo model its encoder."""
    return TrainConfig(
        stage="kl-vae",
        model=ModelConfig(encoder="f8c4", encoder_width=32, encoder_groups=8),
        data=DataConfig(resolution=64, scale=2.0, workers=1),
        loss=LossConfig(lpips_network="squeeze"),
        optimizer=OptimizerConfig(learning_rate=1.5e-3, warmup_images=1500, decay_images=10_000),
        total_images=32_000,
        batch_size=32,
        average=AverageConfig(halflife_images=1500),
        compile=True,
        log=LogConfig(sample_images=3200, checkpoint_images=3200),
    )


def demo_decoder() -> TrainConfig:
    """XXS diffusion decoder on the frozen encoder of ``demo-encoder`` by flow matching + LPIPS at 64 px."""
    return TrainConfig(
        stage="flow",
        model=ModelConfig("runs/demo-encoder", decoder="XXS", train_encoder=False),
        data=DataConfig(resolution=64, scale=3.0, workers=1),
        loss=LossConfig(lpips_network="squeeze"),
        optimizer=OptimizerConfig(learning_rate=7e-4, warmup_images=1600, decay_images=12_000),
        total_images=40_000,
        batch_size=16,
        average=AverageConfig(halflife_images=1500),
        compile=True,
        log=LogConfig(sample_images=3200, checkpoint_images=3200),
    )


def demo_finetuning() -> TrainConfig:
    """The decoder of ``demo-decoder``, encoder frozen, for a short time at 128 px."""
    return TrainConfig(
        stage="flow",
        model=ModelConfig(start_from="runs/demo-decoder", train_encoder=False),
        data=DataConfig(resolution=128, scale=1.25, workers=1),
        loss=LossConfig(lpips_network="squeeze"),
        optimizer=OptimizerConfig(learning_rate=3e-4, warmup_images=200, decay_images=3000),
        total_images=4000,
        batch_size=16,
        average=AverageConfig(halflife_images=400),
        compile=True,
        log=LogConfig(sample_images=800, checkpoint_images=800),
    )


def demo_joint() -> TrainConfig:
    """Encoder and decoder of ``demo-finetuning`` together at 64 px; half of the images where a single step begins."""
    return TrainConfig(
        stage="flow",
        model=ModelConfig(start_from="runs/demo-finetuning"),
        data=DataConfig(resolution=64, scale=3.0, workers=1),
        loss=LossConfig(lpips_network="squeeze"),
        one_step_share=0.5,
        optimizer=OptimizerConfig(learning_rate=5e-4, warmup_images=1600, decay_images=16_000),
        total_images=64_000,
        batch_size=32,
        average=AverageConfig(halflife_images=1500),
        compile=True,
        log=LogConfig(sample_images=3200, checkpoint_images=3200),
    )


def demo_joint_128() -> TrainConfig:
    """Encoder and decoder of ``demo-joint`` together at 128 px, as wide as the attention window, for a short time."""
    config = demo_joint()
    return replace(
        config,
        model=ModelConfig(start_from="runs/demo-joint"),
        data=replace(config.data, resolution=128, scale=1.5),
        optimizer=OptimizerConfig(learning_rate=3e-4, warmup_images=400, decay_images=8000),
        total_images=12_000,
        batch_size=16,
        average=AverageConfig(halflife_images=800),
        log=LogConfig(sample_images=1600, checkpoint_images=800),
    )


def demo_distillation() -> TrainConfig:
    """The decoder of ``demo-finetuning`` to one step, at 128 px."""
    config = demo_finetuning()
    model = replace(config.model, start_from="runs/demo-finetuning")
    optimizer = OptimizerConfig(learning_rate=1e-4, warmup_images=200, decay_images=1500)
    return replace(config, stage="distillation", model=model, optimizer=optimizer, total_images=3200)


def demo_gpu() -> TrainConfig:
    """For a GPU: width-64 encoder and S decoder together at 128 px by flow matching + LPIPS + KL."""
    return TrainConfig(
        stage="flow",
        model=ModelConfig(encoder="f8c4", encoder_width=64, decoder="S"),
        data=DataConfig(resolution=128, scale=2.0, workers=14),
        loss=LossConfig(lpips_network="squeeze"),
        optimizer=OptimizerConfig(learning_rate=5e-4, warmup_images=10_000, decay_images=100_000),
        total_images=400_000,
        batch_size=64,
        average=AverageConfig(halflife_images=5000),
        compile=True,
        log=LogConfig(stats_images=6400, sample_images=40_000, checkpoint_images=40_000),
    )
