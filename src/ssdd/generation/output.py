"""Generated images as files: PNGs, a page of them, or one ``.npz`` as the evaluator of guided diffusion (ADM) reads it.

Shapes: N samples, S side.
"""

import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ..data.images import save_image
from ..files import atomic_path
from ..training.validation import grid

COLUMNS, ROWS = 8, 8
"""Of the page of samples, at most."""


class Page:
    """Collects the first images for ``grid.png``."""

    def __init__(self) -> None:
        self._images: list[np.ndarray] = []

    def add(self, images: np.ndarray) -> None:
        """uint8 (B, S, S, 3)."""
        self._images += list(images[: COLUMNS * ROWS - len(self._images)])

    def draw(self) -> np.ndarray:
        """uint8 (H, W, 3), white where there are no images left."""
        columns = min(COLUMNS, len(self._images))
        blank = np.full_like(self._images[0], 255)
        filled = self._images + [blank] * (-len(self._images) % columns)
        return grid([np.stack(filled[i : i + columns]) for i in range(0, len(filled), columns)])


def write_pngs(out: Path, batches: Iterable[np.ndarray], overwrite: bool = False) -> Page:
    """``000000.png`` and so on, by the number of the sample. Raises OutputExists or OSError."""
    page, number = Page(), 0
    for images in batches:
        page.add(images)
        for image in images:
            save_image(out / png_name(number), image, overwrite=overwrite)
            number += 1
    return page


def png_name(number: int) -> str:
    return f"{number:06d}.png"


def write_npz(
    path: Path, batches: Iterable[np.ndarray], labels: Sequence[int | None], side: int, overwrite: bool = False
) -> Page:
    """``arr_0``: uint8 (N, S, S, 3); ``arr_1``: the classes, int64 (N,), where every sample has one.

    Written as the batches come, whole or not at all; memory does not grow with N. Raises ValueError for another number
    of images than labels, OutputExists or OSError.
    """
    page, count = Page(), 0
    with atomic_path(path, overwrite) as temporary, zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(labels), side, side, 3)}
            np.lib.format.write_array_header_1_0(file, header)
            for images in batches:
                page.add(images)
                file.write(np.ascontiguousarray(images, np.uint8).tobytes())
                count += len(images)
        if count != len(labels):
            raise ValueError(f"expected {len(labels)} images for as many labels, found {count}")
        if all(label is not None for label in labels):
            with archive.open("arr_1.npy", "w") as file:
                np.lib.format.write_array(file, np.array(labels, np.int64))
    return page
