"""Images in an ``.npz`` file, as guided-diffusion's reference and sample batches are: ``arr_0``, uint8 (N, H, W, 3)."""

import zipfile
from pathlib import Path

import numpy as np

from .images import ImageError, printable

_ARRAY = "arr_0"


class NpzSource:
    """Images of an ``.npz`` file, named by their numbers; an uncompressed one is read as it is needed."""

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
