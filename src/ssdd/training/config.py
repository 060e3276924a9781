"""The typed configuration of a training run. All progress is counted in images seen."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from ..nn.decoder import Init
from ..objectives.distillation import TEACHER_STEPS
from ..objectives.perceptual import LPIPSNetwork


Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class ModelConfig:
    """What is trained, and from which weights it starts."""

    encoder: Annotated[str | None, tyro.conf.arg(aliases=["--encoder"])] = None
    """``f8c4``, ``f16c16``, ...: a fresh one. Or a trained one: a run's or a model's folder, a Hugging Face id (ours,
    or any diffusers AutoencoderKL), or your own ``package.module:name`` or ``file.py:name``. None: that of
    ``start_from``."""
    encoder_width: int = 128
    """Channels of the first level of a fresh encoder; 64 or 32 for a small one."""
    encoder_groups: int = 32
    """Groups of the norms of a fresh encoder; fewer than its width for a small one."""
    decoder: str | None = None
    """Decoder size, XXS to H. None: that of ``start_from``."""
    start_from: str | None = None
    """A whole model to start from: another run's folder, a model's folder, an embedded name or a Hugging Face id."""
    init: Init = "fan-in"
    """Of a fresh decoder; ``paper``: N(0, 0.02) for every convolution, as published, where coarse levels learn little."""
    train_encoder: bool = True
    """False: the encoder is frozen, and the decoder is trained on its latents."""


@dataclass(frozen=True)
class DataConfig:
    """Training crops."""

    paths: tuple[str, ...] = ()
    """Folders, uncompressed tar files and Hugging Face data sets (``hf:NAME:SPLIT``) of photographs."""
    validation: tuple[str, ...] = ()
    """Where the fixed images of the sample grids come from; by default the training photographs."""
    resolution: int = 128
    """Side of the crops in pixels."""
    scale: float = 2.0
    """Shorter side resized to U{resolution .. scale * resolution} before the crop; 1 switches that off."""
    flip: bool = True
    workers: int = 2
    """Processes that read and crop, for each training process; 0 does it in the training process."""
    broken_limit: int = 1000
    """Unreadable photographs after which a training process gives up."""


@dataclass(frozen=True)
class LossConfig:
    """Weights of the objectives; 0 switches one off."""

    flow: float = 1.0
    """Flow matching (stages flow, distillation)."""
    l1: float = 1.0
    """Absolute error (stage kl-vae)."""
    lpips: float = 0.5
    lpips_network: LPIPSNetwork = "vgg"
    repa: float = 0.0
    """Alignment of the decoder's features with those of ``repa_network`` (stages flow, distillation)."""
    repa_network: str = "facebook/dinov2-base"
    """Hugging Face id or folder of a DINOv2."""
    kl: float = 1e-6
    """KL of the posterior, summed over the latent; counts only while the encoder is trained."""
    adversarial: float = 0.0
    """PatchGAN: for the KL-VAE baseline (times the adaptive weight), and as an ablation of the flow stage."""
    adversarial_from_images: int = 0
    """Images seen before the discriminator comes in."""


@dataclass(frozen=True)
class OptimizerConfig:
    """The update, with a linear warm-up, a plateau, and a linear decay to zero at the end."""

    name: Literal["adamw", "muon", "schedule-free-radam"] = "adamw"
    """``muon``: Muon on the hidden weights, AdamW on the others (PyTorch 2.9 or newer)."""
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1e-2
    """Not applied to biases and norms."""
    clip: float = 1.0
    """Largest norm of the whole gradient."""
    warmup_images: int = 1000
    decay_images: int = 0
    """Length of the decay before ``total_images``."""


@dataclass(frozen=True)
class AverageConfig:
    """Exponential moving average of the weights: what is exported."""

    halflife_images: float = 10_000
    """Images after which an old weight counts half."""
    from_images: int = 0
    """Images seen before the averaging begins; until then the average is the weights themselves."""


@dataclass(frozen=True)
class LogConfig:
    """How often a run writes what, in images seen. None of it changes the result."""

    stats_images: int = 1024
    """Between two lines of ``stats.jsonl``; the only moments at which the loop waits for the device."""
    sample_images: int = 50_000
    """Between two sample grids; 0 for none."""
    sample_count: int = 8
    """Images of a sample grid."""
    checkpoint_images: int = 10_000
    """Between two checkpoints."""
    keep_checkpoints: int = 2
    """Latest checkpoints that are kept."""
    milestone_images: int = 0
    """Checkpoints nearest above multiples of this are kept for ever; 0 for none."""


RESUMABLE = ("log.*", "compile", "recompute", "parallel", "microbatch", "nonfinite_limit")
"""Settings that may change between two starts of any run: they change nothing that is computed, but for rounding."""


@dataclass(frozen=True)
class RunConfig:
    """What every run has, whatever it trains."""

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    average: AverageConfig = field(default_factory=AverageConfig)
    log: LogConfig = field(default_factory=LogConfig)
    total_images: int = 1_000_000
    batch_size: int = 256
    """Images of one update, over all processes."""
    microbatch: int = 0
    """Images of one forward pass of one process; gradients are accumulated over them. 0: the process' whole part."""
    precision: Precision = "bf16"
    """bf16: autocast; weights and optimiser stay in float32."""
    tf32: bool = True
    """Float32 matrix products and convolutions of a GPU round their inputs to TF32."""
    compile: bool = False
    """``torch.compile`` the networks; on a CPU their norms alone, which takes seconds and gives most of the gain."""
    recompute: bool = False
    """Activations are computed again in the backward pass instead of kept: less memory, about a third slower."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Several processes: a copy of the model in each, or (large sizes) sharded over them by FSDP2."""
    nonfinite_limit: int = 10
    """Updates in a row skipped for a loss or gradient that is not finite, before the run stops."""
    seed: int = 0

    def resumable(self) -> tuple[str, ...]:
        """Settings that may change between two starts of this run, by name; ``SECTION.*`` for a whole section."""
        return RESUMABLE


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """One training run of a tokenizer."""

    stage: Literal["flow", "distillation", "kl-vae"] = "flow"
    """``flow``: the diffusion decoder. ``distillation``: to one step. ``kl-vae``: encoder and plain decoder."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    teacher_steps: int = TEACHER_STEPS
    """Euler steps of the teacher (stage distillation)."""
    one_step_share: float = 0.0
    """Share of the images that are trained at t = 1, from where a single step decodes; the others at
    sigmoid(N(0, 1)), which comes close to 1 rarely (stage flow)."""

    def resumable(self) -> tuple[str, ...]:
        names = (*RESUMABLE, "data.paths", "data.validation", "data.workers", "data.broken_limit")
        if self.loss.adversarial:  # the adaptive weight and the discriminator's norm depend on it
            return tuple(name for name in names if name != "microbatch")
        return names


def to_json(config: RunConfig) -> str:
    """The whole config, readable and stable."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def differences(config: RunConfig, saved: str) -> list[str]:
    """Settings of ``config`` that differ from those of a saved run and would change it: ``name: saved -> new``."""
    new, defaults = _flat(json.loads(to_json(config))), _flat(json.loads(to_json(type(config)())))
    old = defaults | _flat(json.loads(saved))  # a setting that is newer than the run had its default there
    may_change = config.resumable()
    names = sorted(n for n in new.keys() | old.keys() if not {n, f"{n.partition('.')[0]}.*"} & set(may_change))
    return [f"{n}: {old.get(n)} -> {new.get(n)}" for n in names if new.get(n) != old.get(n)]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat


def check_run(config: RunConfig, processes: int = 1) -> None:
    """Raises ValueError with one line if the settings that all runs have cannot be trained."""
    for name in ("total_images", "batch_size"):
        if getattr(config, name) < 1:
            raise ValueError(f"expected {name} of at least 1, found {getattr(config, name)}")
    check_finite({"optimizer.learning_rate": config.optimizer.learning_rate})
    if config.batch_size % processes:
        raise ValueError(f"expected a batch size divisible by {processes} processes, found {config.batch_size}")
    local = config.batch_size // processes
    if config.microbatch and local % config.microbatch:
        raise ValueError(f"expected a microbatch that divides the {local} images of a process, {config.microbatch} not")
    if config.log.stats_images < 1 or config.log.checkpoint_images < 1 or config.log.keep_checkpoints < 1:
        raise ValueError("expected log.stats_images, log.checkpoint_images and log.keep_checkpoints of at least 1")
    if config.parallel == "fsdp" and processes == 1:
        raise ValueError("expected several processes for --parallel fsdp, found one: use torchrun, or --parallel ddp")
    if config.seed < 0 or config.optimizer.clip <= 0:
        raise ValueError("expected a seed of at least 0 and an optimizer.clip above 0")


def check_finite(settings: dict[str, float]) -> None:
    """Raises ValueError for a setting, by name, that is negative or not finite."""
    for name, value in settings.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"expected {name} of at least 0, found {value}")


def check(config: TrainConfig, processes: int = 1) -> None:
    """Raises ValueError with one line if the settings cannot be trained."""
    if not config.data.paths:
        raise ValueError("expected photographs to train on: pass --data.paths FOLDER_OR_TAR ...")
    check_finite({f"loss.{name}": value for name, value in vars(config.loss).items() if isinstance(value, float)})
    if not 0 <= config.one_step_share <= 1:
        raise ValueError(f"expected a one_step_share from 0 to 1, found {config.one_step_share}")
    if config.data.workers < 0 or config.data.broken_limit < 0:
        raise ValueError("expected data.workers and data.broken_limit of at least 0")
    if config.data.scale < 1 or config.data.resolution < 8:
        raise ValueError("expected a data.scale of at least 1 and a data.resolution of at least 8")
    if config.stage == "kl-vae" and config.parallel == "fsdp":
        raise ValueError("the kl-vae stage is small enough for one GPU: use --parallel ddp")
    check_run(config, processes)
    if config.stage == "distillation" and (config.model.start_from is None or config.model.train_encoder):
        raise ValueError(
            "distillation needs the teacher (--model.start-from FOLDER) and a frozen encoder (--model.no-train-encoder)"
        )
    if config.stage == "distillation" and config.loss.adversarial:
        raise ValueError("expected no adversarial loss in distillation: pass --loss.adversarial 0")
    if config.loss.adversarial and config.data.resolution < 24:
        raise ValueError(f"a PatchGAN needs 24 pixels, found --data.resolution {config.data.resolution}")


def microbatch_size(config: RunConfig, processes: int) -> int:
    """Images of one forward pass of one process."""
    return config.microbatch or config.batch_size // processes


def nonfinite_limit(config: RunConfig) -> int:
    """Skipped updates in a row that end the run: half of all where that are fewer than the setting."""
    updates = -(-config.total_images // config.batch_size)
    return min(config.nonfinite_limit, max(1, updates // 2))
