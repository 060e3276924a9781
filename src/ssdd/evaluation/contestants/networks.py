"""Pairs of networks: what all of them share, and the autoencoders of diffusers, ours among them.

Shapes: B batch, H x W pixels, f spatial factor, c latent channels, h x w = H/f x W/f latent grid.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .base import check_images, check_no_steps, image_generators
from .pretrained import CLASSES, Pretrained

_BYTES = 2
"""Of a number of a latent as it would be stored."""

_CONSISTENCY_STEPS = 2  # the only number for which diffusers' scheduler knows the times


class Network:
    """Checks, sizes and counts; a subclass sets the attributes and says how to encode and decode a batch.

    latent_channels: c. device, dtype: of the networks. steps: default number, None for a decoder without steps.
    """

    name: str
    kind: str
    source: str
    sha256: dict[str, str]
    parameters: int
    decoder_parameters: int
    spatial_factor: int
    latent_channels: int
    device: torch.device
    dtype: torch.dtype
    steps: int | None = None

    def _encode(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _decode(self, z: Tensor, steps: int | None, seed: int, numbers: Sequence[int]) -> Tensor:
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """See ``Contestant``."""
        f = self.spatial_factor
        return {
            "kind": self.kind,
            "source": self.source,
            "dtype": str(self.dtype).removeprefix("torch."),
            "steps": self.steps,
            "sha256": self.sha256,
            "latent": f"({self.latent_channels}, H/{f}, W/{f})",
        }

    def latent_bytes(self, height: int, width: int) -> int:
        """Bytes of a latent of 16 bits a number."""
        f = self.spatial_factor
        return self.latent_channels * (height // f) * (width // f) * _BYTES

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> mode of the posterior, raw, (B, c, h, w) in the networks' dtype, on their device.

        Raises ValueError for a wrong shape, also of what the network gives.
        """
        check_images(self.name, images, self.spatial_factor)
        z = self._encode(images.to(self.device, self.dtype))
        expected = (len(images), self.latent_channels, *(side // self.spatial_factor for side in images.shape[2:]))
        return self._checked("a latent", z, expected)

    @torch.inference_mode()
    def decode(
        self, latent: Tensor, steps: int | None = None, seed: int = 0, numbers: Sequence[int] | None = None
    ) -> Tensor:
        """(B, c, h, w) raw -> (B, 3, h*f, w*f) float32, about [-1, 1]; see ``Contestant``. Raises ValueError."""
        if self.steps is None:
            check_no_steps(self.name, steps)
        self._checked("a latent", latent, (*latent.shape[:1], self.latent_channels, *latent.shape[2:4]))
        steps = self.steps if steps is None else steps
        numbers = range(len(latent)) if numbers is None else numbers
        images = self._decode(latent.to(self.device, self.dtype), steps, seed, numbers)
        expected = (len(latent), 3, *(side * self.spatial_factor for side in latent.shape[2:]))
        return self._checked("images", images, expected).float()

    def flops(self, height: int, width: int, steps: int | None = None) -> tuple[int, int]:
        """Of one image, counted while a black one goes through; see ``Contestant``. Raises ValueError."""
        with FlopCounterMode(display=False) as encoding:
            latent = self.encode(torch.full((1, 3, height, width), -1.0))
        steps = self.steps if steps is None else steps
        if steps is None or steps <= 2:
            return encoding.get_total_flops(), self._decode_flops(latent, steps)
        one, two = self._decode_flops(latent, 1), self._decode_flops(latent, 2)
        return encoding.get_total_flops(), one + (steps - 1) * (two - one)  # every step after the first is the same

    def _decode_flops(self, latent: Tensor, steps: int | None) -> int:
        with FlopCounterMode(display=False) as counter:
            self.decode(latent, steps)
        return counter.get_total_flops()

    def _checked(self, what: str, found: Any, expected: tuple[int, ...]) -> Tensor:
        """The tensor, or a ValueError if it is not a floating-point one of the shape."""
        if isinstance(found, Tensor) and found.shape == expected and len(expected) == 4 and found.is_floating_point():
            return found
        shown = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"{self.name}: expected {what} {expected} of floating-point numbers, found {shown}")


class Autoencoder(Network):
    """A model of diffusers, or ours, of one of ``pretrained.CLASSES``.

    encoder: name of the encoder that was attached to a model without one.
    """

    def __init__(self, name: str, loaded: Pretrained) -> None:
        model = loaded.model
        self.name, self.kind, self.source, self.sha256 = name, type(model).__name__, loaded.source, loaded.sha256
        self.device, self.dtype, self.model = model.device, model.dtype, model
        config = model.config
        levels = config.get("encoder_block_out_channels") or config["block_out_channels"]
        self.spatial_factor, self.latent_channels = 2 ** (len(levels) - 1), config["latent_channels"]
        self.encoder = loaded.encoder
        self.parameters = _count(model) + _count(loaded.attached)
        self.decoder_parameters = sum(_count(getattr(model, part)) for part in CLASSES[self.kind])
        if self.kind == "AutoencoderSSDD":
            self.steps = config["num_inference_steps"]
        elif self.kind == "ConsistencyDecoderVAE":
            self.steps = _CONSISTENCY_STEPS

    def describe(self) -> dict[str, Any]:
        """See ``Contestant``; with the encoder if it was attached."""
        return super().describe() | ({} if self.encoder is None else {"encoder": self.encoder})

    def _encode(self, x: Tensor) -> Tensor:
        encoded = self.model.encode(x)
        if self.kind == "AutoencoderTiny":
            return encoded.latents
        if self.kind == "AutoencoderDC":
            return encoded.latent
        return encoded.latent_dist.mode()

    def _decode(self, z: Tensor, steps: int | None, seed: int, numbers: Sequence[int]) -> Tensor:
        if self.steps is None:
            return self.model.decode(z).sample
        generators = image_generators(seed, numbers)
        if self.kind == "AutoencoderSSDD":
            shape = (3, *(side * self.spatial_factor for side in z.shape[2:]))
            noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
            return self.model.decode(z, num_inference_steps=steps, noise=noise).sample
        if steps != _CONSISTENCY_STEPS:
            raise ValueError(
                f"{self.name}: expected {_CONSISTENCY_STEPS} decoding steps, no other number, found {steps}"
            )
        # It draws in the dtype of the latent, once at the start and once between the steps, and scales z itself.
        return self.model.decode(z, generator=generators).sample


def _count(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())
