"""The typed configuration of a DiT's training. All progress is counted in images seen, an image being its latent."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import tyro

from ..training.config import RESUMABLE, Images, OptimizerConfig, RunConfig, Share

NetworkName = Literal["dit", "lightning", "diffusers"]


@dataclass(frozen=True)
class GenerationConfig(RunConfig):
    """One training run of a latent DiT."""

    stage: ClassVar[str] = "generation"
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(betas=(0.9, 0.999), weight_decay=0.0, warmup_images=0)
    )
    latents: Annotated[str, tyro.conf.Positional] = ""
    """Folder of tokenized latents."""
    network: NetworkName = "diffusers"  # of runs that began before there was a choice; recipes have another
    """dit: the published block. lightning: LightningDiT's, with RMS norms, rotary embedding and SwiGLU. diffusers:
    diffusers' DiT, with embeddings of time and class in each block; square latents of one shape only."""
    size: str = "S/2"
    """XL, L, B, S or tiny, a slash, and the side of a patch in latent pixels. Without the slash: 2 where the
    tokenizer's factor is at most 8 and the grid even, else 1."""
    label_dropout: Share = 0.1
    """Share of the labels that are hidden, so that the model learns what guidance starts from."""
    posterior: Literal["sample", "mean"] = "sample"
    """What of the encoder's posterior is learnt."""
    workers: Images = 2
    """Processes that read latents, for each training process; 0 does it in the training process."""
    decoder: str | None = None
    """Model that draws the sample grids: embedded name, folder or Hugging Face id. None: no grids."""
    force: bool = False
    """Let a decoder of another encoder draw them too."""

    def resumable(self) -> tuple[str, ...]:
        return (*RESUMABLE, "latents", "workers", "decoder", "force")

    def without_effect(self) -> dict[str, str]:
        idle = super().without_effect()
        if self.decoder is None and self.log.sample_images and self.log.sample_count:
            idle |= dict.fromkeys(("log.sample_images", "log.sample_count"), "no decoder draws the sample grids")
        return idle

    def check(self, processes: int = 1) -> None:
        if not self.latents:
            raise ValueError("expected a folder of latents to train on: make one with `ssdd tokenize`")
        super().check(processes)
