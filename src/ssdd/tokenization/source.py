"""What is tokenized: images in a fixed order, under names that do not depend on where the data lie, with classes."""

import fnmatch
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..data.folder import FolderSource
from ..data.hugging_face import HuggingFaceSource
from ..data.names import PackedNames
from ..data.sources import ImageSource, open_source
from ..data.tar import TarSource

LabelRule = Literal["auto", "folder", "none"]
NO_LABEL = -1


class LabelledSource:
    """The images of folders, tar files and Hugging Face data sets, or those whose names fit a pattern.

    Names are relative to the path that holds them: ``caltech101/ibis/image_0001.jpg``; of a tar file its members'
    names, of a data set ``NAME:SPLIT[row]``. So the same data elsewhere are the same data.

    Attributes:
        classes: sorted names of the folders that hold the images (in tar files too), or what the column ``label`` of
            a data set names, in its order; empty without labels.
    """

    def __init__(self, paths: Sequence[str], only: str | None = None, labels: LabelRule = "auto") -> None:
        """
        Args:
            paths: as ``open_source`` takes them.
            only: a pattern like ``caltech101/*`` for names; ``*`` stands for slashes as well.
            labels: ``folder``: required; ``none``: not wanted; ``auto``: if there are at least two classes.

        Raises:
            ImageError: as ``open_source``.
            ValueError: no name fits ``only``, or there are no classes though they are required.
        """
        self._source = open_source(paths)
        names: list[str] = []
        classes: list[str | None] = []
        fixed: list[list[str]] = []
        for path, source in zip(paths, self._source.sources, strict=True):
            names += list(_names(path, source))
            found = _classes(path, source, names[len(names) - len(source) :])
            classes += found
            fixed.append(source.class_names() if isinstance(source, HuggingFaceSource) else [])
        chosen = [i for i, name in enumerate(names) if only is None or fnmatch.fnmatchcase(name, only)]
        if not chosen:
            raise ValueError(f"expected names like {only!r} (--only), found none; the first name is {names[0]!r}")
        self._chosen = np.array(chosen, np.int64)
        self._names = PackedNames(names[i] for i in chosen)
        self.classes = _class_list([classes[i] for i in chosen], fixed[0] if len(fixed) == 1 else [], labels, paths)
        numbers = {name: k for k, name in enumerate(self.classes)}
        self._labels = np.array([numbers.get(classes[i] or "", NO_LABEL) for i in chosen], np.int64)

    def __len__(self) -> int:
        return len(self._chosen)

    def name(self, index: int) -> str:
        return self._names[index]

    def label(self, index: int) -> int | None:
        """Index into ``classes``; None for an image without a class."""
        label = int(self._labels[index])
        return None if label == NO_LABEL else label

    def key(self, index: int) -> str:
        return self.name(index)

    def content(self, index: int) -> bytes:
        """The encoded image, as in its file. Raises ImageError."""
        return self._source.content(int(self._chosen[index]))

    def read(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3). Raises ImageError."""
        return self._source.read(int(self._chosen[index]))

    def is_gone(self, index: int) -> bool:
        """Whether the file of an image, or the tar file that it is in, is there no more: not unreadable, but lost."""
        at = int(self._chosen[index])
        for source in self._source.sources:
            if at < len(source):
                break
            at -= len(source)
        else:
            raise IndexError(f"expected an index below {len(self)}, found {index}")
        if isinstance(source, FolderSource):
            return not os.path.lexists(source.name(at))
        return isinstance(source, TarSource) and not source.path.exists()

    def full_name(self, index: int) -> str:
        """With the path that holds it, as in errors."""
        return self._source.name(int(self._chosen[index]))

    def describe(self) -> dict[str, Any]:
        """How many images, and sha256 of their names and labels in order."""
        digest = hashlib.sha256()
        for i in range(len(self)):
            digest.update(f"{self._names[i]}\0{self._labels[i]}\0".encode("utf-8", "surrogateescape"))
        return {"images": len(self), "names_sha256": digest.hexdigest()}


def _names(path: str, source: ImageSource) -> Iterator[str]:
    folder = f"{Path(path)}".rstrip("/") + "/"  # the current one's names have no such prefix
    for i in range(len(source)):
        name = source.name(i)
        if isinstance(source, FolderSource):
            yield name.removeprefix(folder)
        elif isinstance(source, TarSource):
            yield name.removeprefix(f"{source.path}:")
        else:
            yield name.rsplit("/", 1)[-1]


def _classes(path: str, source: ImageSource, names: Sequence[str]) -> Sequence[str | None]:
    """The class of each image by name; None where it has none."""
    if isinstance(source, HuggingFaceSource):
        return source.classes()
    top = Path(path).resolve().name if isinstance(source, FolderSource) else ""
    return [(_folder(name) or top or None) for name in names]


def _folder(name: str) -> str:
    parts = [part for part in name.split("/")[:-1] if part not in ("", ".", "..")]
    return parts[-1].removesuffix(".tar") if parts else ""  # ImageNet's classes are tar files in a tar file


def _class_list(
    classes: Sequence[str | None], fixed: Sequence[str], rule: LabelRule, paths: Sequence[str]
) -> list[str]:
    if rule == "none":
        return []
    found = sorted({name for name in classes if name is not None})
    if rule == "auto" and len(found) < 2:
        return []
    if not found:
        raise ValueError(f"expected images in folders that name their class in {', '.join(paths)}, found none")
    return list(fixed) or found
