"""What a tokenizer is measured against without any network: JPEG files of a size, and fewer pixels.

Shapes: B batch, H x W pixels, f the factor of the pixels.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor

from ...data.pixels import Pixels, image_to_tensor, tensor_to_image
from .base import check_images, check_no_steps

_BEST_QUALITY = 95  # Pillow's advice: above it files grow and pictures do not get better


class Jpeg:
    """JPEG files of at most ``budget`` bytes each, at the best quality from 1 to 95 that a binary search finds.

    Pillow's defaults otherwise: 4:2:0 chroma, standard Huffman tables. A latent is the list of the B files. Raises
    ValueError for a budget below 1.
    """

    def __init__(self, budget: int, device: torch.device | str = "cpu") -> None:
        if budget < 1:
            raise ValueError(f"expected a budget of at least 1 byte for a JPEG file, found {budget}")
        self.budget, self.device = budget, torch.device(device)
        self.name = f"jpeg@{budget}B"
        self.parameters = self.decoder_parameters = 0
        self.spatial_factor = 1

    def describe(self) -> dict[str, Any]:
        """See ``Contestant``; the library that wrote the files instead of weights."""
        library = "libjpeg-turbo" if features.check_feature("libjpeg_turbo") else "libjpeg"
        source = f"Pillow {Image.__version__}, {library} {features.version_codec('jpg')}"
        rule = f"a file of at most {self.budget} bytes, quality 1 to {_BEST_QUALITY}, 4:2:0"
        return _description("JPEG", source, rule)

    def latent_bytes(self, height: int, width: int) -> int:
        """The budget, whatever the size."""
        return self.budget

    def encode(self, images: Tensor) -> list[bytes]:
        """(B, 3, H, W) in [-1, 1] -> B files. Raises ValueError where quality 1 is over the budget already."""
        check_images(self.name, images, 1)
        return [self._file(pixels) for pixels in tensor_to_image(images)]

    def _file(self, pixels: Pixels) -> bytes:
        picture, best, least = Image.fromarray(pixels), b"", 0
        low, high = 1, _BEST_QUALITY
        while low <= high:
            quality = (low + high) // 2
            stream = io.BytesIO()
            picture.save(stream, "JPEG", quality=quality)
            least = stream.tell()
            if least <= self.budget:
                best, low = stream.getvalue(), quality + 1
            else:
                high = quality - 1
        if not best:  # the last quality tried was 1
            raise ValueError(
                f"{self.name}: expected a budget that an image of {picture.width} x {picture.height} pixels can meet, "
                f"found {least} bytes at quality 1; take a larger one"
            )
        return best

    def decode(
        self, latent: list[bytes], steps: int | None = None, seed: int = 0, numbers: Sequence[int] | None = None
    ) -> Tensor:
        """B files -> (B, 3, H, W) float32 in [-1, 1]. Raises ValueError if ``steps`` is given."""
        check_no_steps(self.name, steps)
        pictures = [Image.open(io.BytesIO(file), formats=["JPEG"]) for file in latent]
        return torch.stack([image_to_tensor(np.asarray(picture)) for picture in pictures]).to(self.device)

    def flops(self, height: int, width: int, steps: int | None = None) -> None:
        """None: no matrix products."""


class Bicubic:
    """The image reduced by ``factor`` and enlarged again, both bicubic, as ``metrics.bicubic_baseline`` has it.

    A latent is uint8 (B, H/f, W/f, 3). Raises ValueError for a factor below 1.
    """

    def __init__(self, factor: int, device: torch.device | str = "cpu") -> None:
        if factor < 1:
            raise ValueError(f"expected a factor of at least 1 for the bicubic baseline, found {factor}")
        self.spatial_factor, self.device = factor, torch.device(device)
        self.name = f"bicubic:{factor}"
        self.parameters = self.decoder_parameters = 0

    def describe(self) -> dict[str, Any]:
        """See ``Contestant``."""
        f = self.spatial_factor
        return _description("bicubic", f"Pillow {Image.__version__}", f"(3, H/{f}, W/{f}) of 8 bits")

    def latent_bytes(self, height: int, width: int) -> int:
        """Bytes of the small image, one a number."""
        return 3 * (height // self.spatial_factor) * (width // self.spatial_factor)

    def encode(self, images: Tensor) -> Pixels:
        """(B, 3, H, W) in [-1, 1], H and W multiples of f -> uint8 (B, H/f, W/f, 3). Raises ValueError."""
        check_images(self.name, images, self.spatial_factor)
        pixels = tensor_to_image(images)
        size = (pixels.shape[2] // self.spatial_factor, pixels.shape[1] // self.spatial_factor)
        return np.stack([_resized(image, size) for image in pixels])

    def decode(
        self, latent: Pixels, steps: int | None = None, seed: int = 0, numbers: Sequence[int] | None = None
    ) -> Tensor:
        """uint8 (B, h, w, 3) -> (B, 3, h*f, w*f) float32 in [-1, 1]. Raises ValueError if ``steps`` is given."""
        check_no_steps(self.name, steps)
        size = (latent.shape[2] * self.spatial_factor, latent.shape[1] * self.spatial_factor)
        return torch.stack([image_to_tensor(_resized(image, size)) for image in latent]).to(self.device)

    def flops(self, height: int, width: int, steps: int | None = None) -> None:
        """None: no matrix products."""


def _resized(image: Pixels, size: tuple[int, int]) -> Pixels:
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def _description(kind: str, source: str, latent: str) -> dict[str, Any]:
    return {"kind": kind, "source": source, "dtype": "uint8", "steps": None, "sha256": {}, "latent": latent}
