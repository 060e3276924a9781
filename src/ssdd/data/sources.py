"""Where images come from: folders, tar files, arrays and Hugging Face data sets, read by index."""

import fnmatch
import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Protocol

import numpy as np

from .find import check_left_out, expand, images_in_folder, is_image_file
from .hugging_face import PREFIX, HuggingFaceSource, is_saved_dataset, streaming_path
from .images import ImageError, file_content, printable, read_image
from .names import PackedNames
from .tar import TarSource

__all__ = ["ConcatSource", "FolderSource", "HuggingFaceSource", "ImageSource", "NpzSource", "TarSource", "open_source"]

_ARRAY = "arr_0"


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


class FilesSource:
    """Image files by their paths, in this order."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = PackedNames(paths)

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        return self._paths[index]

    def key(self, index: int) -> str:
        return os.path.basename(self._paths[index])

    def content(self, index: int) -> bytes:
        """Return the encoded image. Raises ImageError."""
        return file_content(self._paths[index])

    def read(self, index: int) -> np.ndarray:
        """Return uint8 (H, W, 3). Raises ImageError."""
        return read_image(self._paths[index])


class FolderSource(FilesSource):
    """Image files of a folder, recursively, sorted by name.

    ``left_out``: other files, by their extension.
    """

    def __init__(self, folder: str | Path) -> None:
        """Raise ImageError for a folder that is missing or cannot be read."""
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ImageError(f"{printable(str(folder))}: expected a folder of images, found none at this path")
        names, self.left_out = images_in_folder(self.folder)
        super().__init__(str(self.folder / name) for name in names)

    def key(self, index: int) -> str:
        return os.path.relpath(self._paths[index], self.folder)


class NpzSource:
    """Images of an ``.npz`` file, as guided-diffusion's batches are: ``arr_0``, uint8 (N, H, W, 3).

    They are named by their numbers; an uncompressed file is read as it is needed.
    """

    def __init__(self, path: str | Path) -> None:
        """Raise ImageError for a file without an array of images."""
        self.path = Path(path)
        try:
            self._images = _mapped(self.path)
        except (OSError, ValueError, KeyError, EOFError, OverflowError, zipfile.BadZipFile) as error:
            raise ImageError(
                f"{printable(str(path))}: expected images as {_ARRAY}, uint8 (N, H, W, 3), found {error}"
            ) from error

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        return f"{self.path}::{self.key(index)}"

    def key(self, index: int) -> str:
        return f"{index:06d}"

    def content(self, index: int) -> bytes:
        """Raise ImageError: the images are not encoded."""
        raise ImageError(f"{printable(self.name(index))}: expected an image file, found pixels in an array")

    def read(self, index: int) -> np.ndarray:
        """Return uint8 (H, W, 3)."""
        return np.array(self._images[index])


def _mapped(path: Path) -> np.ndarray:
    """Return the array, mapped into memory if the file is not compressed: of 50,000 images it has gigabytes."""
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(f"{_ARRAY}.npy")
        with archive.open(member) as file:
            np.lib.format.read_magic(file)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            header = file.tell()
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or min(shape) < 1 or fortran:
        raise ValueError(f"{dtype} {shape}{' in Fortran order' if fortran else ''}")
    if member.compress_type != zipfile.ZIP_STORED:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[_ARRAY]
    with path.open("rb") as raw:  # the member's own header ends with its name and an extra field, of these lengths
        raw.seek(member.header_offset + 26)
        name_length, extra_length = np.frombuffer(raw.read(4), "<u2").tolist()
    offset = member.header_offset + 30 + name_length + extra_length + header
    return np.memmap(path, np.uint8, "r", offset, shape)


class ConcatSource:
    """Several sources one after the other, or some of their images, by their numbers among all."""

    def __init__(self, sources: Sequence[ImageSource], indices: np.ndarray | None = None) -> None:
        self.sources, self._indices = list(sources), indices
        self._ends = np.cumsum([len(s) for s in self.sources])

    @property
    def left_out(self) -> Counter[str]:
        """Other files beside the images of folders and tar files, by their extension."""
        known = [s.left_out for s in self.sources if isinstance(s, (FolderSource, TarSource))]
        return sum(known, Counter())

    def __len__(self) -> int:
        if self._indices is not None:
            return len(self._indices)
        return int(self._ends[-1]) if self.sources else 0

    def subset(self, indices: np.ndarray) -> "ConcatSource":
        """Return some of these images, by their numbers here."""
        return ConcatSource(self.sources, indices if self._indices is None else self._indices[indices])

    def matching(self, pattern: str | None) -> "ConcatSource":
        """Return the images whose names within their folder or file fit ``caltech101/*``, or all for None.

        Raises:
            ValueError: No name fits.
        """
        if pattern is None:
            return self
        chosen = [i for i in range(len(self)) if fnmatch.fnmatchcase(self.key(i), pattern)]
        if not chosen:
            raise ValueError(f"expected names like {pattern!r} (--only), found none; the first name is {self.key(0)!r}")
        return self.subset(np.array(chosen, np.int64))

    def name(self, index: int) -> str:
        source, local = self._locate(index)
        return source.name(local)

    def key(self, index: int) -> str:
        source, local = self._locate(index)
        return source.key(local)

    def content(self, index: int) -> bytes:
        """Return the encoded image. Raises ImageError."""
        source, local = self._locate(index)
        return source.content(local)

    def read(self, index: int) -> np.ndarray:
        """Return uint8 (H, W, 3). Raises ImageError."""
        source, local = self._locate(index)
        return source.read(local)

    def _locate(self, index: int) -> tuple[ImageSource, int]:
        """Return the source of an image, and its index there."""
        if not 0 <= index < len(self):
            raise IndexError(f"expected an index from 0 to {len(self) - 1}, found {index}")
        index = index if self._indices is None else int(self._indices[index])
        which = int(np.searchsorted(self._ends, index, side="right"))
        return self.sources[which], index - int(self._ends[which - 1] if which else 0)


def open_source(paths: Sequence[str | Path]) -> ConcatSource:
    """Return folders, images, uncompressed tar files, .npz files and Hugging Face data sets as one source, in order.

    Patterns and lists stand for what ``find.expand`` makes of them.
    A folder that ``save_to_disk`` of the package ``datasets`` wrote is read as a data set, its split ``train``.
    A line of the log names the files of folders and tar files that were left out.
    ``hf:OWNER/NAME[:SPLIT][?...]`` and ``hf:./folder[:SPLIT][?...]`` are explained at ``HuggingFaceSource``.

    Raises:
        ImageError: a missing or damaged path; no image in all of them.
        ImportError: a data set, and the package ``datasets`` is not installed.
    """
    sources: list[ImageSource] = []
    for are_images, group in groupby(expand(paths), is_image_file):
        files = list(group)
        sources += [FilesSource(files)] if are_images else map(_open, files)
    source = ConcatSource(sources)
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
        f"{label}: expected a folder or a tar file of images, or an image, found nothing there; "
        "a Hugging Face data set is given as hf:OWNER/NAME"
    )
