"""Names: their natural order, and a long list of them in little memory."""

import re
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np


def natural_order(name: str) -> list[tuple[str, int]]:
    """Return the key by which names sort as people sort them: 2 before 10, numbers before words."""
    return [("", int(part)) if part.isdecimal() else (part, 0) for part in re.findall(r"[0-9]+|[^0-9]+", name)]


class PackedNames:
    """Names by index, held as one piece of memory, or of a file.

    A million Python strings would take several times the memory, and each worker that a process forks would soon
    have its own copy of them, because looking at a Python object writes its reference count.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._bytes: Any = bytearray()
        self._ends: Any = array("q", [0])
        for name in names:
            self.append(name)

    @classmethod
    def open(cls, folder: Path, name: str) -> "PackedNames":
        """Map saved names into memory."""
        names = cls()
        names._bytes, names._ends = (np.load(folder / f"{name}{part}.npy", mmap_mode="r") for part in ("", "-ends"))
        return names

    def append(self, name: str) -> None:
        self._bytes += name.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        """Raise IndexError for an index outside [0, len)."""
        return self.encoded(index).decode("utf-8", "surrogateescape")

    def encoded(self, index: int) -> bytes:
        """Return a name as its bytes."""
        if not 0 <= index < len(self):
            raise IndexError(f"expected an index from 0 to {len(self) - 1}, found {index}")
        return bytes(self._bytes[self._ends[index] : self._ends[index + 1]])

    def taken(self, order: Iterable[int]) -> "PackedNames":
        """Return the names in another order."""
        return PackedNames(self[index] for index in order)

    def save(self, folder: Path, name: str) -> None:
        """Write two files, which ``open`` reads."""
        np.save(folder / f"{name}.npy", np.frombuffer(self._bytes, np.uint8))
        np.save(folder / f"{name}-ends.npy", np.asarray(self._ends))
