"""Evaluation protocols: which pixels of which images a number is about, such that others get the same number.

Shapes: H x W pixels of an image, S side of a square crop, B crops of one size.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ..data.images import MAX_PIXELS, ImageError, printable
from ..data.loader import Skipped, start_worker
from ..data.sources import ImageSource
from ..data.transforms import centre_crop
from ..processes import usable_cores

Progress = Callable[[Iterable[Any], int], Iterable[Any]]
"""Shows how far the work is: gets the items and their number, gives the items."""


def silent(items: Iterable[Any], total: int) -> Iterable[Any]:
    """Show nothing."""
    return items


# ---- from an image to a square ---------------------------------------------------------------------------------------


def torchvision_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Return what torchvision's ``Resize(S)`` (bilinear, antialiased) and ``CenterCrop(S)`` make of a PIL image."""
    height, width = image.shape[:2]
    longer = int(size * max(height, width) / min(height, width))
    new = (size, longer) if width <= height else (longer, size)
    resized = np.asarray(Image.fromarray(image).resize(new, Image.Resampling.BILINEAR))
    top, left = (round((side - size) / 2) for side in resized.shape[:2])
    return resized[top : top + size, left : left + size]


def adm_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Return the centre crop of guided-diffusion (Dhariwal and Nichol 2021): halved by box, then bicubic to S."""
    picture = Image.fromarray(image)
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    resized = np.asarray(picture)
    top, left = ((side - size) // 2 for side in resized.shape[:2])
    return resized[top : top + size, left : left + size]


@dataclass(frozen=True)
class Rule:
    """How crops are made. words: of the crop, and of what becomes of images smaller than it.

    square: a function of image and S, where the rule resizes to one square.
    """

    crop: str
    small: str
    square: Callable[[np.ndarray, int], np.ndarray] | None = None


_ENLARGED = "enlarged by the same filter, and counted; skipped where the longer side would be out of bounds"
_REFUSED = "skipped if a side is below {size} pixels: nothing is enlarged"

RULES = {
    "centre": Rule(
        "shorter side resized to {size} pixels (Pillow, bilinear, antialiased), then the middle {size} x {size}",
        _ENLARGED,
        centre_crop,
    ),
    "torchvision": Rule(
        "torchvision's Resize({size}), bilinear and antialiased, on the Pillow image, then CenterCrop({size})",
        _ENLARGED,
        torchvision_crop,
    ),
    "adm": Rule(
        "guided-diffusion's centre crop: halved by Pillow's box filter while twice as large, bicubic to a shorter side "
        "of {size} pixels, then the middle {size} x {size}",
        _ENLARGED,
        adm_crop,
    ),
    "random": Rule(
        "{crops} crops of {size} x {size} pixels an image, not resized, places uniform from (seed {seed}, index of "
        "the image, number of the crop)",
        _REFUSED,
    ),
    "native": Rule("the whole image, not resized, its middle cut to multiples of {size} pixels", _REFUSED),
    "exact": Rule("the images as they are, {size} x {size} pixels", "skipped, as is every image of another size"),
    "whole": Rule("the images as they are, of any size", "used as they are"),
}


@dataclass(frozen=True)
class Protocol:
    """One way to evaluate, under a name that stands for all of its choices. ``describe`` spells them out.

    Attributes:
        name: stands for every choice: a change of any is a new name.
        rule: one of ``RULES``.
        size: S, side of the crops in pixels; for ``native`` the number that both sides are cut to a multiple of.
        crops: crops an image; more than one for ``random`` alone.
        seed: of all that is random: the places of crops, the noise of decoders.
        compares_with: whose numbers, published or yours, are of the same pixels.

    Raises:
        ValueError: numbers below 1, or several crops of an image by a rule that has only one.
    """

    name: str
    rule: str
    size: int
    crops: int = 1
    seed: int = 0
    compares_with: str = ""

    def __post_init__(self) -> None:
        if min(self.size, self.crops) < 1 or (self.crops > 1 and self.rule != "random"):
            raise ValueError(f"expected sizes and numbers from 1, several crops for random ones alone, found {self}")

    @property
    def square(self) -> bool:
        """Whether all crops are S x S."""
        return self.rule not in ("native", "whole")

    def number(self, key: "CropKey") -> int:
        """Return a crop's number in the whole set, whatever was skipped: the noise of its decoding is drawn by it."""
        return key.image * self.crops + key.crop

    def describe(self) -> dict[str, Any]:
        """Return every choice in words, for tables and JSON."""
        rule = RULES[self.rule]
        return {
            "protocol": self.name,
            "crop": rule.crop.format(size=self.size, crops=self.crops, seed=self.seed),
            "crop_size": self.size if self.square else None,
            "crops_per_image": self.crops,
            "small_images": rule.small.format(size=self.size),
            **({"compares_with": self.compares_with} if self.compares_with else {}),
            "image_order": "the source's: paths as given, names sorted within a folder",
            "colour": "RGB of the file, upright by EXIF, transparency on white, colour profiles ignored",
            "rounding": "reconstructions clamped to [-1, 1] and rounded to the nearest of 256 levels",
            "reference": "the same crops of the originals, 8 bits",
            "posterior": "mode",
            "seed": self.seed,
            "statistics_dtype": "float64",
        }


PROTOCOLS: dict[str, Protocol] = {
    p.name: p
    for p in (
        Protocol("paper-128-v1", "centre", 128, compares_with="the SSDD paper's rule, as it describes it"),
        Protocol("paper-256-v1", "centre", 256, compares_with="the SSDD paper's rule, as it describes it"),
        Protocol("paper-512-v1", "centre", 512, compares_with="the SSDD paper's rule, as it describes it"),
        Protocol(
            "torchvision-256",
            "torchvision",
            256,
            compares_with="evaluations by torchvision's transforms, among them most of AutoencoderKL on ImageNet",
        ),
        Protocol(
            "adm-256",
            "adm",
            256,
            compares_with="guided-diffusion, DiT, SiT, LightningDiT, REPA: their reference batches and training crops",
        ),
        Protocol("dcae-in512", "adm", 512, compares_with="DC-AE's tables on ImageNet at 512 pixels (DMCrop)"),
        Protocol(
            "omnidoc-256",
            "exact",
            256,
            compares_with="OmniDoc-TokenBench, 3,042 images; published FLUX.1-dev: PSNR 26.2377, SSIM 0.9364, "
            "LPIPS-VGG 0.0247, FID 0.5543",
        ),
        # 32: every autoencoder up to f32 gets the same pixels, and pads none.
        Protocol("native-v1", "native", 32),
        Protocol("crops-128-v1", "random", 128, crops=8),
        Protocol("crops-256-v1", "random", 256, crops=8),
        Protocol("as-is", "whole", 1),
    )
}


def get_protocol(name: str) -> Protocol:
    """Return the protocol of that name. Raises ValueError, which lists all, if there is none."""
    if name not in PROTOCOLS:
        raise ValueError(f"expected a protocol ({', '.join(PROTOCOLS)}), found {name!r}")
    return PROTOCOLS[name]


# ---- the set ---------------------------------------------------------------------------------------------------------


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
        """Return the crops, or why there are none: a broken file, or too small for the protocol's rule."""
        name = self.source.name(index)
        try:
            image = self.source.read(index)
        except ImageError as error:
            return Skipped(name, str(error))
        if reason := self.refusal(image):
            return Skipped(name, f"{printable(name)}: {reason}")
        rule = RULES[self.protocol.rule]
        enlarged = rule.square is not None and min(image.shape[:2]) < self.protocol.size
        found = enumerate(crop.copy() for crop in self.crops(image, index))  # contiguous, writable
        return EvaluationItem(tuple(EvaluationCrop(CropKey(index, k, name), c, _digest(c)) for k, c in found), enlarged)

    def refusal(self, image: np.ndarray) -> str | None:
        """Return why the rule has no crop of the image uint8 (H, W, 3); None if it has."""
        size, (height, width) = self.protocol.size, image.shape[:2]
        shorter, longer = min(height, width), max(height, width)
        if RULES[self.protocol.rule].square is None:
            if self.protocol.rule == "exact" and (height, width) != (size, size):
                return f"expected {size} x {size} pixels for {self.protocol.name}, found {height} x {width}"
            expected = f"expected sides of at least {size} pixels, as {self.protocol.name} enlarges nothing"
            return f"{expected}, found {height} x {width}" if shorter < size else None
        if size * math.ceil(longer * size / shorter) > MAX_PIXELS:
            return f"expected at most {MAX_PIXELS} pixels after the resize to {size}, found sides {height} x {width}"
        return None

    def crops(self, image: np.ndarray, index: int) -> Iterator[np.ndarray]:
        """Yield the crops of the image of that index, views or copies."""
        size, (height, width) = self.protocol.size, image.shape[:2]
        if (square := RULES[self.protocol.rule].square) is not None:
            yield square(image, size)
        elif self.protocol.rule == "random":
            for k in range(self.protocol.crops):
                random = np.random.default_rng([self.protocol.seed, index, k])
                top = int(random.integers(0, height - size, endpoint=True))
                left = int(random.integers(0, width - size, endpoint=True))
                yield image[top : top + size, left : left + size]
        else:
            rows, columns = height - height % size, width - width % size
            top, left = (height - rows) // 2, (width - columns) // 2
            yield image[top : top + rows, left : left + columns]


def _digest(pixels: np.ndarray) -> bytes:
    shape = np.array(pixels.shape[:2], "<u8").tobytes()  # else 2 x 8 pixels could pass for 4 x 4
    return hashlib.sha256(shape + pixels.tobytes()).digest()


def read_items(
    evaluation_set: EvaluationSet, workers: int = 0, indices: Iterable[int] | None = None
) -> Iterator[tuple[int, EvaluationItem | Skipped]]:
    """Yield index and item of the whole set in its order, or of the given indices (a process' share) in theirs.

    workers: processes that read and crop, no more than cores; 0 does it in this one.
    """
    workers = min(workers, usable_cores())
    order = list(range(len(evaluation_set)) if indices is None else indices)
    options: dict[str, Any] = {"batch_size": None, "collate_fn": _as_it_is, "worker_init_fn": start_worker}
    yield from zip(order, DataLoader(evaluation_set, sampler=order, num_workers=workers, **options), strict=True)


def _as_it_is(item: Any) -> Any:
    return item


def crop_batches(
    evaluation_set: EvaluationSet,
    census: "Census",
    batch_size: int,
    workers: int,
    progress: Progress = silent,
    indices: Sequence[int] | None = None,
) -> Iterator[list[EvaluationCrop]]:
    """Yield crops in the set's order, those of one size that follow one another up to ``batch_size`` at a time.

    Args:
        evaluation_set: where they come from.
        census: counts every image, the skipped ones too.
        batch_size: B at most.
        workers: processes that read and crop; 0 does it in this one.
        progress: goes round the images.
        indices: of the images; all by default.
    """
    total = len(evaluation_set) if indices is None else len(indices)

    def crops() -> Iterator[EvaluationCrop]:
        for index, item in progress(read_items(evaluation_set, workers, indices), total):
            census.add(index, item)
            if not isinstance(item, Skipped):
                yield from item.crops

    for _, group in groupby(crops(), key=lambda crop: crop.pixels.shape):
        batch: list[EvaluationCrop] = []
        for crop in group:
            batch.append(crop)
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch:
            yield batch


def draw_images(images: int, limit: int | None, seed: int) -> list[int] | None:
    """Return the indices of at most ``limit`` images, drawn by the seed and sorted; None for all of them.

    The first ones of a folder are often all of one kind. Raises ValueError for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"expected a limit of at least 1 image, found {limit}")
    if limit is None or limit >= images:
        return None
    return sorted(np.random.default_rng([seed, images]).permutation(images)[:limit].tolist())


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
        """Return the sha256, in hexadecimal, of the crops' digests in order: equal if and only if all pixels are.

        The digests stand for the pixels so that processes that saw a part each can put it together.
        """
        return hashlib.sha256(b"".join(d for i in sorted(self._digests) for d in self._digests[i])).hexdigest()

    def check_used(self) -> None:
        """Raise ValueError, with the first reason, if no image could be used."""
        if not self._digests:
            reason = self.skipped[0].reason if self._skipped else "the data are empty"
            raise ValueError(f"expected usable images, found none: {len(self._skipped)} skipped; {reason}")

    def describe(self) -> dict[str, Any]:
        """Return counts and the fingerprint, for tables and JSON."""
        return {
            "images": len(self._digests),
            "crops": sum(map(len, self._digests.values())),
            "enlarged_images": len(self._enlarged),
            "skipped_images": len(self._skipped),
            "fingerprint": self.fingerprint(),
            "skipped": [s.reason for s in self.skipped],
        }
