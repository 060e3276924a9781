"""Names: their natural order, and a long list of them in little memory."""

import re
from collections.abc import Iterable

import numpy as np


def natural_order(name: str) -> list[tuple[str, int]]:
    """Return the key by which names sort as people sort them: 2 before 10, numbers before words."""
    return [("", int(part)) if part.isdecimal() else (part, 0) for part in re.findall(r"[0-9]+|[^0-9]+", name)]


class PackedNames:
    """Names by index, held as one piece of memory.

    A million Python strings would take several times the memory, and each worker that a process forks would soon
    have its own copy of them, because looking at a Python object writes its reference count.
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self._bytes = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        """Raises IndexError for an index outside [0, len)."""
        if not 0 <= index < len(self):
            raise IndexError(f"expected an index from 0 to {len(self) - 1}, found {index}")
        name = self._bytes[self._ends[index] : self._ends[index + 1]]
        return name.decode("utf-8", "surrogateescape")
