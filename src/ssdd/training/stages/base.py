"""What the loop needs of a stage, and what the stages share.

A stage holds ``model``, the network that is optimised, averaged and saved, and apart from it the frozen networks
(losses, encoder, teacher), which optimiser, average, checkpoints and DDP never see.

Shapes: B batch, H x W pixels, c latent channels, h x w latent grid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...objectives.adversarial import PatchDiscriminator
from ..random import BatchRandom

Network = Callable[..., Any]
"""A stage's ``model``, perhaps compiled or wrapped."""

State = dict[str, Tensor]
"""A state dict."""

NormalizeLatents = Callable[[Sequence[float], Sequence[float]], None]
"""Takes mean and standard deviation of each channel."""


@dataclass(frozen=True)
class DiscriminatorInputs:
    """real, fake: (B, C, H, W), without gradient; t: (B,), where the discriminator is told the time."""

    real: Tensor
    fake: Tensor
    t: Tensor | None = None


@dataclass(frozen=True)
class StepLosses:
    """Scalars of one forward pass. total: to minimise. terms: before their weights, for the log."""

    total: Tensor
    terms: dict[str, Tensor]
    discriminator_inputs: DiscriminatorInputs | None = None


class Objective(Protocol):
    """What the loop trains, and on which loss."""

    @property
    def model(self) -> nn.Module:
        """The trainable network."""
        ...

    adversary: PatchDiscriminator | None
    """The network trained against it."""
    frozen: dict[str, nn.Module]
    """Networks that are used and not trained, by name."""

    def losses(self, network: Network, batch: Any, random: BatchRandom, seen: int) -> StepLosses:
        """Return the losses of a batch on the device; ``network`` is ``model``, perhaps wrapped; ``seen`` the clock."""
        ...

    def example(self, device: torch.device) -> Any:
        """Return a batch of one image without content, for ``losses``."""
        ...

    def compiled_parts(self) -> list[nn.Module]:
        """Return the parts of ``model`` to compile, each as one graph."""
        ...


class Stage(Objective, Protocol):
    """A stage of a tokenizer's training; its batches are images (B, 3, H, W) in [-1, 1]."""

    steps: tuple[int, ...]
    """Numbers of decoding steps that the result is looked at with; the first is the most important."""
    statistics: dict[str, Any]
    """Config entries of the latents' statistics where the encoder came with them; else they are measured."""
    normalize_latents: NormalizeLatents | None
    """Lets latents enter the decoder as (z - mean) / std, per channel; None: they enter as they are."""
    given: dict[str, nn.Module]
    """Networks that the run starts from or is trained on: its provenance, by name."""

    def result(self, state: State) -> Any:
        """Return the autoencoder with the weights of an (averaged) ``model``, in eval mode, on the CPU."""
        ...

    def latents(self, result: Any, images: Tensor) -> Tensor:
        """Return raw latents (posterior mode), (B, c, h, w), of images (B, 3, H, W)."""
        ...

    def reconstruct(self, result: Any, images: Tensor, steps: int) -> Tensor:
        """Return reconstructions, (B, 3, H, W), in that many steps."""
        ...

    def export(self, result: Any, folder: Path, statistics: dict[str, Any]) -> None:
        """Write the autoencoder as a folder that ``from_pretrained`` reads."""
        ...


def blank_image(side: int, device: torch.device) -> Tensor:
    """Return (1, 3, S, S) of zeros, channels-last."""
    return torch.zeros(1, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
