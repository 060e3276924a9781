"""Labels and captions from a file beside the images, and the numbers of classes."""

import csv
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.images import ImageError, printable, reason_of
from .format import Label
from .sources import Annotation, class_of, pyarrow_and_parquet

NO_LABEL = -1
MOST_CLASSES = 1 << 20
_NAMES = ("file_name", "filename", "name", "key", "image")
_CLASSES = ("label", "class", "cls")
_CAPTIONS = ("caption", "text", "txt")


class LabelFile:
    """Classes and captions by the name of the image, with or without its extension.

    CSV with a header, JSON (a list of objects, an object name -> class, or ``{"labels": [[name, class], ...]}``), or
    Parquet; columns ``file_name``, and ``label``, ``caption`` or both.

    has_labels, has_captions: whether any image has one.
    """

    def __init__(self, path: str) -> None:
        """Raises ImageError for a file that cannot be read as one of these."""
        self._path = path
        self._found: dict[str, Annotation] = {}
        for row in _rows(Path(path)):
            name, label, caption = (_first(row, names) for names in (_NAMES, _CLASSES, _CAPTIONS))
            if name is None or (label is None and caption is None):
                raise ImageError(
                    f"{printable(path)}: expected columns file_name, and label or caption, found "
                    f"{printable(str(list(row)))}"
                )
            value = class_of(label)
            self._found[str(name)] = Annotation(value, None if caption is None else str(caption))
        self.has_labels = any(entry.label is not None for entry in self._found.values())
        self.has_captions = any(entry.caption is not None for entry in self._found.values())

    def __getitem__(self, name: str) -> Annotation:
        """Return what is said of an image; nothing where it is not in the file."""
        found = self._found.get(name) or self._found.get(name.rsplit(".", 1)[0])
        return found or Annotation(None, None)


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        if path.suffix == ".parquet":
            yield from pyarrow_and_parquet()[1].read_table(path).to_pylist()
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
