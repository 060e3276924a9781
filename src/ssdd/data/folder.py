"""Images in folders."""

import os
from pathlib import Path

import numpy as np

from .find import images_in_folder
from .images import ImageError, printable, read_failure, read_image, reason_of
from .names import PackedNames


class FolderSource:
    """Image files of a folder, recursively, sorted by name.

    ``left_out``: other files, by their extension.
    """

    def __init__(self, folder: str | Path) -> None:
        """Raises ImageError for a folder that is missing or cannot be read."""
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ImageError(f"{printable(str(folder))}: expected a folder of images, found none at this path")
        names, self.left_out = images_in_folder(self.folder)
        self._paths = PackedNames(str(self.folder / name) for name in names)

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
