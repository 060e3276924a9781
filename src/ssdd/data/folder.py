"""Images in folders."""

import os
from pathlib import Path

import numpy as np

from .images import ImageError, find_images, printable, read_failure, read_image, reason_of
from .names import PackedNames


class FolderSource:
    """Image files of a folder, recursively, sorted by name."""

    def __init__(self, folder: str | Path) -> None:
        """Raises ImageError for a folder that is missing or cannot be read."""
        self.folder = Path(folder)
        self._paths = PackedNames(str(file.path) for file in find_images([folder]))

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        return self._paths[index]

    def key(self, index: int) -> str:
        return os.path.relpath(self._paths[index], self.folder)

    def content(self, index: int) -> bytes:
        """The encoded image. Raises ImageError."""
        return file_content(self._paths[index])

    def read(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3). Raises ImageError."""
        return read_image(self._paths[index])


def file_content(path: str) -> bytes:
    """The bytes of a regular file. Raises ImageError."""
    try:
        if Path(path).is_file():  # no pipe, which would wait for its writer
            return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        message = f"{printable(path)}: expected a readable image file, found {reason_of(error)}"
        raise read_failure(error, message) from error
    raise ImageError(f"{printable(path)}: expected an image file, found none")
