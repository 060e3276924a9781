"""What holds images: a folder, a tar file, a Parquet file, a data set, a single file. Each lists them and reads them.

In a tar file the members of one webdataset sample share their name up to its first dot: ``0001.jpg``, ``0001.cls``,
``0001.txt``. ``.cls`` is its class; the others but images are kept beside the latent. Where a sample has several
images, as ``scan.0001.jpg`` and ``scan.0002.jpg`` are, what has all of the name of one, ``scan.0001.txt``, is its own.
"""

import io
import json
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import groupby
from os.path import splitext
from pathlib import Path
from typing import Any

import numpy as np

from ..data.find import LINK, images_in_folder, is_image_file
from ..data.hugging_face import HuggingFaceSource, is_saved_dataset
from ..data.images import ImageError, file_content, printable, read_failure, read_image, reason_of
from ..data.packages import parquet
from ..data.remote import file_system, is_remote, remote_content
from ..data.sources import ImageSource, open_source
from ..data.tar import TarMember, file_version, read_part, tar_members
from .format import Label, escaped
from .labels import LabelFile, LabelRule, class_of, folder_of

_CLASS = "cls"
_MOST_CLASS_BYTES = 256
_MOST_MEMBER_BYTES = 1 << 20
"""Of a member that is kept beside a latent: larger ones are no captions or metadata."""
_LONGEST_EXTENSION = 24
_USUAL_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "label", _CLASS)


@dataclass(frozen=True)
class Place:
    """Where something lies in a file: bytes of a tar file, or a row, which is then the offset."""

    offset: int = 0
    size: int = 0


@dataclass(frozen=True)
class FoundImage:
    """An image before it is read.

    Attributes:
        source: What holds it.
        name: Its name in the data, wherever they lie.
        label: Its class.
        place: Where it lies in the source.
        members: Other members of its sample, by their extension.
        caption: What a file of labels says of it.
    """

    source: "Source"
    name: str
    label: Label
    place: Place = Place()
    members: dict[str, Place] = field(default_factory=dict)
    caption: str | None = None

    def __str__(self) -> str:
        """Return the name for messages, with the path that holds it."""
        return self.source.label(self)


@dataclass(frozen=True)
class Selection:
    """Which images are taken, and the classes and captions that they get.

    Attributes:
        only: A pattern like ``caltech101/*`` for names; ``*`` stands for slashes as well. None takes all.
        rule: ``none``: no classes.
        labels: A file of labels.
    """

    only: str | None = None
    rule: LabelRule = "auto"
    labels: LabelFile | None = None

    def takes(self, name: str) -> bool:
        return self.only is None or fnmatchcase(name, self.only)

    def annotated(self, image: FoundImage) -> FoundImage:
        """Return an image with its final class and caption."""
        label, caption = image.label, image.caption
        if self.labels is not None:
            note = self.labels[image.name]
            label, caption = note.label if self.labels.has_labels else label, note.caption
        return replace(image, label=None if self.rule == "none" else label, caption=caption)


class Source:
    """A path that holds images. Several threads may read them.

    Attributes:
        path: Where it lies.
        classes: Names of the classes by number, of a data set that states them.
    """

    kind = ""
    classes: Sequence[str] = ()

    def __init__(self, path: str) -> None:
        self.path = path

    def images(self, left_out: Counter[str]) -> Iterator[FoundImage]:
        """Yield all images in order; count other files by their kind. Raises ImageError."""
        raise NotImplementedError

    def label(self, image: FoundImage) -> str:
        return f"{self.path}:{image.name}"

    def content(self, image: FoundImage) -> bytes:
        """Return the encoded image. Raises ImageError."""
        raise NotImplementedError

    def read(self, image: FoundImage) -> np.ndarray:
        """Return uint8 (H, W, 3). Raises ImageError."""
        return read_image(io.BytesIO(self.content(image)), name=str(image))

    def members(self, image: FoundImage) -> dict[str, bytes]:
        """Return what else is kept of an image's sample, by extension. Raises ImageError."""
        return {}

    def is_gone(self, image: FoundImage) -> bool:
        """Whether the file that holds an image is there no more, or a link to it leads nowhere: it is lost."""
        return not os.path.exists(self.path)


class Folder(Source):
    """Images of a folder and its subfolders."""

    kind = "folder"

    def images(self, left_out: Counter[str]) -> Iterator[FoundImage]:
        names, others = images_in_folder(Path(self.path))
        left_out.update(others)
        top = Path(self.path).resolve().name or None
        return (FoundImage(self, name, folder_of(name) or top) for name in names)

    def label(self, image: FoundImage) -> str:
        return image.name if self.path == "." else f"{Path(self.path)}".rstrip("/") + f"/{image.name}"

    def content(self, image: FoundImage) -> bytes:
        return file_content(self.label(image))

    def read(self, image: FoundImage) -> np.ndarray:
        return read_image(self.label(image))

    def is_gone(self, image: FoundImage) -> bool:
        return not os.path.exists(self.label(image))


class Tar(Source):
    """Images of an uncompressed tar file, in its order; ``name`` is what messages call the file."""

    kind = "tar"

    def __init__(self, path: str, name: str | None = None) -> None:
        super().__init__(path)
        self._name = path if name is None else name
        self._version: tuple[int, ...] | None = None  # tells the file from one that takes its place later

    def images(self, left_out: Counter[str]) -> Iterator[FoundImage]:
        label = printable(self._name)
        self._version = file_version(self.path)
        with open(self.path, "rb", buffering=0) as file:
            members = tar_members(file, os.fstat(file.fileno()).st_size, label)
            for key, sample in groupby(members, lambda member: _split(member.name)[0]):
                images: list[tuple[str, Place]] = []
                others: list[TarMember] = []
                for member in sample:
                    if member.kind is None:
                        images.append((member.name, Place(member.offset, member.size)))
                    elif member.kind != LINK and member.size <= _MOST_MEMBER_BYTES:
                        others.append(member)
                    else:
                        left_out[member.kind] += 1
                own = {splitext(name)[0]: dict[str, Place]() for name, _ in images} if len(images) > 1 else {}
                shared: dict[str, Place] = {}
                for member in others:
                    stem, last = splitext(member.name)
                    owner = own.get(stem)
                    extension = escaped(_split(member.name)[1] if owner is None else last[1:]).lower()
                    if images and 0 < len(extension.encode()) <= _LONGEST_EXTENSION:
                        (shared if owner is None else owner)[extension] = Place(member.offset, member.size)
                    else:
                        left_out[member.kind or ""] += 1
                for name, place in images:
                    kept = shared | own.get(splitext(name)[0], {})
                    value: Label = folder_of(key)
                    if (stated := kept.pop(_CLASS, None)) is not None:
                        content = os.pread(file.fileno(), min(stated.size, _MOST_CLASS_BYTES), stated.offset)
                        value = _stated_class(content, f"{label}:{key}")
                    yield FoundImage(self, name, value, place, kept)

    def label(self, image: FoundImage) -> str:
        return f"{self._name}:{image.name}"

    def content(self, image: FoundImage) -> bytes:
        return self._at(image.place, image)

    def members(self, image: FoundImage) -> dict[str, bytes]:
        return {extension: self._at(place, image) for extension, place in image.members.items()}

    def _at(self, place: Place, image: FoundImage) -> bytes:
        self._version = self._version or file_version(self.path)
        return read_part(self.path, self._version, place.offset, place.size, str(image))


def _split(name: str) -> tuple[str, str]:
    """Return key and extension of a member, as webdataset has them."""
    folder, _, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), extension


def _stated_class(content: bytes, label: str) -> Label:
    words = content.decode("utf-8", "replace").strip()
    if words and not words.isprintable():
        raise ImageError(f"{printable(label)}.{_CLASS}: expected a class, found {words[:20]!r}")
    return class_of(words)


class Parquet(Source):
    """Images of a Parquet file, two row groups of which are in memory.

    The image is a column of ``{bytes, path}`` as ``datasets`` has them, or of bytes; the class a column of whole
    numbers or words; columns of text are kept beside the latent.
    """

    def __init__(
        self, path: str, name: str, image: str | None = None, label: str | None = None, has_classes: bool = True
    ) -> None:
        """
        Args:
            path: Where the file lies.
            name: What messages call it.
            image: Column of images; None for the first that holds some.
            label: Column of classes; None for ``label`` or ``cls``, if there is one.
            has_classes: Whether classes are wanted.

        Raises:
            ImageError: No Parquet file, or no such column.
        """
        super().__init__(path)
        self._name = name
        pyarrow, module = parquet()
        try:
            self._file = module.ParquetFile(path)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise ImageError(f"{printable(name)}: expected a Parquet file, found {reason_of(error)}") from error
        schema = self._file.schema_arrow
        self._image = _column(schema, image, [f.name for f in schema if _holds_images(f.type)], "image", name)
        usual = [n for n in ("label", _CLASS) if n in schema.names]
        self._class = _column(schema, label, usual, "label", name) if has_classes and (label or usual) else None
        self.classes = _class_names(schema, self._class)
        text = (pyarrow.string(), pyarrow.large_string())
        names = [column.name for column in schema if column.type in text and column.name != self._class]
        self._texts = _extensions(names)
        groups = [self._file.metadata.row_group(k).num_rows for k in range(self._file.num_row_groups)]
        self._ends = np.cumsum(groups, dtype=np.int64)
        self._lock = threading.Lock()
        self._groups: dict[int, Any] = {}

    def images(self, left_out: Counter[str]) -> Iterator[FoundImage]:
        rows, base = self._file.metadata.num_rows, self._name.rsplit("/", 1)[-1]
        values = [None] * rows
        if self._class is not None:
            values = self._file.read(columns=[self._class])[self._class].to_pylist()
        for row, cell in enumerate(values):
            value = class_of(cell)
            if isinstance(value, int) and value < len(self.classes):
                value = self.classes[value]
            yield FoundImage(self, f"{base}[{row}]", value, Place(row))

    def label(self, image: FoundImage) -> str:
        return f"{self._name}[{image.place.offset}]"

    def content(self, image: FoundImage) -> bytes:
        cell = self._cell(self._image, image)
        content: bytes | None = cell.get("bytes") if isinstance(cell, dict) else cell
        if not content:
            raise ImageError(f"{printable(str(image))}: expected the bytes of an image, found none")
        return content

    def members(self, image: FoundImage) -> dict[str, bytes]:
        cells = {extension: self._cell(name, image) for name, extension in self._texts.items()}
        return {extension: text.encode() for extension, text in cells.items() if text is not None}

    def _cell(self, column: str, image: FoundImage) -> Any:
        row = image.place.offset
        group = int(np.searchsorted(self._ends, row, side="right"))
        with self._lock:  # a Parquet file has one position
            if group not in self._groups:
                if len(self._groups) > 1:
                    self._groups.pop(next(iter(self._groups)))
                try:
                    self._groups[group] = self._file.read_row_group(group, columns=[self._image, *self._texts])
                except (OSError, ValueError) as error:  # pyarrow's errors are of these classes
                    message = f"{printable(str(image))}: expected a readable row group, found {reason_of(error)}"
                    raise read_failure(error, message) from error
            table = self._groups[group]
        return table[column][row - (int(self._ends[group - 1]) if group else 0)].as_py()


def _holds_images(kind: Any) -> bool:
    types = parquet()[0].types
    if types.is_struct(kind):
        return any(kind.field(k).name == "bytes" for k in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _column(schema: Any, asked: str | None, usual: Sequence[str], what: str, name: str) -> str:
    if asked is not None and asked in schema.names:
        return asked
    if asked is None and usual:
        return next((column for column in _USUAL_COLUMNS if column in usual), usual[0])
    columns = printable(", ".join(schema.names))
    raise ImageError(f"{printable(name)}: expected a column {asked or f'of {what}s'}, found the columns {columns}")


def _extensions(columns: Sequence[str]) -> dict[str, str]:
    """Return the extension under which the text of each column is kept: its name, or one that a file name can have."""
    found: dict[str, str] = {}
    for column in columns:
        safe = re.sub(r"[^\w.-]", "_", column, flags=re.ASCII)[:_LONGEST_EXTENSION] or "_"
        if safe in found.values():
            safe = f"{safe[: _LONGEST_EXTENSION - 4]}{len(found):04}"
        found[column] = safe
    return found


def _class_names(schema: Any, column: str | None) -> list[str]:
    """Return the names of the classes, which ``datasets`` writes into a file's metadata."""
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]["names"]
        return [str(name) for name in names]
    except (KeyError, ValueError, TypeError):
        return []  # not of datasets, or no class names


class Rows(Source):
    """Images of a Hugging Face data set or an ``.npz`` file, by their rows."""

    kind = "dataset"

    @cached_property
    def _rows(self) -> ImageSource:
        return open_source([self.path]).sources[0]

    @cached_property
    def _labels(self) -> tuple[Sequence[str | None], Sequence[str]]:
        rows = self._rows
        return rows.classes() if isinstance(rows, HuggingFaceSource) else ([None] * len(rows), ())

    @property
    def classes(self) -> Sequence[str]:  # type: ignore[override]
        return self._labels[1]

    def images(self, left_out: Counter[str]) -> Iterator[FoundImage]:
        for row, label in enumerate(self._labels[0]):
            yield FoundImage(self, self._rows.name(row).rsplit("/", 1)[-1], label, Place(row))

    def label(self, image: FoundImage) -> str:
        return self._rows.name(image.place.offset)

    def content(self, image: FoundImage) -> bytes:
        return self._rows.content(image.place.offset)

    def read(self, image: FoundImage) -> np.ndarray:
        return self._rows.read(image.place.offset)

    def is_gone(self, image: FoundImage) -> bool:
        return False


class ImageFile(Source):
    """An image file, here or elsewhere, named with the folder that may name its class."""

    kind = "file"

    def images(self, left_out: Counter[str]) -> Iterator[FoundImage]:
        name = "/".join(self.path.rpartition("://")[2].split("/")[-2:])
        yield FoundImage(self, name, folder_of(name))

    def label(self, image: FoundImage) -> str:
        return self.path

    def content(self, image: FoundImage) -> bytes:
        return remote_content(self.path) if is_remote(self.path) else file_content(self.path)

    def is_gone(self, image: FoundImage) -> bool:
        if not is_remote(self.path):
            return super().is_gone(image)
        system, path = file_system(self.path)
        return not system.exists(path)


LISTED: dict[str, Callable[[str], Source]] = {source.kind: source for source in (Folder, Tar, Rows, ImageFile)}
"""Sources whose images are listed once, by their kind."""


def listed_source(path: str) -> Source:
    """Return what lists the images of a path that makes no shard by itself."""
    if is_remote(path) or is_image_file(path):
        return ImageFile(path)
    if Path(path).is_file() and not path.endswith(".npz"):
        return Tar(path)
    return Folder(path) if Path(path).is_dir() and not is_saved_dataset(Path(path)) else Rows(path)
