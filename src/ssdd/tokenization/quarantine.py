"""Images whose decoder ends the whole process: found again after the crash, and left out.

Each thread that reads notes which image it is at. The notes of a shard that was not finished name the suspects; each is
read once more in a process of its own, and if that ends by a signal too, the image is skipped.
"""

import mmap
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..data.images import use_own_limit

_SLOTS = 64


class ReadingNotes:
    """Which image each thread of this process is reading.

    Args:
        notes: 64-bit numbers in a mapped file, which outlives the process: that of a thread's image + 1, or 0.
    """

    def __init__(self, notes: memoryview) -> None:
        self._notes, self._lock = notes, threading.Lock()
        self._slots: dict[int, int] = {}

    @contextmanager
    def reading(self, image: int) -> Iterator[None]:
        """Note an image for as long as the block lasts."""
        with self._lock:
            slot = self._slots.setdefault(threading.get_ident(), len(self._slots) % _SLOTS)
        self._notes[slot] = image + 1
        try:
            yield
        finally:
            self._notes[slot] = 0


@contextmanager
def reading_notes(folder: Path | None, plan: str, number: int) -> Iterator[tuple[ReadingNotes, list[int]]]:
    """Yield the notes of a shard of a plan, and the images that earlier processes were reading when they died.

    These stay in the file until the shard is there: where several images end a process, each ends another one.

    Args:
        folder: The output; None where that is not on this machine, which then keeps notes of its own.
        plan: Digest of the plan.
        number: Number of the shard.
    """
    path = (folder or _private_folder(plan)) / f".reading-{number:06d}"
    suspects: list[int] = []
    if path.is_file():
        suspects = sorted({value - 1 for value in np.fromfile(path, np.int64).tolist() if value})
    with path.open("w+b") as file:
        file.write(bytes(8 * _SLOTS))  # not a hole, whose first use on a full disk would be a signal
        file.write((np.array(suspects, np.int64) + 1).tobytes())
        file.flush()
        with mmap.mmap(file.fileno(), 8 * _SLOTS) as mapped, memoryview(mapped) as view, view.cast("q") as notes:
            try:
                yield ReadingNotes(notes), suspects
            finally:
                path.unlink(missing_ok=True)


def _private_folder(plan: str) -> Path:
    """Return a folder of this user's among temporary files. Raises PermissionError where somebody else made it."""
    folder = Path(tempfile.gettempdir()) / f"ssdd-{os.getuid()}-{plan[:16]}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder}: expected a folder of this user, found somebody else's: remove it")
    return folder


def crashing(read: Callable[[int], object], suspects: list[int]) -> dict[int, str]:
    """Return those of these images that end a process which reads them, with the name of the signal.

    Args:
        read: Reads an image; it is sent to a new process.
        suspects: Numbers of the images.
    """
    found: dict[int, str] = {}
    for image in suspects:
        process = multiprocessing.get_context("spawn").Process(target=_read, args=(read, image), daemon=False)
        process.start()
        process.join()
        if process.exitcode is not None and process.exitcode < 0:
            found[image] = signal.Signals(-process.exitcode).name
    return found


def _read(read: Callable[[int], object], image: int) -> None:
    use_own_limit()
    try:
        read(image)
    except Exception:  # an error is no crash: it is met again, and named, where the shard is made
        os._exit(0)
