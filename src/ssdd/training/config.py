"""The typed configuration of a training run. All progress is counted in images seen.

``RunConfig`` is what every run has, ``TrainConfig`` what every stage of a tokenizer has; each stage has its own class
with exactly the settings that it uses. A number's range stands in its type. Nothing here imports torch.
"""

import dataclasses
import importlib.util
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

import msgspec
import tyro
from msgspec import Meta

from ..nn.presets import Init
from ..objectives import LPIPSNetwork
from ..runtime.dtypes import Dtype

if TYPE_CHECKING:
    from .stages.base import Stage

FRESH = "f8c4"
"""The encoder of a stage that names none and starts from no model."""

Count = Annotated[int, Meta(ge=1)]
Images = Annotated[int, Meta(ge=0)]
Weight = Annotated[float, Meta(ge=0)]
Above = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Beta = Annotated[float, Meta(ge=0, lt=1)]

# ---- what every run has ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OptimizerConfig:
    """The update: a linear warm-up, a plateau, and a linear decay to zero at the end."""

    name: Literal["adamw", "muon", "schedule-free-radam"] = "adamw"
    """``muon``: Muon on the hidden weights and AdamW on the others."""
    learning_rate: Weight = 1e-4
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    weight_decay: Weight = 1e-2
    """Not applied to biases and norms."""
    clip: Above = 1.0
    """Largest norm of the whole gradient."""
    warmup_images: Images = 1000
    decay_images: Images = 0
    """Length of the decay before ``total_images``. A warm-up and a decay longer than the run shrink with it."""


@dataclass(frozen=True)
class AverageConfig:
    """Exponential moving average of the weights: what is exported."""

    halflife_images: Above = 10_000
    """Images after which an old weight counts half."""
    from_images: Images = 0
    """Images seen before the averaging begins; until then the average is the weights themselves."""


@dataclass(frozen=True)
class LogConfig:
    """How often a run writes what, in images seen. None of it changes the result."""

    stats_images: Count = 1024
    """Between two lines of ``stats.jsonl``; the only moments at which the loop waits for the device."""
    sample_images: Images = 50_000
    """Between two sample grids; 0 for none."""
    sample_count: Images = 8
    """Images of a sample grid; 0 for no grid."""
    checkpoint_images: Count = 10_000
    """Between two checkpoints."""
    keep_checkpoints: Count = 2
    """Latest checkpoints that are kept."""
    milestone_images: Images = 0
    """Checkpoints nearest above multiples of this are kept for ever; 0 for none."""
    to: Literal["tensorboard", "wandb", "trackio"] = "tensorboard"
    """Where curves and grids go besides ``stats.jsonl`` and ``samples/``; one that does not work is left out."""


PLACES = ("data.paths", "model.encoder", "model.start_from", "loss.repa_network")
"""Settings that say where something lies, which may move: what lies there is compared, see ``run_folder``."""

RESUMABLE = ("log.*", "compile", "recompute", "parallel", "microbatch", "nonfinite_limit")
"""Settings that may change between two starts of any run: they change nothing that is computed, but for rounding."""


@dataclass(frozen=True)
class RunConfig:
    """What every run has, whatever it trains."""

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    average: AverageConfig = field(default_factory=AverageConfig)
    log: LogConfig = field(default_factory=LogConfig)
    total_images: Count = 1_000_000
    batch_size: Count = 256
    """Images of one update, over all processes."""
    microbatch: Images = 0
    """Images of one forward pass of one process; gradients are accumulated over them. 0: the process' whole part."""
    precision: Dtype = "bf16"
    """Of autocast; weights and optimiser stay in float32. fp16 scales the loss, for GPUs without bf16."""
    tf32: bool = True
    """Float32 matrix products and convolutions of a GPU round their inputs to TF32."""
    compile: bool = False
    """``torch.compile`` the networks; on a CPU their norms alone, which takes seconds and gives most of the gain."""
    recompute: bool = False
    """Activations are computed again in the backward pass instead of kept: less memory, about a third slower."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Several processes: a copy of the model in each, or (large sizes) sharded over them by FSDP2."""
    nonfinite_limit: Count = 10
    """Updates in a row skipped for a loss or gradient that is not finite, before the run stops."""
    seed: Images = 0

    stage: ClassVar[str] = ""
    """What is trained, by name."""

    def resumable(self) -> tuple[str, ...]:
        """Return the settings that may change between two starts of this run; ``SECTION.*`` for a whole section."""
        return RESUMABLE

    def without_effect(self) -> dict[str, str]:
        """Return the settings that have no effect beside the others, by name, with the reason."""
        schedule_free = self.optimizer.name == "schedule-free-radam"
        return {"optimizer.decay_images": "schedule-free has no decay"} if schedule_free else {}

    def check(self, processes: int = 1) -> None:
        """Raise ValueError with one line if so many processes cannot train these settings."""
        check_ranges(self)
        if self.log.to != "tensorboard" and importlib.util.find_spec(self.log.to) is None:
            raise ValueError(f"--log.to {self.log.to} needs the package {self.log.to}: pip install {self.log.to}")
        check_effects(self, type(self)())
        if self.batch_size % processes:
            raise ValueError(f"expected a batch size divisible by {processes} processes, found {self.batch_size}")
        local = self.batch_size // processes
        if self.microbatch and local % self.microbatch:
            raise ValueError(
                f"expected a microbatch that divides the {local} images of a process, {self.microbatch} not"
            )
        if self.parallel == "fsdp" and processes == 1:
            raise ValueError("expected several processes for --parallel fsdp, found one: use torchrun, or ddp")


# ---- sections of a tokenizer's training -----------------------------------------------------------------------------


@dataclass(frozen=True)
class DataConfig:
    """Training crops."""

    paths: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--data"])] = ()
    """Folders, uncompressed tar files and Hugging Face data sets (``hf:NAME:SPLIT``) of photographs."""
    resolution: Annotated[int, Meta(ge=8)] = 128
    """Side of the crops in pixels."""
    scale: Annotated[float, Meta(ge=1)] = 2.0
    """Shorter side resized to U{resolution .. scale * resolution} before the crop; 1 switches that off."""
    flip: bool = True
    """Mirror half of the crops."""
    workers: Images = 2
    """Data-loading processes, for each training process; 0 reads in the training process."""
    broken_limit: Images = 1000
    """Unreadable photographs after which a training process gives up."""


@dataclass(frozen=True)
class ValidationConfig:
    """How good the averaged model is on photographs that it is not trained on, while it trains."""

    paths: tuple[str, ...] = ()
    """Photographs to validate on, as for ``data.paths``."""
    share: Share = 0.01
    """Without ``paths``: the share of the training photographs that is held out (500 at most)."""
    images: Images = 50_000
    """Images seen between two validations; 0 for none but at the end."""
    count: Images = 256
    """Centre crops that are measured; 0 switches validation off."""
    steps: tuple[Count, ...] = ()
    """Numbers of decoding steps; by default 1 and those that the model is for."""
    best: Literal["lpips", "psnr", "ssim", "fd"] = "lpips"
    """Metric, at the first number of steps, by which the best model is kept in ``best/``; psnr without its weights."""


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Adam of the PatchGAN discriminator."""

    learning_rate: Above = 1e-4
    betas: tuple[Beta, Beta] = (0.5, 0.9)
    warmup_images: Images = 1000
    """Linear warm-up from where the discriminator comes in."""


@dataclass(frozen=True)
class ModelConfig:
    """What is trained, and from which weights it starts."""

    encoder: Annotated[str | None, tyro.conf.arg(aliases=["--encoder"])] = None
    """``f8c4``, ``f16c16``, ...: a fresh one. Or a trained one: a run's or a model's folder, a Hugging Face id (ours,
    or an image autoencoder of diffusers), a single .safetensors file, or your own ``package.module:name`` or
    ``file.py:name``. None: that of ``start_from``."""
    encoder_width: Count = 128
    """Channels of the first level of a fresh encoder; 64 or 32 for a small one."""
    encoder_groups: Count = 32
    """Groups of the norms of a fresh encoder; fewer than its width for a small one."""
    decoder: str | None = None
    """Decoder size, XXS to H. None: that of ``start_from``."""
    init: Init = "fan-in"
    """Of a fresh decoder; ``paper``: N(0, 0.02) for all convolutions, as published: coarse levels learn little."""
    start_from: Annotated[str | None, tyro.conf.arg(aliases=["--model"])] = None
    """A whole model to start from: another run's folder, a model's folder, an embedded name or a Hugging Face id. For
    other latents, what reads them starts afresh."""
    train_encoder: bool = True
    """False: the encoder is frozen, and the decoder is trained on its latents."""


@dataclass(frozen=True)
class TeacherConfig:
    """The model that is distilled."""

    start_from: Annotated[str | None, tyro.conf.arg(aliases=["--model"])] = None
    """The teacher, whose weights the student starts from: a run's or a model's folder, an embedded name, a hub id."""
    encoder: Annotated[str | None, tyro.conf.arg(aliases=["--encoder"])] = None
    """The frozen encoder, where the teacher has none of its own (see the flow stage)."""


@dataclass(frozen=True)
class KLVAEModelConfig:
    """The baseline's networks, and from which weights they start."""

    encoder: Annotated[str | None, tyro.conf.arg(aliases=["--encoder"])] = None
    """``f8c4``, ...: a fresh one; or a trained one of this architecture: a run, a model's folder, a hub id."""
    encoder_width: Count = 128
    """Channels of the first level of a fresh encoder."""
    encoder_groups: Count = 32
    """Groups of the norms of a fresh encoder and of the decoder."""
    decoder_width: Images = 0
    """Channels of the decoder's finest level; 0: as many as the encoder's."""
    start_from: Annotated[str | None, tyro.conf.arg(aliases=["--model"])] = None
    """A whole AutoencoderKL to start from: a run's folder, a model's folder, a hub id."""
    train_encoder: bool = True
    """False: the encoder is frozen, and the decoder is trained on its latents."""


@dataclass(frozen=True)
class ImageLoss:
    """Weights of what compares images, in every stage; 0 switches one off."""

    lpips: Weight = 0.5
    """LPIPS to the target: the photograph, or in distillation the teacher's image."""
    lpips_network: LPIPSNetwork = "vgg"
    lpips_shift: bool = True
    """Move each image by 0 to 3 pixels under LPIPS, at random: else its strides teach the decoder to draw a weave."""
    own: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--loss"])] = ()
    """Losses of yours: ``file.py:NAME``, or ``file.py:NAME:WEIGHT``; see docs/extending.md."""


@dataclass(frozen=True)
class DistillationLoss(ImageLoss):
    """Weights of the objectives; 0 switches one off."""

    flow: Weight = 1.0
    """Flow matching; in distillation the squared error to the teacher's image."""
    repa: Weight = 0.0
    """Alignment of the decoder's features with those of ``repa_network`` on the photograph."""
    repa_network: str = "facebook/dinov2-base"
    """Hugging Face id or folder of a DINOv2."""


@dataclass(frozen=True)
class AutoencoderLoss:
    """Weights of what a stage has that can train the encoder; 0 switches one off."""

    kl: Weight = 1e-6
    """KL of the posterior, summed over the latent, while the encoder is trained."""
    adversarial: Weight = 0.0
    """PatchGAN: of the KL-VAE, times the adaptive weight of VQGAN; of the flow stage, an ablation on (image, x_t)."""
    adversarial_from_images: Images = 0
    """Images seen before the discriminator comes in."""


@dataclass(frozen=True)
class FlowLoss(DistillationLoss, AutoencoderLoss):
    """Weights of the objectives; 0 switches one off."""


@dataclass(frozen=True)
class KLVAELoss(ImageLoss, AutoencoderLoss):
    """Weights of the objectives; 0 switches one off."""

    l1: Weight = 1.0
    """Absolute error."""


# ---- stages ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """What every stage of a tokenizer's training has."""

    data: DataConfig = field(default_factory=DataConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    model: ClassVar[Any]
    loss: ClassVar[Any]

    def build_stage(self, objectives: bool = True) -> "Stage":
        """Return the stage with fresh or given weights; without ``objectives`` it can make a result and not train."""
        raise TypeError(f"{type(self).__name__} is no stage: use one of {', '.join(STAGES)}")

    def resumable(self) -> tuple[str, ...]:
        names = (*RESUMABLE, "data.workers", "data.broken_limit", "validation.*")
        if getattr(self.loss, "adversarial", 0):  # adaptive weight and spectral norm depend on the microbatch
            return tuple(name for name in names if name != "microbatch")
        return names

    def without_effect(self) -> dict[str, str]:
        idle, loss, validation = super().without_effect(), self.loss, self.validation
        if not loss.lpips:
            idle |= dict.fromkeys(("loss.lpips_network", "loss.lpips_shift"), "loss.lpips is 0")
        if not getattr(loss, "repa", 1):
            idle["loss.repa_network"] = "loss.repa is 0"
        if not getattr(loss, "adversarial", 1):
            settings = ("learning_rate", "betas", "warmup_images")
            names = ("loss.adversarial_from_images", *(f"discriminator.{name}" for name in settings))
            idle |= dict.fromkeys(names, "loss.adversarial is 0")
        if not getattr(self.model, "train_encoder", True):
            idle["loss.kl"] = "the encoder is frozen"
        if validation.paths:
            idle["validation.share"] = "validation.paths says what is held out"
        if not validation.count:
            held_out = ("paths", "share", "images", "steps", "best")
            idle |= dict.fromkeys((f"validation.{name}" for name in held_out), "validation.count is 0")
            if self.log.sample_images and self.log.sample_count:  # a grid shows what is held out
                idle |= dict.fromkeys(("log.sample_images", "log.sample_count"), "validation.count is 0")
        return idle

    def check(self, processes: int = 1) -> None:
        if not self.data.paths:
            raise ValueError("expected photographs to train on: pass --data.paths FOLDER_OR_TAR ...")
        super().check(processes)
        if getattr(self.loss, "adversarial", 0) and self.data.resolution < 24:
            raise ValueError(f"a PatchGAN needs 24 pixels, found --data.resolution {self.data.resolution}")
        model, frozen = self.model, not getattr(self.model, "train_encoder", True)
        if frozen and model.start_from is None and is_encoder_size(model.encoder or FRESH):
            raise ValueError("a frozen encoder must come from somewhere: pass --encoder or --model.start-from")


@dataclass(frozen=True)
class FlowConfig(TrainConfig):
    """The diffusion decoder, with or without its encoder."""

    stage: ClassVar[str] = "flow"
    model: ModelConfig = field(default_factory=ModelConfig)  # type: ignore[misc]
    """What is trained, and from which weights it starts."""
    loss: FlowLoss = field(default_factory=FlowLoss)  # type: ignore[misc]
    """Weights of the objectives; 0 switches one off."""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    one_step_share: Share = 0.0
    """Share of the images that are trained at t = 1, from where a single step decodes; the others at
    sigmoid(N(0, 1)), which comes close to 1 rarely."""

    def build_stage(self, objectives: bool = True) -> "Stage":
        from .stages.flow import FlowStage

        return FlowStage(self, objectives)

    def without_effect(self) -> dict[str, str]:
        model, idle = self.model, super().without_effect()
        if model.start_from is not None:
            idle["model.init"] = "the decoder is that of model.start_from"
        if model.start_from is not None or not is_encoder_size(model.encoder or FRESH):
            idle |= dict.fromkeys(("model.encoder_width", "model.encoder_groups"), "the encoder is not a fresh one")
        return idle


@dataclass(frozen=True)
class DistillationConfig(TrainConfig):
    """The decoder of a trained model to one step; its encoder stays as it is."""

    stage: ClassVar[str] = "distillation"
    model: TeacherConfig = field(default_factory=TeacherConfig)  # type: ignore[misc]
    """The model that is distilled."""
    loss: DistillationLoss = field(default_factory=DistillationLoss)  # type: ignore[misc]
    """Weights of the objectives; 0 switches one off."""
    teacher_steps: Count = 12
    """Euler steps of the teacher."""

    def build_stage(self, objectives: bool = True) -> "Stage":
        from .stages.distillation import DistillationStage

        return DistillationStage(self, objectives)

    def check(self, processes: int = 1) -> None:
        super().check(processes)
        if self.model.start_from is None:
            raise ValueError("distillation needs the teacher: pass --model.start-from FOLDER")


@dataclass(frozen=True)
class KLVAEConfig(TrainConfig):
    """The baseline: encoder and plain decoder by regression, and a PatchGAN where one is wanted."""

    stage: ClassVar[str] = "kl-vae"
    model: KLVAEModelConfig = field(default_factory=KLVAEModelConfig)  # type: ignore[misc]
    """The baseline's networks, and from which weights they start."""
    loss: KLVAELoss = field(default_factory=KLVAELoss)  # type: ignore[misc]
    """Weights of the objectives; 0 switches one off."""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)

    def build_stage(self, objectives: bool = True) -> "Stage":
        from .stages.kl_vae import KLVAEStage

        return KLVAEStage(self, objectives)

    def without_effect(self) -> dict[str, str]:
        model, idle = self.model, super().without_effect()
        if model.start_from is not None:
            sizes = ("model.encoder", "model.encoder_width", "model.encoder_groups", "model.decoder_width")
            idle |= dict.fromkeys(sizes, "the networks are those of model.start_from")
        elif not is_encoder_size(model.encoder or FRESH):
            idle |= dict.fromkeys(("model.encoder_width", "model.encoder_groups"), "the encoder is not a fresh one")
        return idle

    def check(self, processes: int = 1) -> None:
        super().check(processes)
        if self.parallel == "fsdp":
            raise ValueError("the kl-vae stage is small enough for one GPU: use --parallel ddp")


STAGES: dict[str, type[TrainConfig]] = {c.stage: c for c in (FlowConfig, DistillationConfig, KLVAEConfig)}


def is_encoder_size(name: str) -> bool:
    """Return whether a name is that of a fresh encoder, such as ``f8c4``."""
    return re.fullmatch(r"f\d+c\d+", name) is not None


# ---- checks, files --------------------------------------------------------------------------------------------------

C = TypeVar("C", bound=RunConfig)

_LIMITS = {">=": "of at least", ">": "above", "<=": "of at most", "<": "below"}


def check_ranges(config: RunConfig) -> None:
    """Raise ValueError for the first setting, by name, that is of another type or out of its range."""
    values = flatten(to_dict(config))
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"expected {name} to be a finite number, found {value}")
    try:
        msgspec.convert(msgspec.to_builtins(config), type(config))
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at ")
        name = re.sub(r"\[\d+\]|\[\.\.\.\]", "", place.strip("`$.") or "a setting")
        limit = re.search(r"(>=|>|<=|<) (\S+)$", message)
        if limit is None:
            raise ValueError(f"{name}: {message[0].lower()}{message[1:]}") from error
        bound = limit[2].removesuffix(".0")
        raise ValueError(f"expected {name} {_LIMITS[limit[1]]} {bound}, found {values.get(name)}") from error


def check_effects(config: RunConfig, base: RunConfig) -> None:
    """Raise ValueError for a setting, neither of ``base`` nor the default, that has no effect beside the others."""
    values, *allowed = (flatten(to_dict(c)) for c in (config, base, type(config)()))
    for name, reason in config.without_effect().items():
        if all(values[name] != other[name] for other in allowed):
            raise ValueError(f"stage {config.stage}: {name} {values[name]} has no effect: {reason}")


def without_idle(config: C, base: RunConfig) -> C:
    """Return the config with defaults for settings that have no effect beside the others.

    Such as LPIPS' network where a recipe's LPIPS was switched off. Raise ValueError as ``check_ranges`` and
    ``check_effects``.
    """
    check_ranges(config)
    check_effects(config, base)
    defaults = type(config)()
    for setting in config.without_effect():
        section, _, name = setting.partition(".")
        default = getattr(getattr(defaults, section), name)
        changed = dataclasses.replace(getattr(config, section), **{name: default})
        config = dataclasses.replace(config, **{section: changed})
    return config


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return the whole config as plain values, with the name of its stage."""
    stage = {"stage": config.stage} if config.stage else {}
    return stage | json.loads(json.dumps(dataclasses.asdict(config)))


def to_json(config: RunConfig) -> str:
    """Return the whole config, readable and stable."""
    return json.dumps(to_dict(config), indent=2) + "\n"


def read_config(text: str) -> TrainConfig:
    """Return the config of a tokenizer's run, as ``to_json`` writes it. Raise ValueError for anything else."""
    return read_run_config(text, STAGES, "ssdd train")


def read_run_config(text: str, stages: Mapping[str, type[C]], command: str) -> C:
    """Return the config of a run of the command, whose stages have these classes. Raise ValueError for another's."""
    try:
        values = json.loads(text)
        return msgspec.convert(values, stages[values.pop("stage")])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"expected the settings of a run of `{command}`, found something else ({error})") from error


def differences(config: RunConfig, saved: str) -> list[str]:
    """Return settings that differ from those of a saved run and would change it: ``name: saved -> new``.

    The length may grow where the learning rate does not depend on it.
    """
    new, defaults = flatten(to_dict(config)), flatten(to_dict(type(config)()))
    old = defaults | flatten(json.loads(saved))  # a setting that is newer than the run had its default there
    may_change = set(config.resumable())
    if (
        not config.optimizer.decay_images
        and new["total_images"] > old["total_images"] >= config.optimizer.warmup_images
    ):
        may_change.add("total_images")
    may_change |= {name for name in PLACES if _is_place(old.get(name)) and _is_place(new.get(name))}
    for values in (old, new):  # code of the user's own may move too
        values["loss.own"] = [Path(spec).name for spec in values.get("loss.own", ())]
    names = sorted(n for n in new.keys() | old.keys() if not {n, f"{n.partition('.')[0]}.*"} & may_change)
    return [f"{n}: {old.get(n)} -> {new.get(n)}" for n in names if new.get(n) != old.get(n)]


def _is_place(value: Any) -> bool:
    """Return whether a setting says where something lies: neither None nor the size of a fresh encoder."""
    return bool(value) and not (isinstance(value, str) and is_encoder_size(value))


def flatten(tree: dict[str, Any], separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """Return the values of nested dictionaries in one, under names like ``outer.inner``."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        is_tree = isinstance(value, dict)
        flat |= flatten(value, separator, f"{prefix}{name}{separator}") if is_tree else {prefix + name: value}
    return flat


def microbatch_size(config: RunConfig, processes: int) -> int:
    """Return the images of one forward pass of one process."""
    return config.microbatch or config.batch_size // processes


def nonfinite_limit(config: RunConfig) -> int:
    """Return how many skipped updates in a row end the run: half of all where those are fewer than the setting."""
    updates = -(-config.total_images // config.batch_size)
    return min(config.nonfinite_limit, max(1, updates // 2))
