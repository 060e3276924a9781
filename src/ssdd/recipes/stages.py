"""The method, stage by stage, at four scales (arXiv 2510.04961).

    encoder         encoder and decoder together
    pretraining     a decoder on that encoder, frozen, shared by all resolutions
    finetuning      the decoder at one resolution
    distillation    the fine-tuned decoder to one step
    kl-vae          the baseline: the same encoder with a plain decoder and a GAN, trained as long in sum

Each starts from the one before by the name of its run. At the scale of the paper these are its settings, on ImageNet;
progress here is in images.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

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
from .registry import RECIPES, Axes, Recipe, recipe

_BATCH = 256
_EPOCH = 5005 * _BATCH
_STAGES = ("encoder", "pretraining", "finetuning", "distillation", "kl-vae")
_LARGE = ("finetuning", "distillation", "kl-vae-large")
"""Stages that are trained on the large crops."""


@dataclass(frozen=True)
class Plan:
    """How a stage is trained at a scale: learning rate, images seen, in warm-up and in decay, the PatchGAN's rate."""

    rate: float
    images: int
    warmup_images: int = 0
    decay_images: int = 0
    discriminator_rate: float = 1e-4


@dataclass(frozen=True)
class Scale:
    """What the stages of a scale share, and the plan of each.

    Attributes:
        latent: usual latent.
        decoder: usual size of the decoder.
        crops: resolution, and largest scale of a crop, of the stages that are not ``_LARGE``.
        large_crops: the same of those that are.
        plans: by stage; ``kl-vae-large`` is the KL-VAE at another resolution than the first.
        joint_decoder: size of a decoder that is trained with the encoder, if it is another.
    """

    latent: str
    decoder: str
    crops: tuple[int, float]
    large_crops: tuple[int, float]
    plans: dict[str, Plan]
    average: AverageConfig
    log: LogConfig
    batch_size: int
    validation: ValidationConfig
    workers: int = 1
    encoder_width: int = 32
    encoder_groups: int = 8
    joint_decoder: str | None = None
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig("muon"))
    lpips_network: LPIPSNetwork = "squeeze"
    repa: float = 0.0
    one_step_share: float = 0.5
    compile: bool = True

    def crops_of(self, stage: str) -> tuple[int, float]:
        """Return resolution and largest scale of a stage's crops."""
        return self.large_crops if stage in _LARGE else self.crops


SCALES = {
    "paper": Scale(
        latent="f8c4",
        decoder="S",
        crops=(128, 2.0),
        large_crops=(256, 1.0),
        plans={
            "encoder": Plan(1e-4, 300 * _EPOCH),
            "pretraining": Plan(8e-4, 300 * _EPOCH),
            "finetuning": Plan(1e-4, 100 * _EPOCH),
            # 12.8 M images and 50 updates more than the averaging waits for, as published: it averages those.
            "distillation": Plan(1e-4, 10 * _EPOCH),
            "kl-vae": Plan(1e-4, 600 * _EPOCH),
            "kl-vae-large": Plan(1e-4, 110 * _EPOCH),
        },
        average=AverageConfig(halflife_images=177_358, from_images=50_000 * _BATCH),  # 0.999 an update of 256 images
        log=LogConfig(
            stats_images=50 * _BATCH,
            sample_images=5000 * _BATCH,
            checkpoint_images=1000 * _BATCH,
            milestone_images=50 * _EPOCH,
        ),
        batch_size=_BATCH,
        validation=ValidationConfig(images=5000 * _BATCH),
        workers=12,
        encoder_width=128,
        encoder_groups=32,
        joint_decoder="M",
        optimizer=OptimizerConfig("schedule-free-radam", betas=(0.9, 0.999), clip=0.1, warmup_images=0),
        lpips_network="vgg",
        repa=0.25,
        one_step_share=0.0,
    ),
    "gpu": Scale(
        latent="f8c4",
        decoder="S",
        crops=(128, 2.0),
        large_crops=(256, 1.25),
        plans={
            "encoder": Plan(2e-3, 400_000, 10_000, 100_000),
            "pretraining": Plan(2e-3, 400_000, 10_000, 100_000),
            "finetuning": Plan(5e-4, 75_000, 2500, 40_000),
            "distillation": Plan(2e-4, 25_000, 1000, 12_500),
            "kl-vae": Plan(2e-3, 800_000, 10_000, 200_000, discriminator_rate=1e-3),
            "kl-vae-large": Plan(5e-4, 100_000, 2500, 50_000, discriminator_rate=5e-4),
        },
        average=AverageConfig(halflife_images=5000),
        log=LogConfig(stats_images=6400, sample_images=40_000, checkpoint_images=40_000),
        batch_size=64,
        validation=ValidationConfig(images=40_000),
        workers=14,
        encoder_width=64,
        encoder_groups=32,
    ),
    "cpu": Scale(
        latent="f8c4",
        decoder="XXS",
        crops=(64, 3.0),
        large_crops=(128, 1.5),
        plans={
            "encoder": Plan(4e-3, 64_000, 1600, 24_000),
            "pretraining": Plan(4e-3, 64_000, 1600, 24_000),
            "finetuning": Plan(1e-3, 16_000, 400, 8000),
            "distillation": Plan(2e-4, 6400, 320, 3200),
            "kl-vae": Plan(4e-3, 128_000, 1600, 48_000, discriminator_rate=1.5e-3),
            "kl-vae-large": Plan(1e-3, 22_400, 400, 11_200, discriminator_rate=5e-4),
        },
        average=AverageConfig(halflife_images=1500),
        log=LogConfig(sample_images=6400, checkpoint_images=3200),
        batch_size=32,
        optimizer=OptimizerConfig("muon", weight_decay=0.3),  # or the coarse levels are outgrown, see docs/LOG.md
        validation=ValidationConfig(images=6400, count=128),
    ),
    "tiny": Scale(
        latent="f4c4",  # f8 takes longer to learn
        decoder="XXS",
        crops=(32, 2.0),
        large_crops=(64, 1.0),
        plans={
            "encoder": Plan(1.5e-3, 6400, 640, 3200),
            "pretraining": Plan(1.5e-3, 6400, 640, 3200),
            "finetuning": Plan(5e-4, 1600, 160, 800),
            "distillation": Plan(5e-4, 800, 80, 400),
            "kl-vae": Plan(1.5e-3, 6400, 640, 3200, discriminator_rate=1.5e-3),
            "kl-vae-large": Plan(5e-4, 2400, 160, 1200, discriminator_rate=5e-4),
        },
        average=AverageConfig(halflife_images=200),
        log=LogConfig(stats_images=320, sample_images=1600, checkpoint_images=1600),
        batch_size=8,
        validation=ValidationConfig(images=3200, count=32),
        one_step_share=0.0,
        compile=False,
    ),
}


def run_name(stage: str, axes: Axes) -> str:
    """Return the name of a run, which later stages start from: ``f8c4-S-256`` of the paper's, ``cpu-encoder``, ..."""
    scale = SCALES[axes.scale]
    latent, decoder = axes.latent or scale.latent, axes.decoder or scale.decoder
    usual_side = scale.crops_of(stage)[0]
    side = usual_side if axes.resolution is None else axes.resolution
    if axes.scale == "paper":
        named = {
            "encoder": f"{latent}-encoder",
            "pretraining": f"{latent}-{decoder}-pretraining",
            "finetuning": f"{latent}-{decoder}-{side}",
            "distillation": f"{latent}-{decoder}-{side}-distillation",
            "kl-vae": f"{latent}-kl-vae" if side == usual_side else f"{latent}-kl-vae-{side}",
        }
        return named[stage]
    words: list[str] = [axes.scale]
    words += [latent] if latent != scale.latent else []
    words += [decoder] if decoder != scale.decoder and stage not in ("encoder", "kl-vae") else []
    words += [str(side)] if side != usual_side else []
    return "-".join([*words, stage])


C = TypeVar("C", bound=TrainConfig)


def planned(config: C, stage: str, axes: Axes) -> C:
    """Return a config with the settings that the stages of a scale share, and those of the stage's plan."""
    scale = SCALES[axes.scale]
    plan, (usual_side, augmentation) = scale.plans[stage], scale.crops_of(stage)
    side = usual_side if axes.resolution is None else axes.resolution
    rates: dict[str, Any] = {"warmup_images": plan.warmup_images, "decay_images": plan.decay_images}
    return replace(
        config,
        data=DataConfig(resolution=side, scale=augmentation, workers=scale.workers),
        validation=scale.validation,
        optimizer=replace(scale.optimizer, learning_rate=plan.rate, **rates),
        average=AverageConfig(min(scale.average.halflife_images, plan.images / 8), scale.average.from_images),
        log=scale.log,
        total_images=plan.images,
        batch_size=scale.batch_size,
        compile=scale.compile,
        parallel="fsdp" if axes.decoder == "H" and axes.scale == "paper" else "ddp",
    )


def _flow(model: ModelConfig, stage: str, axes: Axes) -> FlowConfig:
    scale = SCALES[axes.scale]
    loss = FlowLoss(lpips_network=scale.lpips_network, repa=scale.repa)
    return planned(FlowConfig(model=model, loss=loss, one_step_share=scale.one_step_share), stage, axes)


def _run(stage: str, axes: Axes) -> str:
    """Return the folder of a run to start from."""
    return f"runs/{run_name(stage, axes)}"


def _stage(name: str) -> Callable[[Any], Any]:
    return recipe(name, partial(run_name, name))


@_stage("encoder")
def encoder(axes: Axes) -> FlowConfig:
    """Encoder and decoder together, by flow matching + LPIPS + KL."""
    scale = SCALES[axes.scale]
    decoder = axes.decoder or scale.joint_decoder or scale.decoder
    model = ModelConfig(axes.latent or scale.latent, scale.encoder_width, scale.encoder_groups, decoder)
    return _flow(model, "encoder", axes)


@_stage("pretraining")
def pretraining(axes: Axes) -> FlowConfig:
    """A decoder on the frozen encoder of ``encoder``; every resolution starts from it."""
    start = _run("encoder", replace(axes, decoder=None, resolution=None))
    decoder = axes.decoder or SCALES[axes.scale].decoder
    config = _flow(ModelConfig(start, decoder=decoder, train_encoder=False), "pretraining", axes)
    if axes.decoder == "H" and axes.scale == "paper":
        config = replace(config, optimizer=replace(config.optimizer, learning_rate=3e-4))
    return config


@_stage("finetuning")
def finetuning(axes: Axes) -> FlowConfig:
    """The decoder of ``pretraining`` at one resolution, encoder frozen."""
    start = _run("pretraining", replace(axes, resolution=None))
    return _flow(ModelConfig(start_from=start, train_encoder=False), "finetuning", axes)


@_stage("distillation")
def distillation(axes: Axes) -> DistillationConfig:
    """The decoder of ``finetuning`` to one step; the teacher is itself in 12 steps."""
    scale = SCALES[axes.scale]
    loss = DistillationLoss(lpips_network=scale.lpips_network, repa=scale.repa)
    config = DistillationConfig(model=TeacherConfig(_run("finetuning", axes)), loss=loss)
    return planned(config, "distillation", axes)


@_stage("kl-vae")
def kl_vae(axes: Axes) -> KLVAEConfig:
    """Baseline: KL-VAE with the same encoder, by L1 + LPIPS + KL, and a PatchGAN after a while.

    It comes in after half of the run, but after 12.8 million images at the latest. At another resolution than the first
    the run starts from that at the first, with the PatchGAN at once. Raises ValueError for a size of decoder: that is
    as wide as the encoder.
    """
    scale = SCALES[axes.scale]
    if axes.decoder is not None:
        raise ValueError(
            "--decoder has no effect here: a KL-VAE's is as wide as its encoder (--model.decoder-width: another)"
        )
    if axes.resolution in (None, scale.crops[0]):
        stage, start_gan = "kl-vae", scale.plans["kl-vae"].images // 2
        model = KLVAEModelConfig(axes.latent or scale.latent, scale.encoder_width, scale.encoder_groups)
    else:
        stage, start_gan = "kl-vae-large", 0
        model = KLVAEModelConfig(start_from=_run("kl-vae", replace(axes, resolution=None)))
    loss = KLVAELoss(
        lpips_network=scale.lpips_network, adversarial=0.5, adversarial_from_images=min(start_gan, 50_000 * _BATCH)
    )
    plan = scale.plans[stage]
    discriminator = DiscriminatorConfig(plan.discriminator_rate, warmup_images=min(1000 * _BATCH, plan.images // 20))
    return planned(KLVAEConfig(model=model, loss=loss, discriminator=discriminator), stage, axes)


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


for _name in _STAGES:  # by the names that the guides use: tiny-encoder, ...
    _plain, _tiny = RECIPES[_name], f"tiny-{_name}"
    RECIPES[_tiny] = Recipe(
        _tiny, f"{_plain.summary[:-1]}, at the scale tiny.", partial(_plain.make, Axes(scale="tiny"))
    )
