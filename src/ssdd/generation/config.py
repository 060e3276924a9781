"""The typed configuration of a DiT's training. All progress is counted in images seen, an image being its latent."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from ..training.config import RESUMABLE, OptimizerConfig, RunConfig, check_run


@dataclass(frozen=True)
class GenerationConfig(RunConfig):
    """One training run of a latent DiT."""

    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(betas=(0.9, 0.999), weight_decay=0.0, warmup_images=0)
    )
    latents: Annotated[str, tyro.conf.Positional] = ""
    """Folder of tokenized latents."""
    size: str = "S/2"
    """XL, L, B, S or tiny, a slash, and the side of a patch in latent pixels."""
    label_dropout: float = 0.1
    """Share of the labels that are hidden, so that the model learns what guidance starts from."""
    posterior: Literal["sample", "mean"] = "sample"
    """What of the encoder's posterior is learnt."""
    workers: int = 2
    """Processes that read latents, for each training process; 0 does it in the training process."""
    decoder: str | None = None
    """Model that draws the sample grids: embedded name, folder or Hugging Face id. None: no grids."""

    def resumable(self) -> tuple[str, ...]:
        return (*RESUMABLE, "latents", "workers", "decoder")


def check(config: GenerationConfig, processes: int = 1) -> None:
    """Raises ValueError with one line if the settings cannot be trained."""
    if not config.latents:
        raise ValueError("expected a folder of latents to train on: make one with `ssdd tokenize`")
    if not 0 <= config.label_dropout <= 1:
        raise ValueError(f"expected a label_dropout from 0 to 1, found {config.label_dropout}")
    if config.workers < 0:
        raise ValueError(f"expected workers of at least 0, found {config.workers}")
    check_run(config, processes)
