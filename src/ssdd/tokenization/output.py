"""Where shards are written: a folder of this machine, or one elsewhere (fsspec). Files appear whole or not at all."""

import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

from ..data.images import reason_of
from ..data.remote import file_system, is_remote, retried
from ..runtime.files import atomic_path
from .format import MANIFEST, PLAN, SUFFIXES

T = TypeVar("T")
_TEMPORARY = re.compile(
    rf"\.[0-9]+-[0-9a-f]{{12}}-"
    rf"(shard-(?P<number>[0-9]{{6}})\.(json|{'|'.join(SUFFIXES.values())})|{re.escape(PLAN)}|{re.escape(MANIFEST)})"
)


class Output(ABC):
    """A folder to write to.

    Attributes:
        folder: Where it lies on this machine; None elsewhere.
    """

    folder: Path | None = None

    def __str__(self) -> str:
        return self.label("")

    @abstractmethod
    def label(self, name: str) -> str:
        """Return the path or address of a file, for messages; for "" that of the folder."""

    @abstractmethod
    def writing(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Return a context with an open file, which gets its name when the context ends well. Raises OSError."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Raise FileNotFoundError."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Return the bytes of a file; None where there is none."""

    @abstractmethod
    def names(self) -> list[str]: ...

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    @abstractmethod
    def remove_temporaries(self, part: int, parts: int) -> None:
        """Remove what a killed process left of the shards of a part."""

    def write(self, name: str, content: bytes) -> None:
        with self.writing(name) as file, one_line(self.label(name)):
            file.write(content)


class LocalOutput(Output):
    """A folder of this machine. Temporary files lie beside their place, hidden; they are flushed, then named."""

    def __init__(self, folder: Path) -> None:
        self.folder: Path = folder

    def label(self, name: str) -> str:
        return str(self.folder / name)

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        label = self.label(name)
        with (
            _guarded(label, atomic_path(self.folder / name, overwrite=True)) as path,
            _guarded(label, path.open("w+b")) as file,
        ):
            yield file

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def size(self, name: str) -> int | None:
        path = self.folder / name
        return path.stat().st_size if path.is_file() else None

    def names(self) -> list[str]:
        return os.listdir(self.folder)

    def remove(self, name: str) -> None:
        with one_line(self.label(name)):
            (self.folder / name).unlink(missing_ok=True)

    def remove_temporaries(self, part: int, parts: int) -> None:
        for name in self.names():
            found = _TEMPORARY.fullmatch(name)
            if found and (parts == 1 or (found["number"] and int(found["number"]) % parts == part)):
                (self.folder / name).unlink(missing_ok=True)


class RemoteOutput(Output):
    """A folder elsewhere. Files are written on this machine, then sent whole."""

    def __init__(self, address: str) -> None:
        self._address = address.rstrip("/")
        self._system, self._root = file_system(self._address)

    def label(self, name: str) -> str:
        return f"{self._address}/{name}".rstrip("/")

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        def put(place: str) -> None:
            try:
                self._system.put_file(str(path), place)
            except FileNotFoundError:  # where folders have to be made
                self._system.makedirs(self._root, exist_ok=True)
                self._system.put_file(str(path), place)

        with tempfile.TemporaryDirectory(prefix="ssdd-") as folder:
            path = Path(folder) / name
            with path.open("w+b") as file:
                yield file
            self._ask(name, put, "write")

    def read(self, name: str) -> bytes:
        if self.size(name) is None:
            raise FileNotFoundError(f"{self.label(name)}: expected this file, found none")
        return bytes(self._ask(name, self._system.cat_file))

    def size(self, name: str) -> int | None:
        return self._ask_if_there(name, lambda place: int(self._system.info(place)["size"]))

    def names(self) -> list[str]:
        paths = self._ask_if_there("", lambda place: self._system.ls(place, detail=False)) or []
        return [str(path).rsplit("/", 1)[-1] for path in paths]

    def remove(self, name: str) -> None:
        if self.size(name) is not None:
            self._ask(name, self._system.rm_file, "write")

    def remove_temporaries(self, part: int, parts: int) -> None:
        """Do nothing: they lie in temporary folders of this machine."""

    def _ask(self, name: str, work: Callable[[str], T], verb: str = "read") -> T:
        """Return what ``work`` returns for the place of a file, see ``retried``."""
        return retried(self.label(name), lambda: work(f"{self._root}/{name}".rstrip("/")), verb)

    def _ask_if_there(self, name: str, work: Callable[[str], T]) -> T | None:
        self._system.invalidate_cache()
        return self._ask(name, lambda place: work(place) if self._system.exists(place) else None)


def open_output(place: str | Path) -> Output:
    """Raise NotADirectoryError for a file, ImportError for a missing package."""
    if is_remote(str(place)):
        return RemoteOutput(str(place))
    folder = Path(place)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder}: expected a folder for the shards, found a file")
    return LocalOutput(folder)


@contextmanager
def one_line(label: str) -> Iterator[None]:
    """Turn an OSError of the block into one line that names the file that was to be written."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{label}: expected to write it, found: {reason_of(error)}") from error


@contextmanager
def _guarded(label: str, context: AbstractContextManager[T]) -> Iterator[T]:
    """Enter a context whose own begin and end are ``one_line``, but not the block."""
    with one_line(label):
        value = context.__enter__()
    try:
        yield value
    except BaseException as error:
        with one_line(label):
            context.__exit__(type(error), error, error.__traceback__)
        raise
    with one_line(label):
        context.__exit__(None, None, None)
