"""The typed configuration of a training run. All progress is counted in images seen."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..objectives.perceptual import LPIPSNetwork


@dataclass(frozen=True)
class ModelConfig:
    """What is trained, and from which weights it starts."""

    encoder: str = "f8c4"
    """Spatial factor and latent channels."""
    encoder_width: int = 128
    """Channels of the first encoder level; 64 or 32 for a small encoder."""
    encoder_groups: int = 32
    """Groups of the encoder's norms; fewer than its width for a small encoder."""
    decoder: str = "S"
    """Decoder size; see ``ssdd.nn.presets``."""
    encoder_from: str | None = None
    """Folder of a diffusers KL-VAE (such as the ``model`` folder of a kl-vae run) whose encoder is taken."""
    start_from: str | None = None
    """Folder or name of an SSDD model (such as the ``model`` folder of another run) to start from."""
    train_encoder: bool = True
    """False: the encoder is frozen, and the decoder is trained on its latents."""


@dataclass(frozen=True)
class DataConfig:
    """Training crops."""

    paths: tuple[str, ...] = ()
    """Folders and uncompressed tar files of photographs."""
    resolution: int = 128
    """Side of the crops in pixels."""
    scale: float = 2.0
    """Shorter side resized to U{resolution .. scale * resolution} before the crop; 1 switches that off."""
    flip: bool = True
    workers: int = 2
    """Processes that read and crop; 0 does it in the training process."""


@dataclass(frozen=True)
class LossConfig:
    """Weights of the objectives."""

    flow: float = 1.0
    """Flow matching (stage flow)."""
    l1: float = 1.0
    """Absolute error (stage kl-vae)."""
    lpips: float = 0.5
    lpips_network: LPIPSNetwork = "vgg"
    kl: float = 1e-6
    """KL of the posterior, summed over the latent; counts only while the encoder is trained."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a linear warm-up, a plateau, and a linear decay to zero at the end."""

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
class TrainConfig:
    """One training run."""

    stage: Literal["flow", "kl-vae"] = "flow"
    """``flow``: the diffusion decoder. ``kl-vae``: encoder and plain decoder by regression."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    total_images: int = 1_000_000
    batch_size: int = 256
    """Global batch in images."""
    ema_halflife_images: int = 10_000
    """Images after which an old weight counts half in the average."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16: autocast; weights and optimiser stay in float32."""
    compile: bool = False
    """``torch.compile`` the network."""
    seed: int = 0
    log_images: int = 1024
    """Images between two lines of ``stats.jsonl``."""
    checkpoint_images: int = 10_000
    """Images between two checkpoints."""


RESUMABLE = ("data.paths", "data.workers", "compile", "log_images", "checkpoint_images")
"""Settings that may change between two starts of one run: they don't change what is computed."""


def to_json(config: TrainConfig) -> str:
    """The whole config, readable and stable."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def differences(config: TrainConfig, saved: str) -> list[str]:
    """Settings of ``config`` that differ from those of a saved run and would change it: ``name: saved -> new``."""
    new, old = _flat(json.loads(to_json(config))), _flat(json.loads(saved))
    names = sorted((new.keys() | old.keys()) - set(RESUMABLE))
    return [f"{n}: {old.get(n)} -> {new.get(n)}" for n in names if new.get(n) != old.get(n)]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat


def check(config: TrainConfig) -> None:
    """Raises ValueError with one line if the settings cannot be trained."""
    if not config.data.paths:
        raise ValueError("expected photographs to train on: pass --data.paths FOLDER_OR_TAR ...")
    if config.total_images < 1 or config.batch_size < 1:
        raise ValueError("expected total_images and batch_size of at least 1")
    missing = [p for p in config.data.paths if not Path(p).exists()]
    if missing:
        raise ValueError(f"{missing[0]}: expected a folder or a tar file of photographs, found nothing there")
