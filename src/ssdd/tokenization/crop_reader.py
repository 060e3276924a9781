"""The crops of many images in order, read ahead by other processes.

Shapes: S side of a crop.
"""

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset

from ..data.images import ImageError, ImageReadError, printable
from ..data.loader import start_worker
from .crops import Crop, CropProtocol
from .format import SkippedImage
from .plan import OpenJob
from .source import LabelledSource


class CroppedImage(NamedTuple):
    """An image's number, the sides of the photograph, and its crops."""

    image: int
    height: int
    width: int
    crops: tuple[Crop, ...]


class UnreadImage(NamedTuple):
    """An image that was listed and cannot be read now, through no fault of its own: to skip it would be for ever.

    line: what was expected and found, and what to do.
    """

    image: int
    line: str


class UnreadImageError(OSError):
    """See ``UnreadImage``; its line."""


_AGAIN = "run the same command again"
Item = CroppedImage | SkippedImage | UnreadImage


class CropReader(Dataset[Item]):
    """Maps an image's number to its crops, or to why there are none."""

    def __init__(self, source: LabelledSource, protocol: CropProtocol) -> None:
        self.source, self.protocol = source, protocol

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, image: int) -> Item:
        name = printable(self.source.full_name(image))
        try:
            pixels = self.source.read(image)
            crops = self.protocol.cut(pixels, image, self.source.full_name(image))
        except ImageError as error:
            if self.source.is_gone(image):
                line = f"{name}: expected the image that was listed, found none: put the data back and {_AGAIN}"
                return UnreadImage(image, line)
            if isinstance(error, ImageReadError):
                return UnreadImage(image, f"{error}: when it can be read, {_AGAIN}")
            return SkippedImage(image, self.source.name(image), str(error))
        except MemoryError:
            line = f"{name}: expected memory for this image, found too little: free some, or pass fewer --workers, and "
            return UnreadImage(image, line + _AGAIN)
        return CroppedImage(image, pixels.shape[0], pixels.shape[1], crops)


def read_images(job: OpenJob, images: Iterable[int], workers: int = 0) -> Iterator[Item]:
    """The items of these images in their order, read and cropped ahead by ``workers`` processes (0: by this one).

    ``images`` is gone through once, as far ahead as images are read.
    """
    options: dict[str, Any] = {"batch_size": None, "collate_fn": _unchanged, "worker_init_fn": start_worker}
    reader = CropReader(job.source, job.job.protocol)
    with _frozen() if workers else nullcontext():
        yield from DataLoader(reader, sampler=images, num_workers=workers, **options)


@contextmanager
def _frozen() -> Iterator[None]:
    """Forked processes share memory until one writes to it, which a garbage collection does: it leaves these be."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _unchanged(item: Any) -> Any:
    return item
