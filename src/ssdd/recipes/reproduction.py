"""The paper's claims at a small scale: every run of the table that ``scripts/reproduction.py`` makes.

Runs that are compared see the same photographs as often, with the same augmentation, optimiser and rate, and have the
same encoder's architecture. What a student's distillation sees counts: its baseline is trained for as much longer.
``docs/reproduction.md`` says which claim needs which runs.
"""

from dataclasses import dataclass, replace

from ..training.config import (
    AverageConfig,
    DataConfig,
    LogConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)


@dataclass(frozen=True)
class Scale:
    """How large the models are, how long they are trained, on what they are compared.

    decoders: further sizes on the shared encoder, smallest first, ``decoder`` among them. latents: at one compression.
    resolution, large_resolution: of crops in pixels, each with the protocol that evaluates it. images: seen by a run;
    fewer by a distillation and by a fine-tuning. steps: of multi-step decoding; sweep: numbers of steps that are
    compared. rows: of the table that this scale is meant for. rehearsal: too short for any verdict.
    """

    encoder_width: int
    encoder_groups: int
    decoder: str
    decoders: tuple[str, ...]
    resolution: int
    large_resolution: int
    augmentation: float
    images: int
    distillation_images: int
    finetuning_images: int
    batch_size: int
    learning_rate: float
    average_halflife: float
    compile: bool
    workers: int
    protocol: str
    large_protocol: str
    steps: int
    sweep: tuple[int, ...]
    rows: tuple[str, ...]
    latents: tuple[str, ...] = ("f8c4", "f16c16", "f32c64")
    rehearsal: bool = False


ROWS = ("kl-vae", "distillation", "shared-encoder", "resolutions", "compression", "no-gan", "objectives", "steps")
"""Of the table, in its order."""

SCALES = {
    "gpu": Scale(
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
        learning_rate=5e-4,
        average_halflife=5000,
        compile=True,
        workers=14,
        protocol="crops-128-v1",
        large_protocol="crops-256-v1",
        steps=8,
        sweep=(1, 2, 4, 8, 16),
        rows=ROWS,
    ),
    "cpu": Scale(
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
        learning_rate=7e-4,
        average_halflife=1000,
        compile=False,
        workers=1,
        protocol="crops-128-v1",
        large_protocol="crops-256-v1",
        steps=8,
        sweep=(1, 2, 4, 8, 16),
        rows=("kl-vae", "distillation"),
    ),
    "tiny": Scale(
        encoder_width=32,
        encoder_groups=8,
        decoder="XXS",
        decoders=("XXS", "XS"),
        resolution=32,
        large_resolution=64,
        augmentation=2.0,
        images=64,
        distillation_images=16,
        finetuning_images=16,
        batch_size=8,
        learning_rate=1e-3,
        average_halflife=16,
        compile=False,
        workers=0,
        protocol="paper-128-v1",
        large_protocol="paper-256-v1",
        steps=2,
        sweep=(1, 2),
        rows=("kl-vae", "distillation"),
        rehearsal=True,
    ),
}
"""``gpu``: one GPU, about ten minutes a run. ``cpu``: two CPU cores, two rows. ``tiny``: a rehearsal, whose figures say
nothing."""


def runs(scale: Scale) -> tuple[str, ...]:
    """Names of all runs, each after those that it starts from."""
    decoders = (f"decoder-{size}" for size in scale.decoders)
    tuned = (f"finetuned-{side}" for side in (scale.resolution, scale.large_resolution))
    return ("joint", "distillation", "kl-vae", *decoders, *tuned, *scale.latents[1:], "gan", "no-lpips")


def run(scale_name: str, name: str) -> TrainConfig:
    """One run of the reproduction of the paper's claims, see docs/reproduction.md."""
    scale = SCALES[scale_name]
    base = _base(scale)
    if name == "distillation":
        return _shorter(base, scale.distillation_images, "distillation", start_from=place(scale_name, "joint"))
    if name == "kl-vae":
        total = scale.images + scale.distillation_images
        loss = replace(base.loss, lpips=1.0, adversarial=0.5, adversarial_from_images=total // 2)
        model = replace(base.model, decoder=None)
        return replace(base, stage="kl-vae", model=model, loss=loss, total_images=total)
    if name.startswith("decoder-"):
        model = ModelConfig(place(scale_name, "joint"), decoder=name.removeprefix("decoder-"), train_encoder=False)
        return replace(base, model=model)
    if name.startswith("finetuned-"):
        start = place(scale_name, f"decoder-{scale.decoder}")
        config = _shorter(base, scale.finetuning_images, "flow", start_from=start)
        return replace(config, data=replace(base.data, resolution=int(name.removeprefix("finetuned-")), scale=1.0))
    if name in scale.latents[1:]:
        return replace(base, model=replace(base.model, encoder=name))
    if name == "gan":
        return replace(base, loss=replace(base.loss, adversarial=0.5, adversarial_from_images=scale.images // 2))
    if name == "no-lpips":
        return replace(base, loss=replace(base.loss, lpips=0.0))
    if name != "joint":
        raise ValueError(f"expected a run, one of {', '.join(runs(scale))}; found {name!r}")
    return base


def place(scale_name: str, name: str) -> str:
    """Where ``ssdd train`` puts a run by itself, and its successors look for it."""
    return f"runs/{recipe_name(scale_name, name)}"


def recipe_name(scale_name: str, name: str) -> str:
    """Of a run, for ``ssdd train``."""
    return f"reproduction-{scale_name}-{name}"


def start_of(scale_name: str, name: str) -> str | None:
    """The run that a run gets its encoder, or all its weights, from; None for a fresh start."""
    model = run(scale_name, name).model
    prefix = place(scale_name, "")
    return next((p.removeprefix(prefix) for p in (model.start_from, model.encoder) if p and p.startswith(prefix)), None)


def images_seen(scale_name: str, name: str) -> int:
    """By a run and all that it starts from."""
    start = start_of(scale_name, name)
    return run(scale_name, name).total_images + (images_seen(scale_name, start) if start else 0)


def _base(scale: Scale) -> TrainConfig:
    """Encoder and decoder together, by flow matching + LPIPS + KL."""
    return TrainConfig(
        stage="flow",
        model=ModelConfig(
            scale.latents[0], scale.encoder_width, encoder_groups=scale.encoder_groups, decoder=scale.decoder
        ),
        data=DataConfig(resolution=scale.resolution, scale=scale.augmentation, workers=scale.workers),
        loss=LossConfig(lpips_network="squeeze"),
        optimizer=OptimizerConfig(
            learning_rate=scale.learning_rate, warmup_images=scale.images // 25, decay_images=scale.images // 4
        ),
        average=AverageConfig(halflife_images=scale.average_halflife),
        total_images=scale.images,
        batch_size=scale.batch_size,
        compile=scale.compile,
        log=_log(scale.images, scale.batch_size),
    )


def _shorter(base: TrainConfig, images: int, stage: str, start_from: str) -> TrainConfig:
    """Goes on with a finished run, at a fifth of its rate, the encoder frozen."""
    rate = base.optimizer.learning_rate / 5
    optimizer = replace(base.optimizer, learning_rate=rate, warmup_images=images // 16, decay_images=images // 2)
    return replace(
        base,
        stage=stage,  # type: ignore[arg-type]
        model=ModelConfig(start_from=start_from, train_encoder=False),
        optimizer=optimizer,
        average=AverageConfig(halflife_images=min(base.average.halflife_images, images / 8)),
        total_images=images,
        log=_log(images, base.batch_size),
    )


def _log(images: int, batch: int) -> LogConfig:
    """Four grids and ten checkpoints in a run, so that a stop costs little; none of it changes the result."""
    return LogConfig(
        stats_images=max(8 * batch, images // 100),
        sample_images=images // 4,
        checkpoint_images=max(8 * batch, images // 10),
    )
