"""From a photograph to the square crops that are encoded, each with its place in the photograph.

Shapes: H x W pixels of the photograph, H' x W' of the resized one, S side of a crop.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from ..data.images import MAX_PIXELS, ImageError, printable
from ..data.transforms import resize_shorter_side

CropRule = Literal["centre", "random"]


class Crop(NamedTuple):
    """uint8 (S, S, 3), cut at (top, left) out of the photograph resized to ``resized`` = (H', W')."""

    pixels: np.ndarray
    resized: tuple[int, int]
    top: int
    left: int


@dataclass(frozen=True)
class CropProtocol:
    """Which crops of an image are encoded: a function of (protocol, number of the image) alone.

    Attributes:
        rule: ``centre``: shorter side resized to S (bilinear, antialiased), then the middle: the crop of the
            evaluation protocols paper-S. ``random``: shorter side resized to U{S .. scale * S} by the same filter,
            then a place drawn from (seed, image, crop).
        size: S, in pixels.
        crops: of an image; more than one for ``random`` alone.
        scale: at least 1; above 1 for ``random`` alone.
        seed: of all that is random.
        flips: each crop mirrored too, as a latent of its own.

    Raises:
        ValueError: numbers out of range, or several crops by a rule that has only one.
    """

    rule: CropRule = "centre"
    size: int = 256
    crops: int = 1
    scale: float = 1.0
    seed: int = 0
    flips: bool = False

    def __post_init__(self) -> None:
        if not (1 <= self.size <= 1 << 14 and 1 <= self.crops <= 1000 and 1 <= self.scale <= 16 and self.seed >= 0):
            raise ValueError(
                "expected a size from 1 to 16384, 1 to 1000 crops, a scale from 1 to 16 and a seed from 0, found "
                f"{self.size}, {self.crops}, {self.scale:g}, {self.seed}"
            )
        if self.rule == "centre" and (self.crops > 1 or self.scale != 1):
            raise ValueError("expected one crop at scale 1 by the rule centre: pass --crop random for others")

    def describe(self) -> dict[str, Any]:
        """Every choice, for the manifest."""
        words = "middle" if self.rule == "centre" else "place uniform from (seed, image, crop)"
        resize = "shorter side to size" if self.scale == 1 else "shorter side uniform from size to scale * size"
        colour = "RGB of the file, upright by EXIF, transparency on white, colour profiles ignored"
        return {**asdict(self), "resize": f"{resize} (Pillow, bilinear, antialiased)", "place": words, "colour": colour}

    def cut(self, image: np.ndarray, number: int, name: str) -> tuple[Crop, ...]:
        """The crops of a photograph, uint8 (H, W, 3), which is the ``number``-th of its set.

        Raises ImageError, with its name, where the resized one would be out of bounds.
        """
        return tuple(self._crop(image, np.random.default_rng([self.seed, number, k]), name) for k in range(self.crops))

    def _crop(self, image: np.ndarray, random: np.random.Generator, name: str) -> Crop:
        side = self.size
        if self.scale > 1:
            side = int(random.integers(self.size, int(self.scale * self.size), endpoint=True))
        height, width = image.shape[:2]
        if side * math.ceil(max(height, width) * side / min(height, width)) > MAX_PIXELS:
            raise ImageError(
                f"{printable(name)}: expected at most {MAX_PIXELS} pixels after the resize to {side}, found sides "
                f"{height} x {width}"
            )
        resized = resize_shorter_side(image, side, Image.Resampling.BILINEAR)
        free = resized.shape[0] - self.size, resized.shape[1] - self.size
        if self.rule == "centre":
            top, left = free[0] // 2, free[1] // 2
        else:
            top, left = (int(random.integers(0, n, endpoint=True)) for n in free)
        pixels = resized[top : top + self.size, left : left + self.size]
        return Crop(np.ascontiguousarray(pixels), (resized.shape[0], resized.shape[1]), top, left)
