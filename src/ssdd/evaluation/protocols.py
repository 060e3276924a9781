"""Evaluation protocols: which pixels of which images a number is about, such that others get the same number.

Shapes: H x W pixels of an image, S side of a square crop.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset

from ..data.images import MAX_PIXELS, ImageError, printable
from ..data.loader import Skipped, start_worker
from ..data.sources import ImageSource
from ..data.transforms import centre_crop

CropRule = Literal["centre", "random", "native"]


@dataclass(frozen=True)
class Protocol:
    """One way to evaluate, under a name that stands for all of its choices. ``describe`` spells them out.

    Attributes:
        name: ends in a version: a change of any choice is a new name.
        rule: ``centre``: the shorter side resized to S, then the middle. ``random``: crops at native resolution.
            ``native``: the whole image, cut to a multiple.
        size: S, side of the crops in pixels; for ``native`` the number that both sides are cut to a multiple of.
        crops: crops an image; more than one for ``random`` alone.
        seed: of all that is random: the places of crops, a sampled posterior.
        posterior: what the decoder gets of the encoder's posterior.

    Raises:
        ValueError: numbers below 1, or several crops of an image by a rule that has only one.
    """

    name: str
    rule: CropRule
    size: int
    crops: int = 1
    seed: int = 0
    posterior: Literal["mode", "sample"] = "mode"

    def __post_init__(self) -> None:
        if min(self.size, self.crops) < 1 or (self.crops > 1 and self.rule != "random"):
            raise ValueError(f"expected sizes and numbers from 1, several crops for random ones alone, found {self}")

    def number(self, key: "CropKey") -> int:
        """Of a crop in the whole set, whatever was skipped: the noise of its decoding is drawn by it."""
        return key.image * self.crops + key.crop

    def describe(self) -> dict[str, Any]:
        """Every choice in words, for tables and JSON."""
        crop, small = _IN_WORDS[self.rule]
        return {
            "protocol": self.name,
            "crop": crop.format(size=self.size, crops=self.crops, seed=self.seed),
            "crop_size": None if self.rule == "native" else self.size,
            "crops_per_image": self.crops,
            "small_images": small.format(size=self.size),
            "image_order": "the source's: paths as given, names sorted within a folder",
            "colour": "RGB of the file, upright by EXIF, transparency on white, colour profiles ignored",
            "rounding": "reconstructions clamped to [-1, 1] and rounded to the nearest of 256 levels",
            "reference": "the same crops of the originals, 8 bits",
            "posterior": self.posterior,
            "seed": self.seed,
            "statistics_dtype": "float64",
        }


_IN_WORDS: dict[CropRule, tuple[str, str]] = {
    "centre": (
        "shorter side resized to {size} pixels (Pillow, bilinear, antialiased), then the middle {size} x {size}",
        "enlarged by the same filter, and counted; skipped where the longer side would be out of bounds",
    ),
    "random": (
        "{crops} crops of {size} x {size} pixels an image, not resized, places uniform from (seed {seed}, index of "
        "the image, number of the crop)",
        "skipped if a side is below {size} pixels: nothing is enlarged",
    ),
    "native": (
        "the whole image, not resized, its middle cut to multiples of {size} pixels",
        "skipped if a side is below {size} pixels: nothing is enlarged",
    ),
}

PROTOCOLS: dict[str, Protocol] = {
    p.name: p
    for p in (
        Protocol("paper-128-v1", "centre", 128),
        Protocol("paper-256-v1", "centre", 256),
        Protocol("paper-512-v1", "centre", 512),
        # 32: every autoencoder up to f32 gets the same pixels, and pads none.
        Protocol("native-v1", "native", 32),
        Protocol("crops-128-v1", "random", 128, crops=8),
        Protocol("crops-256-v1", "random", 256, crops=8),
    )
}


def get_protocol(name: str) -> Protocol:
    """The protocol of that name. Raises ValueError, which lists all, if there is none."""
    if name not in PROTOCOLS:
        raise ValueError(f"expected a protocol ({', '.join(PROTOCOLS)}), found {name!r}")
    return PROTOCOLS[name]


class CropKey(NamedTuple):
    """Which crop of which image of a set (both from 0): keys sort in the set's order."""

    image: int
    crop: int
    name: str

    def __str__(self) -> str:
        return f"{printable(self.name)}#{self.crop}"


class EvaluationCrop(NamedTuple):
    """uint8 (H, W, 3) with its key. ``digest``: sha256 of height, width (8 bytes each, little-endian) and pixels."""

    key: CropKey
    pixels: np.ndarray
    digest: bytes


class EvaluationItem(NamedTuple):
    """The crops of one image, and whether it was enlarged for them."""

    crops: tuple[EvaluationCrop, ...]
    enlarged: bool


class EvaluationSet(Dataset[EvaluationItem | Skipped]):
    """Maps an image's index to its crops: a function of (protocol, source, index) alone."""

    def __init__(self, source: ImageSource, protocol: Protocol) -> None:
        self.source = source
        self.protocol = protocol

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> EvaluationItem | Skipped:
        """The crops, or why there are none: a broken file, or too small for the protocol's rule."""
        name = self.source.name(index)
        try:
            image = self.source.read(index)
        except ImageError as error:
            return Skipped(name, str(error))
        if reason := self._refusal(image):
            return Skipped(name, f"{printable(name)}: {reason}")
        enlarged = self.protocol.rule == "centre" and min(image.shape[:2]) < self.protocol.size
        found = enumerate(crop.copy() for crop in self._crops(image, index))  # contiguous, writable
        return EvaluationItem(tuple(EvaluationCrop(CropKey(index, k, name), c, _digest(c)) for k, c in found), enlarged)

    def _refusal(self, image: np.ndarray) -> str | None:
        """Why the rule has no crop of the image uint8 (H, W, 3); None if it has."""
        size, (height, width) = self.protocol.size, image.shape[:2]
        shorter, longer = min(height, width), max(height, width)
        if self.protocol.rule != "centre":
            expected = f"expected sides of at least {size} pixels, as {self.protocol.name} enlarges nothing"
            return f"{expected}, found {height} x {width}" if shorter < size else None
        if size * math.ceil(longer * size / shorter) > MAX_PIXELS:
            return f"expected at most {MAX_PIXELS} pixels after the resize to {size}, found sides {height} x {width}"
        return None

    def _crops(self, image: np.ndarray, index: int) -> Iterator[np.ndarray]:
        size, (height, width) = self.protocol.size, image.shape[:2]
        if self.protocol.rule == "centre":
            yield centre_crop(image, size)
        elif self.protocol.rule == "native":
            rows, columns = height - height % size, width - width % size
            top, left = (height - rows) // 2, (width - columns) // 2
            yield image[top : top + rows, left : left + columns]
        else:
            for k in range(self.protocol.crops):
                random = np.random.default_rng([self.protocol.seed, index, k])
                top = int(random.integers(0, height - size, endpoint=True))
                left = int(random.integers(0, width - size, endpoint=True))
                yield image[top : top + size, left : left + size]


def _digest(pixels: np.ndarray) -> bytes:
    shape = np.array(pixels.shape[:2], "<u8").tobytes()  # else 2 x 8 pixels could pass for 4 x 4
    return hashlib.sha256(shape + pixels.tobytes()).digest()


def read_items(
    evaluation_set: EvaluationSet, workers: int = 0, indices: Iterable[int] | None = None
) -> Iterator[tuple[int, EvaluationItem | Skipped]]:
    """Index and item of the whole set in its order, or of the given indices (a process' share) in theirs.

    workers: processes that read and crop; 0 does it in this one.
    """
    order = list(range(len(evaluation_set)) if indices is None else indices)
    options: dict[str, Any] = {"batch_size": None, "collate_fn": _unchanged, "worker_init_fn": start_worker}
    yield from zip(order, DataLoader(evaluation_set, sampler=order, num_workers=workers, **options), strict=True)


def _unchanged(item: Any) -> Any:
    return item


class Census:
    """What a pass over a set met, in the set's order whatever the order of arrival: to be reported with its numbers."""

    def __init__(self) -> None:
        self._skipped: dict[int, Skipped] = {}
        self._digests: dict[int, tuple[bytes, ...]] = {}
        self._enlarged: set[int] = set()

    def add(self, index: int, item: EvaluationItem | Skipped) -> None:
        """Count the item of an image; a second time changes nothing."""
        if isinstance(item, Skipped):
            self._skipped[index] = item
            return
        self._digests[index] = tuple(crop.digest for crop in item.crops)
        if item.enlarged:
            self._enlarged.add(index)

    def merge(self, other: "Census") -> None:
        """Take in what another process met."""
        self._skipped.update(other._skipped)
        self._digests.update(other._digests)
        self._enlarged.update(other._enlarged)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        return tuple(self._skipped[i] for i in sorted(self._skipped))

    def fingerprint(self) -> str:
        """sha256, in hexadecimal, of the crops' digests in order: equal if and only if all pixels are.

        The digests stand for the pixels so that processes that saw a part each can put it together.
        """
        return hashlib.sha256(b"".join(d for i in sorted(self._digests) for d in self._digests[i])).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Counts and the fingerprint, for tables and JSON."""
        return {
            "images": len(self._digests),
            "crops": sum(map(len, self._digests.values())),
            "enlarged_images": len(self._enlarged),
            "skipped_images": len(self._skipped),
            "fingerprint": self.fingerprint(),
        }
