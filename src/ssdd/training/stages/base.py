"""What the loop needs of an objective, and what the stages of a tokenizer's training share.

Shapes: B batch, H x W pixels, c latent channels, h x w latent grid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...objectives.adversarial import DiscriminatorInputs, PatchDiscriminator
from ...objectives.image import ImageLosses, LossInputs
from ..random import BatchRandom

Network = Callable[..., Any]
"""An objective's ``model``, perhaps compiled or wrapped."""

State = dict[str, Tensor]
"""A state dict."""


@dataclass(frozen=True)
class StepLosses:
    """Scalars of one forward pass. total: to minimise. terms: before their weights, for the log."""

    total: Tensor
    terms: dict[str, Tensor]
    discriminator_inputs: DiscriminatorInputs | None = None


class Objective(Protocol):
    """What the loop trains, and on which loss.

    Attributes:
        model: the trainable network: optimised, averaged and saved.
        adversary: the network trained against it, if there is one.
        frozen: networks that are used and not trained, by name: losses, encoder, teacher. Optimiser, average,
            checkpoints and DDP never see them.
    """

    adversary: PatchDiscriminator | None
    frozen: dict[str, nn.Module]

    @property
    def model(self) -> nn.Module: ...

    def losses(self, network: Network, batch: Any, random: BatchRandom, seen: int) -> StepLosses:
        """Return the losses of a batch on the device.

        Args:
            network: ``model``, perhaps wrapped.
            batch: what the task's ``on_device`` gives.
            random: draws for the batch.
            seen: images seen before it.
        """
        ...

    def example(self, device: torch.device) -> Any:
        """Return a batch of one image without content, for ``losses``."""
        ...

    def compiled_parts(self) -> list[nn.Module]:
        """Return the parts of ``model`` to compile, each as one graph."""
        ...


class Stage:
    """A stage of a tokenizer's training, an ``Objective``; its batches are images (B, 3, H, W) in [-1, 1].

    A stage adds ``model``, ``losses``, ``result`` and ``export``.

    Args:
        config: of the stage.
        encoder: images (B, 3, H, W) -> moments (B, 2c, h, w).
        factor: pixels per latent cell.
        trains_encoder: whether the encoder is a part of ``model``; else it is frozen.
        objectives: False for a stage that can make a result and not train.

    Attributes:
        steps: numbers of decoding steps that the result is looked at with; the first is the most important.
        statistics: config entries of the latents' statistics where the encoder came with them; else they are measured.
        normalize_latents: lets latents enter the decoder as (z - mean) / std, from mean and standard deviation of each
            channel; None: they enter as they are.
        given: networks that the run starts from or is trained on: its provenance, by name.
        weights: of the losses, by name.

    Raises:
        ValueError: the crops are not whole latent cells, or a loss cannot be had.
    """

    model: Any
    steps: tuple[int, ...] = (1,)
    normalize_latents: Callable[[Sequence[float], Sequence[float]], None] | None = None
    adversary: PatchDiscriminator | None = None

    def __init__(self, config: Any, encoder: nn.Module, factor: int, trains_encoder: bool, objectives: bool) -> None:
        if config.data.resolution % factor:
            raise ValueError(
                f"expected a data.resolution that is a multiple of the encoder's factor {factor}, "
                f"found {config.data.resolution}"
            )
        self.config, self.trains_encoder = config, trains_encoder
        self.statistics: dict[str, Any] = {}
        self.weights: dict[str, float] = {}
        self.frozen: dict[str, nn.Module] = {}
        if not trains_encoder:
            self.frozen["encoder"] = encoder.eval().requires_grad_(False)
        self.given = dict(self.frozen)
        if objectives:
            self.frozen["images"] = losses = ImageLosses(config.loss.lpips, config.loss.lpips_network, config.loss.own)
            self.weights |= losses.weights

    @torch.no_grad()
    def frozen_moments(self, images: Tensor) -> Tensor | None:
        """Return the frozen encoder's moments; None where the encoder is trained."""
        return self.frozen["encoder"](images) if "encoder" in self.frozen else None

    def image_losses(self, inputs: LossInputs, random: BatchRandom) -> dict[str, Tensor]:
        """Return LPIPS, at a random place on its grid for each image, and the user's own losses."""
        return self.frozen["images"](inputs, random.uniform(2) if self.config.loss.lpips_shift else None)

    def example(self, device: torch.device) -> Tensor:
        side = self.config.data.resolution
        return torch.zeros(1, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)

    def compiled_parts(self) -> list[nn.Module]:
        return [self.model]

    def losses(self, network: Network, images: Tensor, random: BatchRandom, seen: int) -> StepLosses:
        """Return the losses of a batch on the device; see ``Objective``."""
        raise NotImplementedError

    def result(self, state: State) -> Any:
        """Return the autoencoder with the weights of an (averaged) ``model``, in eval mode, on the CPU."""
        raise NotImplementedError

    def latents(self, result: Any, images: Tensor) -> Tensor:
        """Return raw latents (posterior mode), (B, c, h, w), of images (B, 3, H, W)."""
        return result.encode(images).latent_dist.mode()

    def reconstruct(self, result: Any, images: Tensor, steps: int) -> Tensor:
        """Return reconstructions, (B, 3, H, W), in that many steps."""
        return result.decode(self.latents(result, images), num_inference_steps=steps).sample

    def export(self, result: Any, folder: Path, statistics: dict[str, Any]) -> None:
        """Write the autoencoder as a folder that ``from_pretrained`` reads."""
        result.register_to_config(**statistics)
        result.save_pretrained(folder)
