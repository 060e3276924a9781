"""Where shards are written: a folder of this machine, or one elsewhere (fsspec). Files appear whole or not at all."""

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ..data.images import reason_of
from ..files import atomic_path
from .format import MANIFEST, PLAN, SUFFIXES
from .inputs import file_system, is_remote, retried

T = TypeVar("T")
_TEMPORARY = re.compile(
    rf"\.[0-9]+-[0-9a-f]{{12}}-"
    rf"(shard-(?P<number>[0-9]{{6}})\.(json|{'|'.join(SUFFIXES.values())})|{re.escape(PLAN)}|{re.escape(MANIFEST)})"
)


class LocalOutput:
    """A folder of this machine. Temporary files lie beside their place, hidden, and are flushed before they are named.

    folder: where it lies; None elsewhere.
    """

    def __init__(self, folder: Path) -> None:
        self.folder: Path | None = folder
        self._root = folder

    def __str__(self) -> str:
        return str(self._root)

    def writing(self, name: str) -> AbstractContextManager[Path]:
        """Return a context with a path to write to, which becomes the file when it ends well. Raises OSError."""
        return guarded(self.label(name), atomic_path(self._root / name, overwrite=True))

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError."""
        return (self._root / name).read_bytes()

    def size(self, name: str) -> int | None:
        """Return the bytes of a file; None where there is none."""
        path = self._root / name
        return path.stat().st_size if path.is_file() else None

    def names(self) -> list[str]:
        return [path.name for path in self._root.iterdir()]

    def remove(self, name: str) -> None:
        with one_line(self.label(name)):
            (self._root / name).unlink(missing_ok=True)

    def label(self, name: str) -> str:
        return str(self._root / name)

    def remove_temporaries(self, part: int, parts: int) -> None:
        """Remove what a killed process left of the shards of a part."""
        for path in self._root.iterdir():
            found = _TEMPORARY.fullmatch(path.name)
            if found and (parts == 1 or (found["number"] and int(found["number"]) % parts == part)):
                path.unlink(missing_ok=True)


class RemoteOutput:
    """A folder elsewhere. Files are written on this machine, then sent whole."""

    def __init__(self, address: str) -> None:
        self.folder: Path | None = None
        self._address = address.rstrip("/")
        self._system, self._root = file_system(self._address)

    def __str__(self) -> str:
        return self._address

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="ssdd-") as folder:
            path = Path(folder) / name
            yield path
            self._ask(name, lambda place: self._put(path, place), "write")

    def _put(self, path: Path, place: str) -> None:
        try:
            self._system.put_file(str(path), place)
        except FileNotFoundError:  # where folders have to be made
            self._system.makedirs(self._root, exist_ok=True)
            self._system.put_file(str(path), place)

    def read(self, name: str) -> bytes:
        if self.size(name) is None:
            raise FileNotFoundError(f"{self.label(name)}: expected this file, found none")
        return bytes(self._ask(name, self._system.cat_file))

    def size(self, name: str) -> int | None:
        def ask(place: str) -> int | None:
            return int(self._system.info(place)["size"]) if self._system.exists(place) else None

        self._system.invalidate_cache()
        size: int | None = self._ask(name, ask)
        return size

    def names(self) -> list[str]:
        def ask(place: str) -> list[str]:
            return self._system.ls(place, detail=False) if self._system.exists(place) else []

        self._system.invalidate_cache()
        return [str(path).rsplit("/", 1)[-1] for path in self._ask("", ask)]

    def remove(self, name: str) -> None:
        if self.size(name) is not None:
            self._ask(name, self._system.rm_file, "write")

    def _ask(self, name: str, work: Callable[[str], Any], verb: str = "read") -> Any:
        """Return what ``work`` returns for the place of a file, see ``retried``."""
        return retried(self.label(name), lambda: work(f"{self._root}/{name}".rstrip("/")), verb)

    def label(self, name: str) -> str:
        return f"{self._address}/{name}".rstrip("/")

    def remove_temporaries(self, part: int, parts: int) -> None:
        """Nothing: they lie in temporary folders of this machine."""


Output = LocalOutput | RemoteOutput


def open_output(place: str | Path) -> Output:
    """Raises NotADirectoryError for a file, ImportError for a missing package."""
    if is_remote(str(place)):
        return RemoteOutput(str(place))
    folder = Path(place)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder}: expected a folder for the shards, found a file")
    return LocalOutput(folder)


@contextmanager
def one_line(label: str) -> Iterator[None]:
    """An OSError of this block is one line that names the file that was to be written."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{label}: expected to write it, found: {reason_of(error)}") from error


@contextmanager
def guarded(label: str, context: AbstractContextManager[T]) -> Iterator[T]:
    """The context of a file whose own begin and end are ``one_line``, but not the block."""
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
