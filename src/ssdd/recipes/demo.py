"""The embedded demo model, in two stages that two CPU cores finish within two hours.

First the encoder, as part of a small KL-VAE; then, the encoder frozen, the diffusion decoder on its latents.
"""

from ..training.config import DataConfig, LossConfig, ModelConfig, OptimizerConfig, TrainConfig


def demo_encoder() -> TrainConfig:
    """Small f8c4 KL-VAE by L1 + LPIPS + KL at 64 px: gives the demo model its encoder."""
    return TrainConfig(
        stage="kl-vae",
        model=ModelConfig(encoder="f8c4", encoder_width=32),
        data=DataConfig(resolution=64, scale=2.0, workers=1),
        loss=LossConfig(lpips_network="squeeze"),
        optimizer=OptimizerConfig(learning_rate=1.5e-3, warmup_images=2000, decay_images=8000),
        total_images=28_000,
        batch_size=32,
        ema_halflife_images=1500,
        checkpoint_images=3200,
    )


def demo_decoder() -> TrainConfig:
    """XS diffusion decoder on the frozen encoder of ``demo-encoder`` by flow matching + LPIPS at 64 px."""
    return TrainConfig(
        stage="flow",
        model=ModelConfig(
            encoder="f8c4",
            encoder_width=32,
            decoder="XS",
            encoder_from="runs/demo-encoder/model",
            train_encoder=False,
        ),
        data=DataConfig(resolution=64, scale=2.0, workers=1),
        loss=LossConfig(lpips_network="squeeze"),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_images=2000, decay_images=12_000),
        total_images=56_000,
        batch_size=32,
        ema_halflife_images=3000,
        checkpoint_images=3200,
    )
