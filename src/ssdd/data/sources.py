"""Where images come from: folders and plain tar files, read by index."""

import io
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np

from .images import IMAGE_SUFFIXES, ImageError, find_images, read_image


class ImageSource(Protocol):
    """A fixed list of images: ``len``, ``name(i)`` and ``read(i)`` -> uint8 (H, W, 3)."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def read(self, index: int) -> np.ndarray: ...


class FolderSource:
    """Image files of a folder, recursively, sorted by name."""

    def __init__(self, folder: str | Path) -> None:
        self.files = find_images([folder])

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        return str(self.files[index].path)

    def read(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3). Raises ImageError."""
        return read_image(self.files[index].path)


@dataclass(frozen=True)
class _Member:
    name: str
    offset: int
    size: int


class TarSource:
    """Image members of an uncompressed tar file, sorted by name; hidden ones are skipped, as in a folder.

    Only the members' positions are read when it is opened; nothing is ever extracted to disk, so their names
    (absolute, with ``..``) do no harm, and links and devices are passed over.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with tarfile.open(self.path, "r:") as tar:
                members = [
                    _Member(m.name, m.offset_data, m.size)
                    for m in tar
                    if m.isreg() and not m.issparse() and _is_image_name(m.name)
                ]
                end = tar.offset
        except (tarfile.TarError, EOFError) as error:
            raise ImageError(f"{path}: expected an uncompressed tar file, found {error}") from error
        # At a damaged or cut header tarfile ends without complaint; a whole file ends at a block of zeros.
        with self.path.open("rb") as file:
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise ImageError(f"{path}: expected a complete tar file, found it cut off or damaged at byte {end}")
        self.members = sorted(members, key=lambda m: m.name)
        self._descriptor: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.members)

    def name(self, index: int) -> str:
        return f"{self.path}:{self.members[index].name}"

    def read(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3). Raises ImageError."""
        member = self.members[index]
        content = os.pread(self._open(), member.size, member.offset)
        return read_image(io.BytesIO(content), name=self.name(index))

    def _open(self) -> int:
        """The file's descriptor, opened once in each process."""
        if self._descriptor is None or self._descriptor[0] != os.getpid():
            self._descriptor = (os.getpid(), os.open(self.path, os.O_RDONLY))
        return self._descriptor[1]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_descriptor": None}


def _is_image_name(name: str) -> bool:
    """Has it an image's extension, and is it not hidden? macOS packs a hidden ``._photo.jpg`` with each photo."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") and part != ".." for part in path.parts)
    return not hidden and path.suffix.lower() in IMAGE_SUFFIXES


class ConcatSource:
    """Several sources one after the other."""

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        self.sources = list(sources)
        self._ends = np.cumsum([len(s) for s in self.sources])

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.sources else 0

    def name(self, index: int) -> str:
        source, local = self._locate(index)
        return source.name(local)

    def read(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3). Raises ImageError."""
        source, local = self._locate(index)
        return source.read(local)

    def _locate(self, index: int) -> tuple[ImageSource, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"expected an index from 0 to {len(self) - 1}, found {index}")
        which = int(np.searchsorted(self._ends, index, side="right"))
        return self.sources[which], index - int(self._ends[which - 1] if which else 0)


def open_source(paths: Sequence[str | Path]) -> ConcatSource:
    """Folders and ``.tar`` files as one source. Raises ImageError for a missing path or if there is no image."""
    sources: list[ImageSource] = []
    for path in map(Path, paths):
        if path.is_dir():
            sources.append(FolderSource(path))
        elif path.is_file():
            sources.append(TarSource(path))
        else:
            raise ImageError(f"{path}: expected a folder or a tar file of images, found nothing there")
    source = ConcatSource(sources)
    if not len(source):
        raise ImageError(f"expected images in {', '.join(map(str, paths)) or 'the data paths'}, found none")
    return source
