"""Evaluation protocols: which pixels of which images a number is about, such that others get the same number.

Shapes: H x W pixels of an image, S side of a square crop, B crops of one size.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional as transforms

from ..data.images import COLOUR, MAX_PIXELS, ImageError, printable
from ..data.loader import Skipped, start_worker
from ..data.sources import ImageSource
from ..data.transforms import centre_crop
from ..runtime.processes import usable_cores

Progress = Callable[[Iterable[Any], int], Iterable[Any]]
"""Shows how far the work is: gets the items and their number, gives the items."""


def silent(items: Iterable[Any], total: int) -> Iterable[Any]:
    """Show nothing."""
    return items


# ---- from an image to a square ---------------------------------------------------------------------------------------


def torchvision_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Return what torchvision's ``Resize(S)`` (bilinear, antialiased) and ``CenterCrop(S)`` make of a PIL image."""
    resized = transforms.resize(Image.fromarray(image), [size])
    return np.asarray(transforms.center_crop(resized, [size]))


def adm_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Return the centre crop of guided-diffusion (Dhariwal and Nichol 2021): halved by box, then bicubic to S."""
    picture = Image.fromarray(image)
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return np.asarray(picture.crop((left, top, left + size, top + size)))


@dataclass(frozen=True)
class Rule:
    """How crops are made.

    Attributes:
        crop: the rule in words.
        small: what becomes of images that are smaller than the crop, in words.
        square: function of an image and S, where the rule resizes to one square.
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
    """One way to evaluate; ``describe`` spells out its choices.

    Attributes:
        name: stands for every choice: a change of any is a new name.
        rule: one of ``RULES``.
        size: S, side of the crops in pixels; for ``native`` the number that both sides are cut to a multiple of.
        crops: crops an image; more than one for ``random`` alone.
        seed: seed of the places of crops and of the noise of decoders.
        compares_with: whose numbers are of the same pixels.
    """

    name: str
    rule: str
    size: int
    crops: int = 1
    seed: int = 0
    compares_with: str = ""

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
            "colour": COLOUR,
            "rounding": "reconstructions clamped to [-1, 1] and rounded to the nearest of 256 levels",
            "reference": "the same crops of the originals, 8 bits",
            "posterior": "mode",
            "seed": self.seed,
            "statistics_dtype": "float64",
        }


_PAPER = "the SSDD paper's rule, as it describes it"
_TORCHVISION = "evaluations by torchvision's transforms, among them most of AutoencoderKL on ImageNet"
_ADM = "guided-diffusion, DiT, SiT, LightningDiT, REPA: their reference batches and training crops"
_OMNIDOC = (
    "OmniDoc-TokenBench, 3,042 images; published FLUX.1-dev: PSNR 26.2377, SSIM 0.9364, LPIPS-VGG 0.0247, FID 0.5543"
)

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        *(Protocol(f"paper-{side}-v1", "centre", side, compares_with=_PAPER) for side in (128, 256, 512)),
        Protocol("torchvision-256", "torchvision", 256, compares_with=_TORCHVISION),
        Protocol("adm-256", "adm", 256, compares_with=_ADM),
        Protocol("dcae-in512", "adm", 512, compares_with="DC-AE's tables on ImageNet at 512 pixels (DMCrop)"),
        Protocol("omnidoc-256", "exact", 256, compares_with=_OMNIDOC),
        # 32: every autoencoder up to f32 gets the same pixels, and pads none.
        Protocol("native-v1", "native", 32),
        *(Protocol(f"crops-{side}-v1", "random", side, crops=8) for side in (64, 128, 256)),
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
        crops = []
        for k, view in enumerate(self.crops(image, index)):
            pixels = view.copy()  # contiguous, and writable
            crops.append(EvaluationCrop(CropKey(index, k, name), pixels, _digest(pixels)))
        resized = RULES[self.protocol.rule].square is not None
        return EvaluationItem(tuple(crops), enlarged=resized and min(image.shape[:2]) < self.protocol.size)

    def refusal(self, image: np.ndarray) -> str | None:
        """Return why the rule has no crop of the image uint8 (H, W, 3); None if it has."""
        protocol, (height, width) = self.protocol, image.shape[:2]
        size, shorter, longer = protocol.size, min(height, width), max(height, width)
        if RULES[protocol.rule].square is not None:
            if size * math.ceil(longer * size / shorter) <= MAX_PIXELS:
                return None
            return f"expected at most {MAX_PIXELS} pixels after the resize to {size}, found sides {height} x {width}"
        if protocol.rule == "exact" and (height, width) != (size, size):
            return f"expected {size} x {size} pixels for {protocol.name}, found {height} x {width}"
        if shorter < size:
            expected = f"sides of at least {size} pixels, as {protocol.name} enlarges nothing"
            return f"expected {expected}, found {height} x {width}"
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
    evaluation_set: EvaluationSet, workers: int = 0, indices: Sequence[int] | None = None
) -> Iterator[tuple[int, EvaluationItem | Skipped]]:
    """Yield index and item of the whole set in its order, or of the given indices in theirs.

    Args:
        evaluation_set: where they come from.
        workers: processes that read and crop, no more than cores; 0 does it in this one.
        indices: indices of the images, by default all.
    """
    order = range(len(evaluation_set)) if indices is None else indices
    loader = DataLoader(
        evaluation_set,
        sampler=order,
        num_workers=min(workers, usable_cores()),
        batch_size=None,
        collate_fn=_as_it_is,
        worker_init_fn=start_worker,
    )
    yield from zip(order, loader, strict=True)


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
        indices: indices of the images; all by default.
    """

    def crops() -> Iterator[EvaluationCrop]:
        total = len(evaluation_set) if indices is None else len(indices)
        for index, item in progress(read_items(evaluation_set, workers, indices), total):
            census.add(index, item)
            if not isinstance(item, Skipped):
                yield from item.crops

    for _, group in groupby(crops(), key=lambda crop: crop.pixels.shape):
        while batch := list(islice(group, batch_size)):
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
        """Return the sha256 of the crops' digests in order, so that processes that saw a part each can join theirs."""
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
