"""The images of one shard: of an input shard (a tar or Parquet file), or a part of a planned list.

In a tar file the members of one webdataset sample share their name up to its first dot: ``0001.jpg``, ``0001.cls``,
``0001.txt``. ``.cls`` is its class; the others but images are kept beside the latent.
"""

import io
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from ..data.find import LINK
from ..data.images import ImageError, ImageReadError, printable, read_failure, read_image, reason_of
from ..data.tar import opened_file, tar_members
from .format import Label

LabelRule = Literal["auto", "folder", "none"]
CLASS, CAPTION = "cls", "txt"
MOST_MEMBER_BYTES = 1 << 20
"""Of a member that is kept beside a latent: larger ones are no captions or metadata."""
_MOST_CLASS_BYTES = 256
_USUAL_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "label", CLASS)
_LONGEST_EXTENSION = 24


class ShardImages(Protocol):
    """The images of a shard, by their numbers from 0; several threads may read them.

    left_out: other files of an input shard, by their kind. input_bytes: its size; None for images of a list.
    """

    left_out: Counter[str]
    input_bytes: int | None

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """Return the name in the data, which does not depend on where they lie."""

    def place(self, i: int) -> str:
        """Return the name for messages, with the path that holds it."""

    def label(self, i: int) -> Label: ...

    def read(self, i: int) -> np.ndarray:
        """Return uint8 (H, W, 3). Raises ImageError."""

    def members(self, i: int) -> dict[str, bytes]:
        """Return what else is kept of its sample, by extension. Raises ImageError."""

    def is_gone(self, i: int) -> bool:
        """Whether the file that holds it is there no more: not unreadable, but lost."""


class Annotation(NamedTuple):
    """What a file of labels says of an image."""

    label: Label
    caption: str | None


class Annotations(Protocol):
    """What a file of labels says, by the name of the image: ``LabelFile``."""

    has_labels: bool

    def __getitem__(self, name: str) -> Annotation: ...


def caption_of(notes: Annotations | None, name: str) -> dict[str, bytes]:
    """Return an image's caption as a member of its sample, if there is one."""
    caption = None if notes is None else notes[name].caption
    return {} if caption is None else {CAPTION: caption.encode()}


@dataclass(frozen=True)
class Place:
    """Where something lies in a tar file."""

    offset: int
    size: int


_NOWHERE = Place(0, 0)


@dataclass(frozen=True)
class FoundImage:
    """An image before it is read: its name in the data and its class; in a tar file its place and those of its sample.

    place: of images in a data set, ``offset`` is their row. members: by extension.
    """

    name: str
    label: Label
    place: Place = _NOWHERE
    members: dict[str, Place] = field(default_factory=dict)


def tar_images(path: Path, label: str, left_out: Counter[str] | None = None) -> Iterator[FoundImage]:
    """Return the images of an uncompressed tar file in its order.

    Args:
        left_out: counts members that are neither images nor beside one, by their kind.

    Raises:
        ImageError: as ``TarSource``.
    """
    with path.open("rb", buffering=0) as file:
        members = tar_members(file, os.fstat(file.fileno()).st_size, label)
        for key, sample in groupby(members, lambda member: _split(member.name)[0]):
            images: list[tuple[str, Place]] = []
            others: dict[str, Place] = {}
            kinds: dict[str, str] = {}
            for name, offset, size, kind in sample:
                extension = _split(name)[1].lower()
                if kind is None:
                    images.append((name, Place(offset, size)))
                elif kind != LINK and 0 < _bytes(extension) <= _LONGEST_EXTENSION and size <= MOST_MEMBER_BYTES:
                    others[extension] = Place(offset, size)
                    kinds[extension] = kind
                elif left_out is not None:
                    left_out[kind] += 1
            found = others.pop(CLASS, None)
            value: Label = folder_of(key) or None
            if found is not None and images:
                value = _class(
                    os.pread(file.fileno(), min(found.size, _MOST_CLASS_BYTES), found.offset), f"{label}:{key}"
                )
            for name, place in images:
                yield FoundImage(name, value, place, others)
            if not images and left_out is not None:
                left_out.update(kinds.values())


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))


def _split(name: str) -> tuple[str, str]:
    """Key and extension of a member, as webdataset has them."""
    folder, _, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), extension


def folder_of(name: str) -> str:
    """Return the name of the folder that holds it, or of a class' tar file in ImageNet's tar file of tar files."""
    parts = [part for part in name.split("/")[:-1] if part not in ("", ".", "..")]
    return parts[-1].removesuffix(".tar") if parts else ""


def _class(content: bytes, label: str) -> Label:
    words = content.decode("utf-8", "replace").strip()
    if not words:
        return None
    if not words.isprintable():
        raise ImageError(f"{printable(label)}.{CLASS}: expected a class, found {words[:20]!r}")
    return class_value(words)


def class_value(words: str) -> Label:
    """Return a whole number as a number; None for -1, which stands for no class."""
    if re.fullmatch(r"-?[0-9]{1,18}", words):
        return int(words) if int(words) >= 0 else None
    return words


def class_of(value: object) -> Label:
    """Return the class that a table has: numbers with a fraction of 0 are whole; nothing, NaN and "" are none."""
    if value is None or value == "" or value != value:
        return None
    whole = isinstance(value, float) and value.is_integer()
    return class_value(str(int(value) if whole else value).strip())  # type: ignore[call-overload]


class TarShard:
    """See ``ShardImages``: a tar file of this machine.

    Args:
        name: what messages call it.
        keeps: tells by its name whether an image is wanted.
    """

    def __init__(
        self, path: Path, name: str, rule: LabelRule, notes: Annotations | None, keeps: Callable[[str], bool]
    ) -> None:
        self._path, self._label, self._rule, self._notes = path, name, rule, notes
        self.left_out: Counter[str] = Counter()
        self.input_bytes: int | None = path.stat().st_size
        self._images = [image for image in tar_images(path, printable(name), self.left_out) if keeps(image.name)]
        self._version = file_version(path)

    def __len__(self) -> int:
        return len(self._images)

    def name(self, i: int) -> str:
        return self._images[i].name

    def place(self, i: int) -> str:
        return f"{self._label}:{self.name(i)}"

    def label(self, i: int) -> Label:
        labelled = self._notes is not None and self._notes.has_labels
        label = self._notes[self.name(i)].label if self._notes and labelled else self._images[i].label
        return None if self._rule == "none" else label

    def read(self, i: int) -> np.ndarray:
        content = read_place(self._path, self._version, self._images[i].place, self.place(i))
        return read_image(io.BytesIO(content), name=self.place(i))

    def members(self, i: int) -> dict[str, bytes]:
        places = self._images[i].members.items()
        found = {name: read_place(self._path, self._version, place, self.place(i)) for name, place in places}
        return found | caption_of(self._notes, self.name(i))

    def is_gone(self, i: int) -> bool:
        return not self._path.exists()


def file_version(path: Path) -> tuple[int, ...]:
    """Return what tells a file from one that takes its place later."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_mtime_ns


def read_place(path: Path, version: tuple[int, ...], place: Place, name: str) -> bytes:
    """Read a part of a file. Raises ImageReadError where it cannot be read whole: never the image's own fault."""
    try:
        content = opened_file(str(path), version).read(place.size, place.offset)
    except OSError as error:
        raise read_failure(error, f"{printable(name)}: expected a readable file, found {reason_of(error)}") from error
    if len(content) != place.size:
        raise ImageReadError(
            f"{printable(name)}: expected {place.size} bytes at byte {place.offset}, found {len(content)}: "
            "the tar file has been shortened since it was opened"
        )
    return content


class ParquetShard:
    """See ``ShardImages``: a Parquet file of this machine. Two row groups are in memory.

    The image is a column of ``{bytes, path}`` as ``datasets`` has them, or of bytes; the class a column of whole
    numbers or words; columns of text are kept beside the latent.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        image: str | None,
        label: str | None,
        rule: LabelRule,
        notes: Annotations | None,
        keeps: Callable[[str], bool],
    ) -> None:
        """
        Args:
            name: what messages call it.
            image, label: columns; None for the first that holds images, and for ``label`` or ``cls``.
            keeps: tells by its name whether an image is wanted.

        Raises:
            ImageError: no Parquet file, or no such column.
        """
        pyarrow, parquet = pyarrow_and_parquet()
        self.left_out: Counter[str] = Counter()
        self.input_bytes: int | None = path.stat().st_size
        self._label, self._path, self._rule, self._notes = name, path, rule, notes
        try:
            self._file = parquet.ParquetFile(path)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise ImageError(f"{printable(name)}: expected a Parquet file, found {reason_of(error)}") from error
        schema = self._file.schema_arrow
        self._image = _column(schema, image, [f.name for f in schema if _holds_images(f.type)], "image", name)
        self._class: str | None = None
        if rule != "none":
            usual = [n for n in ("label", CLASS) if n in schema.names]
            self._class = _column(schema, label, usual, "label", name) if label or usual else None
        kept = [
            f.name for f in schema if f.type in (pyarrow.string(), pyarrow.large_string()) and f.name != self._class
        ]
        self._texts = [n for n in kept if re.fullmatch(rf"[\w.-]{{1,{_LONGEST_EXTENSION}}}", n, re.ASCII)]
        groups = [self._file.metadata.row_group(k).num_rows for k in range(self._file.num_row_groups)]
        self._ends = np.cumsum(groups) if groups else np.zeros(0, np.int64)
        self._classes = self._file.read(columns=[self._class])[self._class].to_pylist() if self._class else None
        self._names = _class_names(schema, self._class)
        rows = int(self._ends[-1]) if groups else 0
        self._rows = [row for row in range(rows) if keeps(self._row_name(row))]
        self._lock = threading.Lock()
        self._groups: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, i: int) -> str:
        return self._row_name(self._rows[i])

    def _row_name(self, row: int) -> str:
        return f"{self._label.rsplit('/', 1)[-1]}[{row}]"

    def place(self, i: int) -> str:
        return f"{self._label}[{self._rows[i]}]"

    def label(self, i: int) -> Label:
        if self._notes is not None and self._notes.has_labels and self._rule != "none":
            return self._notes[self.name(i)].label
        if self._classes is None or self._classes[self._rows[i]] is None:
            return None
        value = class_of(self._classes[self._rows[i]])
        return self._names[value] if isinstance(value, int) and value < len(self._names) else value

    def read(self, i: int) -> np.ndarray:
        cell = self._cell(self._image, i)
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if not content:
            raise ImageError(f"{printable(self.place(i))}: expected the bytes of an image, found none")
        return read_image(io.BytesIO(content), name=self.place(i))

    def members(self, i: int) -> dict[str, bytes]:
        cells = {name: self._cell(name, i) for name in self._texts}
        return {name: text.encode() for name, text in cells.items() if text is not None} | caption_of(
            self._notes, self.name(i)
        )

    def is_gone(self, i: int) -> bool:
        return not self._path.exists()

    def _cell(self, column: str, i: int) -> Any:
        row = self._rows[i]
        group = int(np.searchsorted(self._ends, row, side="right"))
        with self._lock:  # a Parquet file has one position
            if group not in self._groups:
                while len(self._groups) > 1:
                    self._groups.pop(next(iter(self._groups)))
                try:
                    self._groups[group] = self._file.read_row_group(group, columns=[self._image, *self._texts])
                except (OSError, ValueError) as error:  # pyarrow's errors are of these classes
                    message = f"{printable(self.place(i))}: expected a readable row group, found {reason_of(error)}"
                    raise read_failure(error, message) from error
            table = self._groups[group]
        return table[column][row - (int(self._ends[group - 1]) if group else 0)].as_py()


def _holds_images(kind: Any) -> bool:
    pyarrow, _ = pyarrow_and_parquet()
    if pyarrow.types.is_struct(kind):
        return any(kind.field(k).name == "bytes" for k in range(kind.num_fields))
    return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))


def _column(schema: Any, asked: str | None, usual: Sequence[str], what: str, name: str) -> str:
    if asked is not None and schema.names.count(asked) == 1:
        return asked
    if len(set(schema.names)) < len(schema.names):
        raise ImageError(f"{printable(name)}: expected columns of different names, found some twice")
    if asked is None and usual:
        return next((column for column in _USUAL_COLUMNS if column in usual), usual[0])
    columns = printable(", ".join(schema.names))
    raise ImageError(f"{printable(name)}: expected a column {asked or f'of {what}s'}, found the columns {columns}")


def _class_names(schema: Any, column: str | None) -> list[str]:
    """Names of the classes, which ``datasets`` writes into a file's metadata."""
    import json

    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, ValueError, TypeError):
        return []  # not of datasets, or no class names
    return [str(name) for name in names] if isinstance(names, list) else []


def pyarrow_and_parquet() -> tuple[Any, Any]:
    """Return the package and its module for Parquet. Raises ImportError with the extra."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError("Parquet files need pyarrow: pip install 'ssdd[parquet]'") from error
    return pyarrow, parquet
