"""Reading every image of a source once: what is there, what is broken, what is there twice."""

import hashlib
import io
from array import array
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from .images import ImageError, read_header, read_image
from .loader import start_worker
from .sources import ImageSource

THUMBNAIL = 160  # longer side in pixels
_CHUNK = 16  # images that a worker sends together


@dataclass(frozen=True)
class Inspection:
    """What one image is."""

    index: int
    size: int = 0
    """Bytes of the encoded image."""
    digest: int = 0
    """64 bits of a hash of these bytes: among a million different images, two agree with a chance of 3e-8."""
    height: int = 0
    width: int = 0
    """As a viewer shows it, in pixels."""
    kind: str = ""
    """Format and mode by Pillow's names, as in ``JPEG RGB``."""
    thumbnail: np.ndarray | None = None
    """uint8 (h, w, 3), where it was asked for."""
    broken: str | None = None
    """One line with the image's name and the reason if it cannot be read. Then only ``index`` counts besides."""


def inspect(source: ImageSource, workers: int = 0, thumbnails: Collection[int] = ()) -> Iterator[Inspection]:
    """Yield what each image of the source is, read by ``workers`` processes (0: by this one).

    Args:
        source: The images, only a few of which are in memory at a time.
        workers: Processes that read. Raises ValueError for less than 0.
        thumbnails: Indices of the images that a thumbnail is made of.
    """
    loader = DataLoader(
        _Inspector(source, frozenset(thumbnails)),
        batch_size=_CHUNK,
        num_workers=workers,
        worker_init_fn=start_worker,
        collate_fn=list,  # PyTorch's own would make tensors of arrays
    )
    for chunk in loader:
        yield from chunk


class _Inspector(Dataset[Inspection]):
    def __init__(self, source: ImageSource, thumbnails: frozenset[int]) -> None:
        self.source, self.thumbnails = source, thumbnails

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Inspection:
        name = self.source.name(index)
        try:
            content = self.source.content(index)
            image = read_image(io.BytesIO(content), name=name)
        except ImageError as error:
            return Inspection(index, broken=str(error))
        except MemoryError:
            return Inspection(index, broken=f"{name}: expected an image that fits memory, found a larger one")
        header = read_header(content, name=name)
        digest = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
        height, width = image.shape[:2]
        small = _thumbnail(image) if index in self.thumbnails else None
        return Inspection(index, len(content), digest, height, width, f"{header.kind} {header.mode}", small)


def _thumbnail(image: np.ndarray) -> np.ndarray:
    small = Image.fromarray(image)
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return np.asarray(small)


@dataclass
class Summary:
    """What ``inspect`` has found, in some 30 bytes an image."""

    broken: list[str] = field(default_factory=list)
    """A line for each image that cannot be read."""
    kinds: Counter[str] = field(default_factory=Counter)
    total_bytes: int = 0
    _indices: array = field(default_factory=lambda: array("q"))
    _digests: array = field(default_factory=lambda: array("Q"))
    _heights: array = field(default_factory=lambda: array("l"))
    _widths: array = field(default_factory=lambda: array("l"))

    def add(self, found: Inspection) -> None:
        if found.broken is not None:
            self.broken.append(found.broken)
            return
        self.kinds[found.kind] += 1
        self.total_bytes += found.size
        self._indices.append(found.index)
        self._digests.append(found.digest)
        self._heights.append(found.height)
        self._widths.append(found.width)

    @property
    def readable(self) -> int:
        return len(self._indices)

    def shorter_sides(self) -> np.ndarray:
        """Return int (readable images), in pixels."""
        return np.minimum(self._heights, self._widths)

    def aspect_ratios(self) -> np.ndarray:
        """Return width / height, float (readable images)."""
        return np.divide(self._widths, self._heights)

    def duplicates(self) -> list[tuple[int, int]]:
        """Return the index of each image whose bytes are those of an earlier one, with the index of the first such."""
        _, first, group = np.unique(np.array(self._digests, np.uint64), return_index=True, return_inverse=True)
        earliest = first[group]
        again = np.flatnonzero(earliest != np.arange(len(group)))
        return [(self._indices[i], self._indices[earliest[i]]) for i in again]
