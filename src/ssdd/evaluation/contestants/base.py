"""What the evaluation asks of anything that makes images small and large again.

Shapes: B batch, H x W pixels, f spatial factor.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


class Contestant(Protocol):
    """An autoencoder, a file format or a baseline; ``load_contestant`` makes one.

    Attributes:
        name: how tables call it: a folder's name, a hub id, ``jpeg@1234B``.
        parameters: of encoder and decoder; decoder_parameters: of the decoder alone. 0 where there is no network.
        spatial_factor: f; H and W of images are multiples of it.
    """

    name: str
    parameters: int
    decoder_parameters: int
    spatial_factor: int

    def describe(self) -> dict[str, Any]:
        """For a report, JSON types alone.

        kind: class or format; source: where it came from; dtype: that it computes in; steps: default number of
        decoding steps, None for a decoder without steps; sha256: of each file of weights, by file name; latent: the
        rule of its shape.
        """
        ...

    def latent_bytes(self, height: int, width: int) -> int:
        """Bytes of one image's latent: 16 bits a number for networks, whatever the dtype that they run in."""
        ...

    def encode(self, images: Tensor) -> Any:
        """(B, 3, H, W) in [-1, 1] -> what ``decode`` takes: of a network the mode of the posterior, raw.

        Raises ValueError for a wrong shape.
        """
        ...

    def decode(
        self, latent: Any, steps: int | None = None, seed: int = 0, numbers: Sequence[int] | None = None
    ) -> Tensor:
        """(B, 3, H, W) float32, about [-1, 1], not clamped; what is not finite is left for the caller to see.

        Args:
            steps: number of decoding steps; by default the contestant's own.
            seed, numbers: the noise of image i of the batch is a function of (seed, numbers[i]), neither negative,
                and of the image's size: equal for any batch, device and number of processes. 0 to B - 1 by default.

        Raises ValueError for a wrong shape, and for ``steps`` that the decoder does not have.
        """
        ...

    def flops(self, height: int, width: int, steps: int | None = None) -> tuple[int, int] | None:
        """Operations of the matrix products and convolutions for one image: to encode it, and to decode it in so many
        steps (its default by default). A multiplication and an addition are two. None where there is no network.
        """
        ...


def check_images(name: str, images: Tensor, factor: int) -> None:
    """Raises ValueError unless they are (B, 3, H, W), H and W multiples of the factor."""
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] != 3 or shape[2] % factor or shape[3] % factor or 0 in shape:
        raise ValueError(
            f"{name}: expected images (B, 3, H, W) with H and W multiples of {factor}, found {shape}; crop them first"
        )


def check_no_steps(name: str, steps: int | None) -> None:
    """Raises ValueError if a number of steps is given to what has none."""
    if steps is not None:
        raise ValueError(f"{name}: expected no number of decoding steps, for it has none to count, found {steps}")


def image_generators(seed: int, numbers: Sequence[int]) -> list[torch.Generator]:
    """A generator for each of the images of these numbers, on the CPU: its stream is the same for any device."""
    states = [np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] for number in numbers]
    return [torch.Generator("cpu").manual_seed(int(state >> np.uint64(1))) for state in states]
