"""The crops of many images in order, read ahead by other processes.

Shapes: S side of a crop.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset

from ..data.images import ImageError, printable
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


class LostImage(NamedTuple):
    """The number and the whole name of an image that was listed and is there no more."""

    image: int
    name: str


class LostImageError(FileNotFoundError):
    """An image is there no more; one line."""


Item = CroppedImage | SkippedImage | LostImage


class CropReader(Dataset[Item]):
    """Maps an image's number to its crops, or to why there are none."""

    def __init__(self, source: LabelledSource, protocol: CropProtocol) -> None:
        self.source, self.protocol = source, protocol

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, image: int) -> Item:
        name = self.source.name(image)
        try:
            pixels = self.source.read(image)
            crops = self.protocol.cut(pixels, image, self.source.full_name(image))
        except ImageError as error:
            if self.source.is_gone(image):
                return LostImage(image, self.source.full_name(image))
            return SkippedImage(image, name, str(error))
        except MemoryError:
            return SkippedImage(image, name, f"{printable(name)}: expected an image that fits memory, found a larger")
        return CroppedImage(image, pixels.shape[0], pixels.shape[1], crops)


def read_images(job: OpenJob, images: Iterable[int], workers: int = 0) -> Iterator[Item]:
    """The items of these images in their order, read and cropped ahead by ``workers`` processes (0: by this one).

    ``images`` is gone through once, as far ahead as images are read.
    """
    options: dict[str, Any] = {"batch_size": None, "collate_fn": _unchanged, "worker_init_fn": start_worker}
    reader = CropReader(job.source, job.job.protocol)
    yield from DataLoader(reader, sampler=images, num_workers=workers, **options)


def _unchanged(item: Any) -> Any:
    return item
