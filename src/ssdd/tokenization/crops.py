"""From a photograph to the square crops that are encoded, each with its place in the photograph.

Shapes: H x W pixels of the photograph, H' x W' of the resized one, S side of a crop.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from ..data.images import COLOUR
from ..data.transforms import resized_sides, resized_window

CropRule = Literal["centre", "random"]


class Crop(NamedTuple):
    """uint8 (h, w, 3), a square or a bucket, cut at (top, left) out of the photograph resized to ``resized``."""

    pixels: np.ndarray
    resized: tuple[int, int]
    top: int
    left: int


@dataclass(frozen=True)
class CropProtocol:
    """Which crops of an image are encoded: a function of (protocol, number of the image) alone.

    Attributes:
        rule: With ``centre`` the shorter side is resized to S (bilinear, antialiased), then the middle is cut: the crop
            of the evaluation protocols paper-S. With ``random`` the shorter side is resized to U{S .. scale * S} by the
            same filter, then a place is drawn from (seed, image, crop).
        size: S, in pixels.
        crops: Crops of an image; more than one for ``random`` alone.
        scale: At least 1; above 1 for ``random`` alone.
        seed: Seed of all that is random.
        flips: Whether each crop is stored mirrored too, as a latent of its own.
        bucket_step: With the rule ``centre``: crops are not square but of the shape, with sides that are multiples of
            this and an area of at most S x S, that is nearest to the photograph's aspect ratio; None for squares.

    Raises:
        ValueError: Numbers out of range, or several crops by a rule that has only one.
    """

    rule: CropRule = "centre"
    size: int = 256
    crops: int = 1
    scale: float = 1.0
    seed: int = 0
    flips: bool = False
    bucket_step: int | None = None

    def __post_init__(self) -> None:
        if not (1 <= self.size <= 1 << 14 and 1 <= self.crops <= 1000 and 1 <= self.scale <= 16 and self.seed >= 0):
            raise ValueError(
                "expected a size from 1 to 16384, 1 to 1000 crops, a scale from 1 to 16 and a seed from 0, found "
                f"{self.size}, {self.crops}, {self.scale:g}, {self.seed}"
            )
        if self.rule == "centre" and (self.crops > 1 or self.scale != 1):
            raise ValueError("expected one crop at scale 1 by the rule centre: pass --crop random for others")
        if self.bucket_step is not None and (self.rule == "random" or not 1 <= self.bucket_step <= self.size // 2):
            raise ValueError(
                f"expected buckets with the rule centre and a step of at most half their size, found {self.rule} and "
                f"{self.size}:{self.bucket_step}"
            )

    def describe(self) -> dict[str, Any]:
        """Return every choice, for the manifest."""
        words = "middle" if self.rule == "centre" else "place uniform from (seed, image, crop)"
        resize = "shorter side to size" if self.scale == 1 else "shorter side uniform from size to scale * size"
        if self.bucket_step is not None:
            resize = "smallest that covers the bucket"
        return {**asdict(self), "resize": f"{resize} (Pillow, bilinear, antialiased)", "place": words, "colour": COLOUR}

    @cached_property
    def shapes(self) -> list[tuple[int, int]]:
        """Height and width of every possible crop: one square, or the buckets from wide to tall."""
        if self.bucket_step is None:
            return [(self.size, self.size)]
        step, area = self.bucket_step, self.size**2
        widths = range(step * math.ceil(self.size / 2 / step), 2 * self.size + 1, step)
        wide = {(area // width // step * step, width) for width in widths}
        return sorted(shape for shape in wide | {(w, h) for h, w in wide} if min(shape) > 0)

    def shape_of(self, height: int, width: int) -> int:
        """Return the number, in ``shapes``, of the shape that is nearest to a photograph's, by the log of the ratio."""
        ratio = math.log(height / width)
        return min(range(len(self.shapes)), key=lambda i: abs(math.log(self.shapes[i][0] / self.shapes[i][1]) - ratio))

    def cut(self, image: np.ndarray, numbers: Sequence[int]) -> tuple[Crop, ...]:
        """Return the crops of a photograph, uint8 (H, W, 3), that has these numbers in its set."""
        if self.rule == "centre":
            return (self._centre(image, self.shapes[self.shape_of(image.shape[0], image.shape[1])]),)
        return tuple(self._random(image, np.random.default_rng([self.seed, *numbers, k])) for k in range(self.crops))

    def _centre(self, image: np.ndarray, shape: tuple[int, int]) -> Crop:
        height, width = image.shape[:2]
        # The shorter side after the resize for which both sides of the crop are covered.
        side = max(math.ceil(min(height, width) * max(shape[0] / height, shape[1] / width) - 1e-9), min(shape))
        resized = resized_sides(image, side)
        return _window(image, resized, (resized[0] - shape[0]) // 2, (resized[1] - shape[1]) // 2, shape)

    def _random(self, image: np.ndarray, random: np.random.Generator) -> Crop:
        side = self.size
        if self.scale > 1:
            side = int(random.integers(self.size, int(self.scale * self.size), endpoint=True))
        resized = resized_sides(image, side)
        top, left = (int(random.integers(0, n - self.size, endpoint=True)) for n in resized)
        return _window(image, resized, top, left, (self.size, self.size))


def _window(image: np.ndarray, resized: tuple[int, int], top: int, left: int, shape: tuple[int, int]) -> Crop:
    pixels = resized_window(image, resized, top, left, shape, Image.Resampling.BILINEAR)
    return Crop(np.ascontiguousarray(pixels), resized, top, left)
