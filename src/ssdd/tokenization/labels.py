"""Classes and captions: what stands beside an image, in its folder's name or in a file, and the numbers of classes."""

import csv
import json
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ..data.images import ImageError, printable, reason_of
from ..data.packages import parquet
from .format import Label, escaped

LabelRule = Literal["auto", "folder", "none"]
NO_LABEL = -1
MOST_CLASSES = 1 << 20
_NAMES = ("file_name", "filename", "name", "key", "image")
_CLASSES = ("label", "class", "cls")
_CAPTIONS = ("caption", "text", "txt")


class Annotation(NamedTuple):
    """What a file of labels says of an image."""

    label: Label
    caption: str | None


class LabelFile:
    """Classes and captions by the name of the image, with or without its extension.

    CSV with a header, JSON (a list of objects, an object name -> class, or ``{"labels": [[name, class], ...]}``), or
    Parquet; columns ``file_name``, and ``label``, ``caption`` or both.

    Attributes:
        has_labels: Whether any image has a class.
        has_captions: Whether any image has a caption.
    """

    def __init__(self, path: str) -> None:
        """Raise ImageError for a file that cannot be read as one of these."""
        self._annotations: dict[str, Annotation] = {}
        for row in _rows(Path(path)):
            name, label, caption = (_first(row, names) for names in (_NAMES, _CLASSES, _CAPTIONS))
            if name is None or (label is None and caption is None):
                columns = printable(str(list(row)))
                raise ImageError(
                    f"{printable(path)}: expected columns file_name, and label or caption, found {columns}"
                )
            cells = [cell for cell in (label, caption) if cell is not None]
            if odd := [cell for cell in cells if not isinstance(cell, str | int | float)]:
                found = printable(f"{str(odd[0])[:80]} for {name}")
                raise ImageError(f"{printable(path)}: expected a class or caption as a number or text, found {found}")
            entry = Annotation(class_of(label), None if caption is None else escaped(str(caption)))
            if self._annotations.setdefault(str(name), entry) != entry:
                name = printable(str(name))
                raise ImageError(f"{printable(path)}: expected one class and one caption of {name}, found several")
        self.has_labels = any(entry.label is not None for entry in self._annotations.values())
        self.has_captions = any(entry.caption is not None for entry in self._annotations.values())

    def __getitem__(self, name: str) -> Annotation:
        """Return what is said of an image; nothing where it is not in the file."""
        found = self._annotations.get(name) or self._annotations.get(name.rsplit(".", 1)[0])
        return found or Annotation(None, None)

    def __contains__(self, name: str) -> bool:
        return self[name] != Annotation(None, None)


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        if path.suffix == ".parquet":
            yield from parquet()[1].read_table(path).to_pylist()
        elif path.suffix == ".json":
            found = json.loads(path.read_text(encoding="utf-8-sig"))
            found = found.get("labels", found) if isinstance(found, dict) else found
            pairs = found.items() if isinstance(found, dict) else found
            yield from (
                row if isinstance(row, dict) else dict(zip(("name", "label"), row, strict=True)) for row in pairs
            )
        else:
            with path.open(newline="", encoding="utf-8-sig") as file:
                yield from csv.DictReader(file)
    except (OSError, ValueError, TypeError, csv.Error) as error:  # pyarrow's errors are of these classes
        raise ImageError(
            f"{printable(str(path))}: expected CSV, JSON or Parquet with labels, found {reason_of(error)}"
        ) from error


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if name in row), None)


def class_of(value: object) -> Label:
    """Return the class that a cell or a ``.cls`` file states, or None.

    Whole numbers stay numbers, also as words and with a fraction of 0; nothing, NaN, "" and -1 stand for no class.
    """
    words = "" if value is None else str(value).strip()
    if words.lower() in ("", "nan"):
        return None
    if whole := re.fullmatch(r"(-?[0-9]{1,18})(\.0*)?", words):
        return int(whole[1]) if int(whole[1]) >= 0 else None
    return words


def folder_of(name: str) -> str | None:
    """Return the name of the folder that holds an image, or of a class's tar file in ImageNet's tar of tars."""
    parts = [part for part in name.split("/")[:-1] if part not in ("", ".", "..")]
    return (parts[-1].removesuffix(".tar") or None) if parts else None


def class_order(labels: Iterable[Label]) -> list[str]:
    """Return the names of the classes by number: whole numbers are their own numbers, words are sorted."""
    found = {label for label in labels if label is not None}
    numbers = [label for label in found if isinstance(label, int)]
    if numbers and len(numbers) == len(found):
        large = max(numbers) >= MOST_CLASSES  # identifiers more than numbers of classes
        return [str(number) for number in (sorted(numbers) if large else range(max(numbers) + 1))]
    return sorted(map(str, found))


class LabelColumn:
    """The class of each image, gathered in little memory."""

    def __init__(self) -> None:
        self._ids: dict[Label, int] = {}
        self._column = array("i")

    def add(self, label: Label) -> None:
        self._column.append(NO_LABEL if label is None else self._ids.setdefault(label, len(self._ids)))

    @property
    def kinds(self) -> int:
        """Number of classes."""
        return len(self._ids)

    def numbered(self, fixed: Sequence[str] = ()) -> tuple[np.ndarray, list[str]]:
        """Return the number of each image's class, -1 for none, and the names of the classes, ``fixed`` if given."""
        classes = list(fixed) or class_order(self._ids)
        numbers = {name: k for k, name in enumerate(classes)}
        new = np.array([numbers[str(label)] for label in self._ids] + [NO_LABEL], np.int32)
        return new[np.asarray(self._column, np.int64)], classes
