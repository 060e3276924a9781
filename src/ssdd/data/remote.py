"""Data and output that lie elsewhere, by fsspec: ``s3://``, ``gs://``, ``http://``, ..."""

import errno
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from .images import ImageError, ImageReadError, printable, reason_of
from .packages import require

ATTEMPTS = 4
"""How often a file that lies elsewhere is asked for, with growing pauses, before it is named."""
_PAUSE_SECONDS = 0.5
T = TypeVar("T")


def is_remote(path: str) -> bool:
    """Whether a path lies elsewhere (``hf:`` is a data set)."""
    return "://" in path


def file_system(address: str) -> tuple[Any, str]:
    """Return the fsspec file system of an address, and the path in it. Raises ImportError for a missing package."""
    fsspec = require("fsspec.core", "remote paths need fsspec", "ssdd[remote]")
    try:
        system, path = fsspec.url_to_fs(address)
    except ImportError as error:
        raise ImportError(f"{printable(address)}: {reason_of(error)}: pip install 'ssdd[remote]'") from error
    except ValueError as error:
        raise ImageError(
            f"{printable(address)}: expected an address that fsspec knows, found {reason_of(error)}"
        ) from error
    return system, path


@contextmanager
def local_copy(address: str) -> Iterator[Path]:
    """Yield a file of this machine with the content: the file itself, or a copy for as long as the block lasts.

    Raises:
        ImageError: There is none.
        ImageReadError: It cannot be read.
    """
    if not is_remote(address):
        yield Path(address)
        return
    system, path = file_system(address)
    with tempfile.TemporaryDirectory(prefix="ssdd-") as temporary:
        target = Path(temporary) / "input"
        retried(address, lambda: system.get_file(path, str(target)))
        yield target


def remote_content(address: str) -> bytes:
    """Return the bytes of a remote file. Raises as ``local_copy``."""
    system, path = file_system(address)
    content: bytes = retried(address, lambda: system.cat_file(path))
    return content


def retried(address: str, work: Callable[[], T], verb: str = "read") -> T:
    """Return what ``work`` returns, in several attempts where a connection breaks or a server fails.

    Args:
        address: Named in errors.
        work: What asks the storage.
        verb: What it does there, for errors: ``read`` or ``write``.

    Raises:
        ImageError: There is nothing at the address.
        ImageReadError: No permission or credentials, or no answer in any of the attempts.
    """
    attempt = 1
    while True:
        try:
            return work()
        except Exception as error:  # whatever the storage and the network raise
            cause = _cause(error)
            if isinstance(cause, FileNotFoundError) or _status(cause) == 404:
                raise ImageError(f"{printable(address)}: expected a file, found none") from error
            if not _may_pass(cause) or attempt == ATTEMPTS:
                found = f"found in {ATTEMPTS} attempts:" if _may_pass(cause) else "found"
                line = f"{printable(address)}: expected to {verb} it, {found} {reason_of(cause)}"
                raise ImageReadError(line) from error
            time.sleep(_PAUSE_SECONDS * 4 ** (attempt - 1))
            attempt += 1


def _cause(error: BaseException) -> BaseException:
    """Return the error behind another: fsspec says "not found" for whatever an HTTP server answers."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and cause and (isinstance(cause, OSError) or _status(cause)):
        return cause
    return error


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of an error of aiohttp, gcsfs or botocore; None where it has none."""
    answer = getattr(error.__cause__ or error, "response", None)
    if isinstance(answer, dict):
        return answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    status = getattr(error, "status", None) or getattr(error, "code", None)
    return status if isinstance(status, int) else None


def _may_pass(error: BaseException) -> bool:
    """Whether another attempt may succeed: not without permission, credentials, or room on this machine's disk."""
    if isinstance(error, (PermissionError, ImportError)) or "Credential" in type(error).__name__:
        return False
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return False
    status = _status(error)
    return status is None or status >= 500 or status in (408, 429)
