"""Output files that are either complete or absent, and never replaced by accident; one writer in a folder."""

import fcntl
import json
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

logger = logging.getLogger(__name__)

LOCK = ".lock"
"""Held by the one process that writes in a folder."""


class OutputExists(FileExistsError):
    """An output file exists already and may not be replaced. The message is one line that names the file."""


@contextmanager
def atomic_path(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write to; put it in place as `path` when the block ends well.

    The temporary lies in the same folder (which is created), is hidden, belongs to this call alone and ends
    like `path`, so that a writer may read the format off its suffix. The block must create it. When the block
    ends, the file is flushed to the disk and appears under `path` in one step; when the block raises, the
    temporary is removed.

    Without `overwrite` an existing `path` is never replaced, not even one that appears while the block runs.

    Raises:
        OutputExists: `path` exists and `overwrite` is false; before the block where that can be known.
        IsADirectoryError: `path` is a folder.
        OSError: the folder or the file cannot be written.
    """
    target = Path(path)
    if os.path.isdir(target):
        raise IsADirectoryError(f"{target} is a folder; expected the path of a file to write")
    if not overwrite and os.path.lexists(target):
        raise _exists(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    # 50 characters are at most 200 bytes, so the whole name stays within the usual limit of 255 bytes.
    temporary = target.with_name(f".{os.getpid()}-{secrets.token_hex(6)}-{target.name[-50:]}")
    try:
        yield temporary
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        if overwrite:
            os.replace(temporary, target)
        else:
            _place_new(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any, overwrite: bool = True) -> None:
    """Write a value as readable JSON. Raises as ``atomic_path``."""
    with atomic_path(path, overwrite) as new:
        new.write_text(json.dumps(value, indent=2) + "\n")


def _place_new(temporary: Path, target: Path) -> None:
    """Give `temporary` the name `target`, or raise `OutputExists`: check and act are one step."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise _exists(target) from None
    except OSError:
        # Some file systems have no hard links: claim the name with an empty file, then replace our own claim.
        _claim_and_replace(temporary, target)


def _claim_and_replace(temporary: Path, target: Path) -> None:
    try:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        raise _exists(target) from None
    try:
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            target.unlink()
        raise


def _exists(target: Path) -> OutputExists:
    return OutputExists(f"{target} exists already; pass --overwrite to replace it")


def share(path: Path) -> None:
    """Give `path` the permissions of an ordinary new file: safetensors' own writer makes it private."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


@contextmanager
def only_one(folder: Path, work: str = "trained", part: str | None = None) -> Iterator[None]:
    """Hold the lock of a folder, which is made if it is new and removed again if nothing came of it.

    Args:
        work: what is done there, for the error.
        part: name of a part of the work, whose lock is held beside one of the folder that parts share.

    Raises:
        ValueError: another process does it.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        locks = [(LOCK, fcntl.LOCK_EX if part is None else fcntl.LOCK_SH)]
        if part is not None:
            locks.append((f"{LOCK}-{part}", fcntl.LOCK_EX))
        for name, kind in locks:
            file = stack.enter_context((folder / name).open("w"))
            try:
                lock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError as error:
                line = f"{folder} is being {work} by another process: wait, or choose another --out"
                raise ValueError(line) from error
        try:
            yield
        finally:
            if part is None and [path.name for path in folder.iterdir()] == [LOCK]:
                (folder / LOCK).unlink()
                for path in made:
                    if not any(path.iterdir()):
                        path.rmdir()


@contextmanager
def one_after_another(folder: Path, part: str | None = None) -> Iterator[None]:
    """Wait until no other process holds the lock of an existing folder, or of a named part of it, and hold it."""
    with (folder / (LOCK if part is None else f"{LOCK}-{part}")).open("w") as file:
        lock(file, fcntl.LOCK_EX)
        yield


def lock(file: IO[str], kind: int) -> None:
    """Lock an open file, until it is closed; say so where the file system has no locks (some of Lustre and NFS).

    Raises BlockingIOError where another process holds it and the kind has ``LOCK_NB``.
    """
    try:
        fcntl.flock(file, kind)
    except BlockingIOError:
        raise
    except OSError as error:
        folder = Path(file.name).parent
        logger.warning("%s cannot be locked (%s): use it with one command only", folder, error)
