"""Generated images as files, made in parts that several processes share and that a later call goes on with.

Shapes: N samples, H x W pixels of each.
"""

import io
import itertools
import json
import shutil
import tarfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from PIL import Image

from ..data.images import save_image
from ..runtime.files import OutputExists, atomic_path
from ..training.validation import grid

Format = Literal["png", "npz", "tar"]
GRID, NPZ, FACTS = "grid.png", "samples.npz", "samples.json"
NOT_COMPARED = ("decoder", "software")
"""Facts that people read: the same weights may have another name, and other releases make the same samples."""
_PARTS = ".parts"
TAR_PART = 1000
"""Samples of a tar shard."""
COLUMNS, ROWS = 8, 8
"""Of the page of samples, at most."""

Numbered = Iterable[tuple[int, np.ndarray]]
"""Number and image, uint8 (H, W, 3), of samples in order."""


class SampleFiles(ABC):
    """Files for N samples in parts: a part is made by one process, and is there whole or not at all.

    Args:
        out: folder of the result.
        labels: class of each sample, None for no class in particular.
        part_size: samples of a part.
    """

    def __init__(self, out: Path, labels: Sequence[int | None], part_size: int) -> None:
        self.out, self.labels = out, labels
        self.parts = [range(i, min(i + part_size, len(labels))) for i in range(0, len(labels), part_size)]

    @abstractmethod
    def missing(self, part: range) -> Sequence[int]:
        """Return the numbers of a part's samples that are still to be made."""

    @abstractmethod
    def write(self, part: range, samples: Numbered) -> None:
        """Write what was missing of a part. Raises OSError."""

    @abstractmethod
    def read(self, count: int) -> list[np.ndarray]:
        """Return the first images again."""

    def is_finished(self) -> bool:
        """Return whether parts that are all there are joined, where they are no result by themselves."""
        return True

    def finish(self) -> None:  # noqa: B027 - most have nothing to do
        """Join the parts, where they are no result by themselves."""

    def remove(self) -> None:
        """Remove the parts that are there."""
        for path in self.results():
            path.unlink(missing_ok=True)

    @abstractmethod
    def results(self) -> Iterator[Path]:
        """Return the paths of all files."""


class PngFiles(SampleFiles):
    """``000000.png`` and so on, by the number of the sample."""

    def missing(self, part: range) -> Sequence[int]:
        return [number for number in part if not self._path(number).exists()]

    def write(self, part: range, samples: Numbered) -> None:
        for number, image in samples:
            save_image(self._path(number), image)

    def read(self, count: int) -> list[np.ndarray]:
        return [np.asarray(Image.open(self._path(number)).convert("RGB")) for number in range(count)]

    def _path(self, number: int) -> Path:
        return self.out / f"{number:06d}.png"

    def results(self) -> Iterator[Path]:
        return map(self._path, range(len(self.labels)))


class TarFiles(SampleFiles):
    """``shard-000000.tar`` and so on, a webdataset: PNG files and, with classes, their numbers as ``.cls``."""

    def missing(self, part: range) -> Sequence[int]:
        return () if self._path(part).exists() else part

    def write(self, part: range, samples: Numbered) -> None:
        with atomic_path(self._path(part)) as temporary, tarfile.open(temporary, "w") as tar:
            for number, image in samples:
                content = io.BytesIO()
                Image.fromarray(image).save(content, "PNG")
                self._add(tar, f"{number:08d}.png", content.getvalue())
                if (label := self.labels[number]) is not None:
                    self._add(tar, f"{number:08d}.cls", str(label).encode())

    @staticmethod
    def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))

    def read(self, count: int) -> list[np.ndarray]:
        images: list[np.ndarray] = []
        for part in self.parts:
            with tarfile.open(self._path(part)) as tar:
                for member in tar:
                    if len(images) < count and member.name.endswith(".png"):
                        images.append(np.asarray(Image.open(io.BytesIO(tar.extractfile(member).read()))))  # type: ignore[union-attr]
            if len(images) == count:
                break
        return images

    def _path(self, part: range) -> Path:
        return self.out / f"shard-{self.parts.index(part):06d}.tar"

    def results(self) -> Iterator[Path]:
        return map(self._path, self.parts)


class NpzFile(SampleFiles):
    """One ``samples.npz`` as the evaluator of guided diffusion (ADM) reads it, joined from arrays in a hidden folder.

    ``arr_0``: uint8 (N, H, W, 3). ``arr_1``: the classes, int64 (N,), where every sample has one. Memory does not grow
    with N.
    """

    def missing(self, part: range) -> Sequence[int]:
        if self.is_finished():
            self._check_whole()
            return ()
        return () if self._path(part).exists() else part

    def write(self, part: range, samples: Numbered) -> None:
        images = np.stack([image for _, image in samples])
        with atomic_path(self._path(part)) as temporary:
            np.save(temporary, images)

    def _check_whole(self) -> None:
        """Raise ValueError for a file that was damaged after it was written."""
        path = self.out / NPZ
        try:
            with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
                whole = self._header(file)[0][0] == len(self.labels)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            whole = False
        if not whole:
            raise ValueError(f"{path}: expected {len(self.labels)} samples, found a damaged file: remove it")

    @staticmethod
    def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        return shape, dtype

    def read(self, count: int) -> list[np.ndarray]:
        images: list[np.ndarray] = []
        with zipfile.ZipFile(self.out / NPZ) as archive, archive.open("arr_0.npy") as file:
            shape, dtype = self._header(file)
            for _ in range(count):
                images.append(np.frombuffer(file.read(int(np.prod(shape[1:]))), dtype).reshape(shape[1:]))
        return images

    def is_finished(self) -> bool:
        return (self.out / NPZ).exists()

    def finish(self) -> None:
        if not self.is_finished():
            self._join()
        shutil.rmtree(self.out / _PARTS, ignore_errors=True)

    def remove(self) -> None:
        (self.out / NPZ).unlink(missing_ok=True)
        shutil.rmtree(self.out / _PARTS, ignore_errors=True)  # of any size

    def _join(self) -> None:
        with atomic_path(self.out / NPZ) as temporary, zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as file:
                shape = (len(self.labels), *np.load(self._path(self.parts[0]), mmap_mode="r").shape[1:])
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for part in self.parts:
                    file.write(np.load(self._path(part)).tobytes())
            if all(label is not None for label in self.labels):
                with archive.open("arr_1.npy", "w") as file:
                    np.lib.format.write_array(file, np.array(self.labels, np.int64))

    def _path(self, part: range) -> Path:
        return self.out / _PARTS / f"{part.start:08d}.npy"

    def results(self) -> Iterator[Path]:
        return itertools.chain([self.out / NPZ], map(self._path, self.parts))


FILES: dict[Format, type[SampleFiles]] = {"png": PngFiles, "npz": NpzFile, "tar": TarFiles}


def begin(files: SampleFiles, facts: dict[str, object], overwrite: bool) -> None:
    """Write ``samples.json``, how all samples are made, or check that what is there is a part of this very result.

    Raises OutputExists for other samples, which ``overwrite`` removes.
    """
    path = files.out / FACTS
    if overwrite and path.exists():
        _earlier(files).remove()
        files.remove()
        (files.out / GRID).unlink(missing_ok=True)
        path.unlink()
    strangers = [file for file in files.results() if file.exists()]
    try:
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(facts, indent=1) + "\n")
        if strangers:
            path.unlink()
            raise ValueError(f"{strangers[0]} is there, and no {FACTS} says how it was made: choose another --out")
    except OutputExists:
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path}: expected how the samples there were made, found no JSON") from error
        expected = json.loads(json.dumps(facts))
        if different := other_settings(found, expected):
            raise OutputExists(
                f"{files.out} holds samples that were made with another {different}: choose another --out, or pass "
                "--overwrite to replace them"
            ) from None


def other_settings(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """Return which settings differ, but for ``NOT_COMPARED``, with the values of those that are short."""
    told = []
    for name in expected:
        before, now = found.get(name), expected[name]
        if name in NOT_COMPARED or before == now:
            continue
        pair = [json.dumps(value) for value in (before, now)]
        if isinstance(before, dict) and isinstance(now, dict):
            told.append(f"{name} ({other_settings(before, now)})")
        else:
            told.append(f"{name} ({pair[0]} instead of {pair[1]})" if max(map(len, pair)) < 80 else name)
    return ", ".join(told)


def _earlier(files: SampleFiles) -> SampleFiles:
    """Return the files of the result that lies in a folder already."""
    try:
        facts = json.loads((files.out / FACTS).read_text())
        return FILES[facts["format"]](files.out, [None] * len(facts["labels"]), TAR_PART)
    except (ValueError, KeyError, TypeError):  # of nobody knows what
        return files


def draw_page(images: Sequence[np.ndarray]) -> np.ndarray:
    """Return a page of images, uint8 (H, W, 3), white where there are none left."""
    columns = min(COLUMNS, len(images))
    blank = np.full_like(images[0], 255)
    filled = [*images, *[blank] * (-len(images) % columns)]
    return grid([np.stack(filled[i : i + columns]) for i in range(0, len(filled), columns)])
