"""The method, stage by stage, at four scales (arXiv 2510.04961).

    encoder         encoder and decoder together
    pretraining     a decoder on that encoder, frozen, shared by all resolutions
    finetuning      the decoder at one resolution
    distillation    the fine-tuned decoder to one step
    kl-vae          the baseline: the same encoder with a plain decoder and a GAN, trained as long in sum

Each starts from the one before by the name of its run. At the scale of the paper these are its settings, on ImageNet;
progress here is in images.
"""

from dataclasses import dataclass, field, replace
from typing import TypeVar

from ..training.config import (
    AverageConfig,
    DataConfig,
    DiscriminatorConfig,
    DistillationConfig,
    DistillationLoss,
    FlowConfig,
    FlowLoss,
    KLVAEConfig,
    KLVAELoss,
    KLVAEModelConfig,
    LogConfig,
    LPIPSNetwork,
    ModelConfig,
    OptimizerConfig,
    TeacherConfig,
    TrainConfig,
    ValidationConfig,
)
from .registry import RECIPES, Axes, recipe

_BATCH = 256
_EPOCH = 5005 * _BATCH
_STAGES = ("encoder", "pretraining", "finetuning", "distillation", "kl-vae")


@dataclass(frozen=True)
class Plan:
    """How a stage is trained at a scale. images: seen; augmentation: largest scale of a crop; rate: of learning."""

    resolution: int
    augmentation: float
    rate: float
    images: int
    warmup_images: int = 0
    decay_images: int = 0


@dataclass(frozen=True)
class Scale:
    """Sizes, plans and everything that the stages of a scale share. joint_decoder: trained with the encoder."""

    latent: str
    decoder: str
    joint_decoder: str
    plans: dict[str, Plan]
    optimizer: OptimizerConfig
    average: AverageConfig
    log: LogConfig
    batch_size: int
    workers: int
    encoder_width: int = 128
    encoder_groups: int = 32
    lpips_network: LPIPSNetwork = "vgg"
    repa: float = 0.0
    one_step_share: float = 0.0
    compile: bool = True
    validation: ValidationConfig = field(default_factory=ValidationConfig)


SCALES = {
    "paper": Scale(
        latent="f8c4",
        decoder="S",
        joint_decoder="M",
        plans={
            "encoder": Plan(128, 2.0, 1e-4, 300 * _EPOCH),
            "pretraining": Plan(128, 2.0, 8e-4, 300 * _EPOCH),
            "finetuning": Plan(256, 1.0, 1e-4, 100 * _EPOCH),
            # 12.8 M images and 50 updates more than the averaging waits for, as published: it averages those.
            "distillation": Plan(256, 1.0, 1e-4, 10 * _EPOCH),
            "kl-vae": Plan(128, 2.0, 1e-4, 600 * _EPOCH),
            "kl-vae-large": Plan(256, 1.0, 1e-4, 110 * _EPOCH),
        },
        optimizer=OptimizerConfig("schedule-free-radam", betas=(0.9, 0.999), clip=0.1, warmup_images=0),
        average=AverageConfig(halflife_images=177_358, from_images=50_000 * _BATCH),  # 0.999 an update of 256 images
        log=LogConfig(
            stats_images=50 * _BATCH,
            sample_images=5000 * _BATCH,
            checkpoint_images=1000 * _BATCH,
            milestone_images=50 * _EPOCH,
        ),
        batch_size=_BATCH,
        workers=12,
        repa=0.25,
        validation=ValidationConfig(images=5000 * _BATCH),
    ),
    "gpu": Scale(
        latent="f8c4",
        decoder="S",
        joint_decoder="S",
        plans={
            "encoder": Plan(128, 2.0, 2e-3, 400_000, 10_000, 100_000),
            "pretraining": Plan(128, 2.0, 2e-3, 400_000, 10_000, 100_000),
            "finetuning": Plan(256, 1.25, 5e-4, 75_000, 2500, 40_000),
            "distillation": Plan(256, 1.25, 2e-4, 25_000, 1000, 12_500),
            "kl-vae": Plan(128, 2.0, 1e-3, 800_000, 10_000, 200_000),
            "kl-vae-large": Plan(256, 1.25, 5e-4, 100_000, 2500, 50_000),
        },
        optimizer=OptimizerConfig("muon"),
        average=AverageConfig(halflife_images=5000),
        log=LogConfig(stats_images=6400, sample_images=40_000, checkpoint_images=40_000),
        batch_size=64,
        workers=14,
        encoder_width=64,
        lpips_network="squeeze",
        one_step_share=0.5,
        validation=ValidationConfig(images=40_000),
    ),
    "cpu": Scale(
        latent="f8c4",
        decoder="XXS",
        joint_decoder="XXS",
        plans={
            "encoder": Plan(64, 3.0, 4e-3, 64_000, 1600, 24_000),
            "pretraining": Plan(64, 3.0, 4e-3, 64_000, 1600, 24_000),
            "finetuning": Plan(128, 1.5, 1e-3, 16_000, 400, 8000),
            "distillation": Plan(128, 1.5, 2e-4, 6400, 320, 3200),
            "kl-vae": Plan(64, 3.0, 1.5e-3, 128_000, 1600, 48_000),
            "kl-vae-large": Plan(128, 1.5, 5e-4, 22_400, 400, 11_200),
        },
        optimizer=OptimizerConfig("muon"),
        average=AverageConfig(halflife_images=1500),
        log=LogConfig(sample_images=6400, checkpoint_images=3200),
        batch_size=32,
        workers=1,
        encoder_width=32,
        encoder_groups=8,
        lpips_network="squeeze",
        one_step_share=0.5,
        validation=ValidationConfig(images=6400, count=128),
    ),
    "tiny": Scale(
        latent="f4c4",  # f8 takes longer to learn
        decoder="XXS",
        joint_decoder="XXS",
        plans={
            "encoder": Plan(32, 2.0, 1.5e-3, 6400, 640, 3200),
            "pretraining": Plan(32, 2.0, 1.5e-3, 6400, 640, 3200),
            "finetuning": Plan(64, 1.0, 5e-4, 1600, 160, 800),
            "distillation": Plan(64, 1.0, 5e-4, 800, 80, 400),
            "kl-vae": Plan(32, 2.0, 1.5e-3, 6400, 640, 3200),
            "kl-vae-large": Plan(64, 1.0, 5e-4, 2400, 160, 1200),
        },
        optimizer=OptimizerConfig("muon"),
        average=AverageConfig(halflife_images=200),
        log=LogConfig(stats_images=320, sample_images=1600, checkpoint_images=1600),
        batch_size=8,
        workers=1,
        encoder_width=32,
        encoder_groups=8,
        lpips_network="squeeze",
        compile=False,
        validation=ValidationConfig(images=3200, count=32),
    ),
}


def run_name(stage: str, axes: Axes) -> str:
    """Return the name of a run, which later stages start from: ``f8c4-S-256`` of the paper's, ``cpu-encoder``, ..."""
    scale = SCALES[axes.scale]
    latent, decoder = axes.latent or scale.latent, axes.decoder or scale.decoder
    plan = scale.plans["kl-vae" if stage.startswith("kl-vae") else stage]
    side = axes.resolution or plan.resolution
    if axes.scale == "paper":
        named = {
            "encoder": f"{latent}-encoder",
            "pretraining": f"{latent}-{decoder}-pretraining",
            "finetuning": f"{latent}-{decoder}-{side}",
            "distillation": f"{latent}-{decoder}-{side}-distillation",
            "kl-vae": f"{latent}-kl-vae" if side == plan.resolution else f"{latent}-kl-vae-{side}",
        }
        return named[stage]
    words: list[str] = [axes.scale]
    words += [latent] if latent != scale.latent else []
    words += [decoder] if decoder != scale.decoder and stage not in ("encoder", "kl-vae") else []
    words += [str(side)] if side != plan.resolution else []
    return "-".join([*words, stage])


C = TypeVar("C", bound=TrainConfig)


def planned(config: C, scale: Scale, plan: Plan, axes: Axes) -> C:
    """Return a config with the settings that the stages of a scale share, and those of the plan."""
    rates = {"learning_rate": plan.rate, "warmup_images": plan.warmup_images, "decay_images": plan.decay_images}
    side = axes.resolution or plan.resolution
    return replace(
        config,
        data=DataConfig(resolution=side, scale=plan.augmentation, workers=scale.workers),
        validation=scale.validation,
        optimizer=replace(scale.optimizer, **rates),  # type: ignore[arg-type]
        average=AverageConfig(min(scale.average.halflife_images, plan.images / 8), scale.average.from_images),
        log=scale.log,
        total_images=plan.images,
        batch_size=scale.batch_size,
        compile=scale.compile,
        parallel="fsdp" if axes.decoder == "H" and axes.scale == "paper" else "ddp",
    )


def _flow(scale: Scale, model: ModelConfig, stage: str, axes: Axes) -> FlowConfig:
    loss = FlowLoss(lpips_network=scale.lpips_network, repa=scale.repa)
    config = FlowConfig(model=model, loss=loss, one_step_share=scale.one_step_share)
    return planned(config, scale, scale.plans[stage], axes)


@recipe("encoder", lambda axes: run_name("encoder", axes))
def encoder(axes: Axes) -> FlowConfig:
    """Encoder and decoder together, by flow matching + LPIPS + KL."""
    scale = SCALES[axes.scale]
    model = ModelConfig(
        encoder=axes.latent or scale.latent,
        encoder_width=scale.encoder_width,
        encoder_groups=scale.encoder_groups,
        decoder=axes.decoder or scale.joint_decoder,
    )
    return _flow(scale, model, "encoder", replace(axes, decoder=model.decoder))


@recipe("pretraining", lambda axes: run_name("pretraining", axes))
def pretraining(axes: Axes) -> FlowConfig:
    """A decoder on the frozen encoder of ``encoder``; every resolution starts from it."""
    scale = SCALES[axes.scale]
    start = f"runs/{run_name('encoder', replace(axes, decoder=None, resolution=None))}"
    model = ModelConfig(encoder=start, decoder=axes.decoder or scale.decoder, train_encoder=False)
    config = _flow(scale, model, "pretraining", axes)
    if axes.decoder == "H" and axes.scale == "paper":
        config = replace(config, optimizer=replace(config.optimizer, learning_rate=3e-4))
    return config


@recipe("finetuning", lambda axes: run_name("finetuning", axes))
def finetuning(axes: Axes) -> FlowConfig:
    """The decoder of ``pretraining`` at one resolution, encoder frozen."""
    start = f"runs/{run_name('pretraining', replace(axes, resolution=None))}"
    return _flow(SCALES[axes.scale], ModelConfig(start_from=start, train_encoder=False), "finetuning", axes)


@recipe("distillation", lambda axes: run_name("distillation", axes))
def distillation(axes: Axes) -> DistillationConfig:
    """The decoder of ``finetuning`` to one step; the teacher is itself in 12 steps."""
    scale = SCALES[axes.scale]
    loss = DistillationLoss(lpips_network=scale.lpips_network, repa=scale.repa)
    config = DistillationConfig(model=TeacherConfig(f"runs/{run_name('finetuning', axes)}"), loss=loss)
    return planned(config, scale, scale.plans["distillation"], axes)


@recipe("kl-vae", lambda axes: run_name("kl-vae", axes))
def kl_vae(axes: Axes) -> KLVAEConfig:
    """Baseline: KL-VAE with the same encoder, by L1 + LPIPS + KL, and a PatchGAN from half of the run on.

    At another resolution than the first it starts from the run at that one.
    """
    scale, plan = SCALES[axes.scale], SCALES[axes.scale].plans["kl-vae"]
    model = KLVAEModelConfig(axes.latent or scale.latent, scale.encoder_width, scale.encoder_groups)
    start_gan = plan.images // 2
    if axes.resolution not in (None, plan.resolution):
        model = KLVAEModelConfig(start_from=f"runs/{run_name('kl-vae', replace(axes, resolution=None))}")
        plan, start_gan = scale.plans["kl-vae-large"], 0
    loss = KLVAELoss(
        lpips_network=scale.lpips_network, adversarial=0.5, adversarial_from_images=min(start_gan, 50_000 * _BATCH)
    )
    discriminator = DiscriminatorConfig(plan.rate, warmup_images=min(1000 * _BATCH, plan.images // 20))
    config = planned(KLVAEConfig(model=model, loss=loss, discriminator=discriminator), scale, plan, axes)
    if config.optimizer.name == "muon":  # plain convolutional decoders learn no better by it
        config = replace(config, optimizer=replace(config.optimizer, name="adamw"))
    return config


@recipe("finetune")
def finetune() -> FlowConfig:
    """A trained tokenizer (--model) on your own photographs, in minutes; its figures before and after."""
    return FlowConfig(
        model=ModelConfig(start_from="ssdd-f8c4-demo", train_encoder=False),
        data=DataConfig(resolution=128, scale=1.5, workers=1),
        validation=ValidationConfig(share=0.1, count=64),
        loss=FlowLoss(lpips_network="squeeze"),
        one_step_share=0.5,
        optimizer=OptimizerConfig("muon", learning_rate=2e-4, warmup_images=160, decay_images=1000),
        average=AverageConfig(halflife_images=200),
        log=LogConfig(stats_images=160, sample_images=0, checkpoint_images=800),
        total_images=2000,
        batch_size=16,
        compile=True,
    )


for _stage in _STAGES:  # by the names that the guides use: tiny-encoder, ...
    RECIPES[f"tiny-{_stage}"] = replace(RECIPES[_stage], fixed=Axes(scale="tiny"))
