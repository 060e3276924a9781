"""Where images come from: folders, tar files and Hugging Face data sets, read by index."""

import fnmatch
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from .find import check_left_out
from .folder import FolderSource
from .hugging_face import PREFIX, HuggingFaceSource, is_saved_dataset, streaming_path
from .images import ImageError, printable
from .npz import NpzSource
from .tar import TarSource

__all__ = ["ConcatSource", "FolderSource", "HuggingFaceSource", "ImageSource", "NpzSource", "TarSource", "open_source"]


class ImageSource(Protocol):
    """A fixed list of images: ``len``, ``name(i)``, ``key(i)``, ``content(i)``, and ``read(i)`` -> uint8 (H, W, 3).

    ``key(i)`` is its name within the folder or file, wherever that lies.
    ``content(i)`` is the encoded image, as in its file. It and ``read(i)`` raise ImageError for an image that cannot
    be read. A source can be sent to another process, forked or spawned.
    """

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def key(self, index: int) -> str: ...

    def content(self, index: int) -> bytes: ...

    def read(self, index: int) -> np.ndarray: ...


class ConcatSource:
    """Several sources one after the other."""

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        self.sources = list(sources)
        self._ends = np.cumsum([len(s) for s in self.sources])

    @property
    def left_out(self) -> Counter[str]:
        """Other files beside the images of folders and tar files, by their extension."""
        known = [s.left_out for s in self.sources if isinstance(s, (FolderSource, TarSource))]
        return sum(known, Counter())

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.sources else 0

    def name(self, index: int) -> str:
        source, local = self._locate(index)
        return source.name(local)

    def key(self, index: int) -> str:
        source, local = self._locate(index)
        return source.key(local)

    def content(self, index: int) -> bytes:
        """The encoded image. Raises ImageError."""
        source, local = self._locate(index)
        return source.content(local)

    def read(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3). Raises ImageError."""
        source, local = self._locate(index)
        return source.read(local)

    def matching(self, pattern: str | None) -> "ConcatSource | SubsetSource":
        """Return the images whose names within their folder or file fit ``caltech101/*``, or all for None.

        Raises:
            ValueError: no name fits.
        """
        if pattern is None:
            return self
        chosen = [i for i in range(len(self)) if fnmatch.fnmatchcase(self.key(i), pattern)]
        if not chosen:
            raise ValueError(f"expected names like {pattern!r} (--only), found none; the first name is {self.key(0)!r}")
        return SubsetSource(self, np.array(chosen, np.int64))

    def _locate(self, index: int) -> tuple[ImageSource, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"expected an index from 0 to {len(self) - 1}, found {index}")
        which = int(np.searchsorted(self._ends, index, side="right"))
        return self.sources[which], index - int(self._ends[which - 1] if which else 0)


class SubsetSource:
    """Some images of a source, by their indices there."""

    def __init__(self, source: ImageSource, indices: np.ndarray) -> None:
        self.source, self.indices = source, indices

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))

    def key(self, index: int) -> str:
        return self.source.key(int(self.indices[index]))

    def content(self, index: int) -> bytes:
        """Return the encoded image. Raises ImageError."""
        return self.source.content(int(self.indices[index]))

    def read(self, index: int) -> np.ndarray:
        """Return uint8 (H, W, 3). Raises ImageError."""
        return self.source.read(int(self.indices[index]))


def open_source(paths: Sequence[str | Path]) -> ConcatSource:
    """Return folders, uncompressed tar files, .npz files and Hugging Face data sets as one source, in this order.

    A folder that ``save_to_disk`` of the package ``datasets`` wrote is read as a data set, its split ``train``.
    A line of the log names the files of folders and tar files that were left out.
    ``hf:OWNER/NAME[:SPLIT][?...]`` and ``hf:./folder[:SPLIT][?...]`` are explained at ``HuggingFaceSource``.

    Raises:
        ImageError: a missing or damaged path; no image in all of them.
        ImportError: a data set, and the package ``datasets`` is not installed.
    """
    source = ConcatSource([_open(path) for path in paths])
    check_left_out(paths, len(source), source.left_out)
    if not len(source):
        raise ImageError(f"expected images in {', '.join(map(str, paths)) or 'the data paths'}, found none")
    return source


def _open(path: str | Path) -> ImageSource:
    if streaming_path(str(path)):
        raise ImageError(
            f"{printable(str(path))}: expected data whose images have numbers, found a stream, "
            "which only `ssdd train` takes, as the one path of --data.paths, and `ssdd tokenize`"
        )
    if str(path).startswith(PREFIX):
        return HuggingFaceSource(str(path))
    path = Path(path)
    if path.is_dir():
        # With ./ it is a folder, not the name of a data set on the hub.
        here = path if path.is_absolute() else f"./{path}"
        return HuggingFaceSource(f"{PREFIX}{here}") if is_saved_dataset(path) else FolderSource(path)
    if path.is_file():
        return NpzSource(path) if path.suffix == ".npz" else TarSource(path)
    label = printable(str(path))
    raise ImageError(
        f"{label}: expected a folder or a tar file of images, found nothing there; "
        "a Hugging Face data set is given as hf:OWNER/NAME"
    )
