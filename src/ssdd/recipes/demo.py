"""How the embedded demo model was made, on two CPU cores within some hours.

First the encoder, as part of a small KL-VAE; then, the encoder frozen, the diffusion decoder on its latents, at 64 px
and for a short time at 128 px, where the attention window is as large as it will be in any image; then both together,
at 64 and at 128 px. All of it began with the initialisation of the paper and AdamW.
"""

from dataclasses import replace

from ..training.config import (
    AverageConfig,
    DataConfig,
    DistillationConfig,
    DistillationLoss,
    FlowConfig,
    FlowLoss,
    KLVAEConfig,
    KLVAELoss,
    KLVAEModelConfig,
    LogConfig,
    ModelConfig,
    OptimizerConfig,
    TeacherConfig,
)
from .registry import recipe

_LOG = LogConfig(sample_images=3200, checkpoint_images=3200)
_SHORT_LOG = LogConfig(sample_images=1600, checkpoint_images=800)


@recipe()
def demo_encoder() -> KLVAEConfig:
    """Small f8c4 KL-VAE by L1 + LPIPS + KL at 64 px: gives the demo model its encoder."""
    return KLVAEConfig(
        model=KLVAEModelConfig(encoder="f8c4", encoder_width=32, encoder_groups=8),
        data=DataConfig(resolution=64, scale=2.0, workers=1),
        loss=KLVAELoss(lpips_network="squeeze"),
        optimizer=OptimizerConfig(learning_rate=1.5e-3, warmup_images=1500, decay_images=10_000),
        total_images=32_000,
        batch_size=32,
        average=AverageConfig(halflife_images=1500),
        compile=True,
        log=_LOG,
    )


@recipe()
def demo_decoder() -> FlowConfig:
    """XXS diffusion decoder on the frozen encoder of ``demo-encoder`` by flow matching + LPIPS at 64 px."""
    return FlowConfig(
        model=ModelConfig("runs/demo-encoder", decoder="XXS", init="paper", train_encoder=False),
        data=DataConfig(resolution=64, scale=3.0, workers=1),
        loss=FlowLoss(lpips_network="squeeze"),
        optimizer=OptimizerConfig(learning_rate=7e-4, warmup_images=1600, decay_images=12_000),
        total_images=40_000,
        batch_size=16,
        average=AverageConfig(halflife_images=1500),
        compile=True,
        log=_LOG,
    )


@recipe()
def demo_finetuning() -> FlowConfig:
    """The decoder of ``demo-decoder``, encoder frozen, for a short time at 128 px."""
    return replace(
        demo_decoder(),
        model=ModelConfig(start_from="runs/demo-decoder", train_encoder=False),
        data=DataConfig(resolution=128, scale=1.25, workers=1),
        optimizer=OptimizerConfig(learning_rate=3e-4, warmup_images=200, decay_images=3000),
        total_images=4000,
        average=AverageConfig(halflife_images=400),
        log=_SHORT_LOG,
    )


@recipe()
def demo_joint() -> FlowConfig:
    """Encoder and decoder of ``demo-finetuning`` together at 64 px; half of the images where a single step begins."""
    return replace(
        demo_decoder(),
        model=ModelConfig(start_from="runs/demo-finetuning"),
        one_step_share=0.5,
        optimizer=OptimizerConfig(learning_rate=5e-4, warmup_images=1600, decay_images=16_000),
        total_images=64_000,
        batch_size=32,
    )


@recipe("demo-joint-128")
def demo_joint_128() -> FlowConfig:
    """Encoder and decoder of ``demo-joint`` together at 128 px, as wide as the attention window, for a short time."""
    return replace(
        demo_joint(),
        model=ModelConfig(start_from="runs/demo-joint"),
        data=DataConfig(resolution=128, scale=1.5, workers=1),
        optimizer=OptimizerConfig(learning_rate=3e-4, warmup_images=400, decay_images=8000),
        total_images=12_000,
        batch_size=16,
        average=AverageConfig(halflife_images=800),
        log=_SHORT_LOG,
    )


@recipe()
def demo_distillation() -> DistillationConfig:
    """The decoder of ``demo-finetuning`` to one step, at 128 px."""
    base = demo_finetuning()
    return DistillationConfig(
        model=TeacherConfig("runs/demo-finetuning"),
        data=base.data,
        loss=DistillationLoss(lpips_network="squeeze"),
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_images=200, decay_images=1500),
        total_images=3200,
        batch_size=base.batch_size,
        average=base.average,
        compile=True,
        log=_SHORT_LOG,
    )
