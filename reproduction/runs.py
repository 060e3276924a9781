"""Every training run that the claims need, at four scales.

Runs that are compared see as many images of the same photographs, with the same augmentation, batch, weight average,
LPIPS weight and encoder architecture, by the optimiser and the rate of the recipes of their stages. The images of a
student's distillation count: its baseline is trained for as much longer. docs/reproduction.md says which claim needs
which runs.
"""

from dataclasses import dataclass, replace
from typing import Any

from ssdd.recipes import RECIPES, Axes, ScaleName
from ssdd.training.config import (
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
    ModelConfig,
    OptimizerConfig,
    TeacherConfig,
    TrainConfig,
    ValidationConfig,
)

ROWS = ("kl-vae", "distillation", "shared-encoder", "resolutions", "compression", "no-gan", "objectives", "steps")
"""Rows of the table, in its order."""


@dataclass(frozen=True)
class Scale:
    """How large the models are, how long they are trained, and on what they are compared."""

    recipes: ScaleName
    """Scale of the recipes whose optimisers and rates the runs have."""
    encoder_width: int
    encoder_groups: int
    decoder: str
    decoders: tuple[str, ...]
    """Sizes on the shared encoder, smallest first, ``decoder`` among them."""
    resolution: int
    """Side of the training crops in pixels."""
    large_resolution: int
    augmentation: float
    images: int
    """Seen by a run; a distillation and a fine-tuning see fewer."""
    distillation_images: int
    finetuning_images: int
    batch_size: int
    average_halflife: float
    compile: bool
    workers: int
    steps: int
    """Number of steps of multi-step decoding."""
    sweep: tuple[int, ...]
    """Numbers of steps that are compared."""
    rows: tuple[str, ...]
    """Rows that this scale is meant for."""
    protocol: str = "crops-128-v1"
    large_protocol: str = "crops-256-v1"
    latents: tuple[str, ...] = ("f8c4", "f16c16", "f32c64")
    """Latents of one compression."""
    rehearsal: bool = False
    """Too short for any verdict."""


_GPU = Scale(
    recipes="gpu",
    encoder_width=64,
    encoder_groups=32,
    decoder="S",
    decoders=("XS", "S", "B"),
    resolution=128,
    large_resolution=256,
    augmentation=2.0,
    images=256_000,
    distillation_images=32_000,
    finetuning_images=32_000,
    batch_size=64,
    average_halflife=5000,
    compile=True,
    workers=14,
    steps=8,
    sweep=(1, 2, 4, 8, 16),
    rows=ROWS,
)
_CPU = replace(
    _GPU,
    recipes="cpu",
    encoder_width=32,
    encoder_groups=8,
    decoder="XXS",
    decoders=("XXS", "XS"),
    resolution=64,
    large_resolution=128,
    augmentation=3.0,
    images=19_200,
    distillation_images=1600,
    finetuning_images=1600,
    batch_size=16,
    average_halflife=1000,
    compile=False,
    workers=1,
    rows=("kl-vae", "distillation"),
)
_SHORT = replace(
    _CPU,
    images=4800,
    distillation_images=1200,
    finetuning_images=1200,
    average_halflife=500,
    rows=ROWS,
    protocol="crops-64-v1",
    large_protocol="crops-128-v1",
)
_TINY = replace(
    _CPU,
    recipes="tiny",
    resolution=32,
    large_resolution=64,
    augmentation=2.0,
    images=64,
    distillation_images=16,
    finetuning_images=16,
    batch_size=8,
    average_halflife=16,
    workers=0,
    steps=2,
    sweep=(1, 2),
    protocol="paper-128-v1",
    large_protocol="paper-256-v1",
    rehearsal=True,
)
SCALES = {"gpu": _GPU, "cpu": _CPU, "short": _SHORT, "tiny": _TINY}
"""``gpu``: one GPU, about ten minutes a run. ``cpu``: two CPU cores, two rows. ``short``: all rows on two cores, each
as short as gives an interval at all. ``tiny``: a rehearsal, whose figures say nothing."""


@dataclass(frozen=True)
class Run:
    """Settings of ``ssdd train``, and the run that it takes the encoder, or all weights, from."""

    config: TrainConfig
    encoder: str | None = None
    start_from: str | None = None

    @property
    def predecessor(self) -> str | None:
        """Return the run that has to be finished before this one."""
        return self.encoder or self.start_from


def runs(scale: Scale) -> dict[str, Run]:
    """Return all runs by name, each after the one that it starts from."""
    total = scale.images + scale.distillation_images
    joint = FlowConfig(
        model=ModelConfig(
            scale.latents[0], scale.encoder_width, encoder_groups=scale.encoder_groups, decoder=scale.decoder
        ),
        loss=FlowLoss(lpips_network="squeeze"),
        **_settings(scale),
    )
    kl_vae = KLVAEConfig(
        model=KLVAEModelConfig(scale.latents[0], scale.encoder_width, scale.encoder_groups),
        loss=KLVAELoss(lpips_network="squeeze", adversarial=0.0),
        **_settings(scale) | {"total_images": total},
    )
    shorter = _shorter(scale, "distillation", scale.distillation_images)
    result = {
        "joint": Run(joint),
        "distillation": Run(
            DistillationConfig(model=TeacherConfig(), loss=DistillationLoss(lpips_network="squeeze"), **shorter),
            start_from="joint",
        ),
        "kl-vae": Run(kl_vae),
        "kl-vae-gan": Run(
            replace(
                kl_vae,
                loss=replace(kl_vae.loss, adversarial=0.5, adversarial_from_images=total // 2),
                discriminator=_discriminator(scale),
            )
        ),
    }
    for size in scale.decoders:
        model = ModelConfig(decoder=size, train_encoder=False)
        result[f"decoder-{size}"] = Run(replace(joint, model=model), encoder="joint")
    for side in (scale.resolution, scale.large_resolution):
        data = replace(joint.data, resolution=side, scale=1.0)
        settings = _shorter(scale, "finetuning", scale.finetuning_images) | {"data": data}
        tuned = FlowConfig(model=ModelConfig(train_encoder=False), loss=joint.loss, **settings)
        result[f"finetuned-{side}"] = Run(tuned, start_from=f"decoder-{scale.decoder}")
    for latent in scale.latents[1:]:
        result[latent] = Run(replace(joint, model=replace(joint.model, encoder=latent)))
    adversarial = replace(joint.loss, adversarial=0.5, adversarial_from_images=scale.images // 2)
    result["gan"] = Run(replace(joint, loss=adversarial, discriminator=_discriminator(scale)))
    result["no-lpips"] = Run(replace(joint, loss=FlowLoss(lpips=0.0)))
    return result


def lineage(scale: Scale, name: str) -> list[str]:
    """Return the names of a run and of all that it starts from, the first one first."""
    before = runs(scale)[name].predecessor
    return [*(lineage(scale, before) if before else []), name]


def images_seen(scale: Scale, name: str) -> int:
    """Return the number of images that a run and all that it starts from have seen."""
    return sum(runs(scale)[run].config.total_images for run in lineage(scale, name))


def _settings(scale: Scale) -> dict[str, Any]:
    """Return what all runs of full length have in common."""
    return {
        "data": DataConfig(resolution=scale.resolution, scale=scale.augmentation, workers=scale.workers),
        "validation": ValidationConfig(images=scale.images // 4, count=32),
        "optimizer": _optimizer(scale, "encoder"),
        "average": AverageConfig(halflife_images=scale.average_halflife),
        "total_images": scale.images,
        "batch_size": scale.batch_size,
        "compile": scale.compile,
        "log": _log(scale.images, scale.batch_size),
    }


def _shorter(scale: Scale, stage: str, images: int) -> dict[str, Any]:
    """Return the settings to go on with a finished run."""
    return _settings(scale) | {
        "optimizer": replace(_optimizer(scale, stage), warmup_images=images // 16, decay_images=images // 2),
        "average": AverageConfig(halflife_images=min(scale.average_halflife, images / 8)),
        "validation": ValidationConfig(images=images // 4, count=32),
        "total_images": images,
        "log": _log(images, scale.batch_size),
    }


def _optimizer(scale: Scale, stage: str) -> OptimizerConfig:
    """Return that of a recipe, with the warm-up and decay of a run of full length."""
    recipe = RECIPES[stage](Axes(scale=scale.recipes))
    return replace(recipe.optimizer, warmup_images=scale.images // 25, decay_images=scale.images // 4)


def _discriminator(scale: Scale) -> DiscriminatorConfig:
    recipe = RECIPES["kl-vae"](Axes(scale=scale.recipes))
    assert isinstance(recipe, KLVAEConfig)
    return replace(recipe.discriminator, warmup_images=scale.images // 25)


def _log(images: int, batch: int) -> LogConfig:
    """Return four grids and ten checkpoints a run, so that a stop costs little; they do not change the result."""
    return LogConfig(
        stats_images=max(8 * batch, images // 100),
        sample_images=images // 4,
        checkpoint_images=max(8 * batch, images // 10),
    )
