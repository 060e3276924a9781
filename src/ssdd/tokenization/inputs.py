"""What the user names -> paths: list files, brace patterns, folders of shards, and what lies elsewhere (fsspec)."""

import contextlib
import errno
import glob
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from ..data.find import IMAGE_SUFFIXES, check_left_out
from ..data.hugging_face import PREFIX, stream_shards, streaming_path
from ..data.images import ImageError, ImageReadError, printable, reason_of
from .format import PLAN

SHARD_SUFFIXES = (".tar", ".parquet")
ATTEMPTS = 4
"""How often a file that lies elsewhere is asked for, with growing pauses, before it is named."""
_PAUSE_SECONDS = 0.5
T = TypeVar("T")


def expand(paths: Sequence[str]) -> list[str]:
    """Return what these stand for, in order.

    ``@FILE`` lists one a line, ``@-`` standard input; ``{000..123}`` and ``{a,b}`` are expanded; of a folder that has
    shards (tar or Parquet files) and no images, the shards; of a remote folder or a pattern with ``*``, its files; of a
    data set that is streamed, its shards.

    Raises:
        ImageError: a list or a folder that is missing or empty.
        ImportError: a package that a remote path needs is missing.
    """
    found: list[str] = []
    for path in paths:
        for named in _listed(path):
            for each in _braces(named):
                found += _inside(each)
    return found


def _listed(path: str) -> list[str]:
    if path == "-":
        raise ImageError(
            "-: expected paths, found standard input: @- reads a list of them there, one a line; a tar file has to lie "
            "in a folder or at an address"
        )
    if not path.startswith("@"):
        return [path]
    name = path[1:]
    try:
        lines = sys.stdin.read() if name == "-" else Path(name).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(
            f"{printable(name)}: expected a list of paths, one a line, found {reason_of(error)}"
        ) from error
    found = [line.strip() for line in lines.splitlines() if line.strip()]
    if not found:
        raise ImageError(f"{printable(name)}: expected a list of paths, one a line, found none")
    return found


def _braces(path: str) -> list[str]:
    if "{" not in path or Path(path).exists():
        return [path]
    from braceexpand import braceexpand

    try:
        return list(braceexpand(path))
    except ValueError as error:
        raise ImageError(f"{printable(path)}: expected balanced braces, found others") from error


def _inside(path: str) -> list[str]:
    if streaming_path(path):
        return [f"{path}#{number}" for number in range(stream_shards(path)[0])]
    if path.startswith(PREFIX):
        return [path]
    if is_remote(path):
        return _remote_files(path) if "*" in path or not is_shard(path) else [path]
    folder = Path(path)
    if "*" in path and not folder.exists():
        return sorted(found for found in glob.glob(path) if is_shard(found)) or [path]
    if not folder.is_dir():
        return [path]
    visible = [p for p in folder.iterdir() if p.name[0] != "."]
    shards = sorted(str(p) for p in visible if is_shard(p.name) and not p.is_dir())
    others = [p for p in visible if not is_shard(p.name) or p.is_dir()]
    if not shards or any(map(_may_be_data, others)):
        return [path]
    check_left_out([path], len(shards), Counter(p.suffix or "without extension" for p in others))
    return shards


def _may_be_data(path: Path) -> bool:
    if path.is_dir():
        return not (path / PLAN).is_file()  # a set that is made inside the folder
    return path.suffix.lower() in IMAGE_SUFFIXES or path.name in ("dataset_info.json", "state.json")


def is_shard(path: str) -> bool:
    """Whether a path is that of a tar or Parquet file, or of a shard of a data set that is streamed."""
    return is_stream_shard(path) or split_columns(path)[0].split("?")[0].lower().endswith(SHARD_SUFFIXES)


def is_stream_shard(path: str) -> bool:
    """Whether ``expand`` made this of a data set that is streamed: ``hf:OWNER/NAME:SPLIT?streaming#NUMBER``."""
    return streaming_path(path.rpartition("#")[0])


def split_columns(path: str) -> tuple[str, dict[str, str]]:
    """Return a path without ``?image=COLUMN&label=COLUMN``, and these; any other query belongs to the address."""
    place, _, query = path.partition("?")
    columns = dict(parse_qsl(query))
    return (place, columns) if columns and set(columns) <= {"image", "label"} else (path, {})


def is_remote(path: str) -> bool:
    """Whether a path lies elsewhere: ``s3://``, ``gs://``, ``http://``, ... (but ``hf:`` is a data set)."""
    return "://" in path


def file_system(address: str) -> tuple[Any, str]:
    """Return the fsspec file system of an address, and the path in it. Raises ImportError for a missing package."""
    fsspec = _package()
    try:
        found, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise ImportError(f"{printable(address)}: {reason_of(error)}: pip install 'ssdd[remote]'") from error
    except ValueError as error:
        raise ImageError(
            f"{printable(address)}: expected an address that fsspec knows, found {reason_of(error)}"
        ) from error
    return found, path


def _remote_files(address: str) -> list[str]:
    """The shards of a remote folder or pattern; without any, its images."""
    system, path = file_system(address)
    names = retried(address, lambda: system.glob(path) if "*" in path else system.find(path))
    found = sorted(system.unstrip_protocol(name) for name in names)
    shards = [name for name in found if is_shard(name)]
    images = [name for name in found if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    if not shards and not images:
        raise ImageError(f"{printable(address)}: expected tar or Parquet files, or images, found none")
    return shards or images


@contextlib.contextmanager
def local_copy(address: str, folder: Path | None = None) -> Iterator[Path]:
    """Yield a file of this machine with the content: the file itself, or a copy for as long as the block lasts.

    Raises:
        ImageError: there is none.
        ImageReadError: it cannot be read, after several attempts.
    """
    if not is_remote(address):
        yield Path(address)
        return
    system, path = file_system(address)
    with tempfile.TemporaryDirectory(prefix="ssdd-", dir=folder) as temporary:
        target = Path(temporary) / "input"

        def fetch() -> None:
            size = system.info(path).get("size")
            with (
                system.open(path, "rb", **({"block_size": 0} if _is_http(address) else {})) as source,
                target.open("wb") as file,
            ):
                shutil.copyfileobj(source, file, 1 << 22)
            if size is not None and target.stat().st_size != size:
                raise ConnectionError(f"{target.stat().st_size} of {size} bytes")

        retried(address, fetch)
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
    for attempt in range(ATTEMPTS):
        try:
            return work()
        except Exception as error:  # whatever the storage and the network raise
            cause = _cause(error)
            if isinstance(cause, FileNotFoundError) or _status(cause) == 404:
                raise ImageError(f"{printable(address)}: expected a file, found none") from error
            found = f"found {reason_of(cause)}"
            if _may_pass(cause):
                if attempt < ATTEMPTS - 1:
                    time.sleep(_PAUSE_SECONDS * 4**attempt)
                    continue
                found = f"found in {ATTEMPTS} attempts: {reason_of(cause)}"
            raise ImageReadError(f"{printable(address)}: expected to {verb} it, {found}") from error
    raise AssertionError("unreachable")


def _cause(error: BaseException) -> BaseException:
    """Return the error behind another: fsspec says "not found" for whatever an HTTP server answers."""
    return error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of an error of aiohttp, gcsfs or botocore; None where it has none."""
    answer = getattr(error if error.__cause__ is None else error.__cause__, "response", None)
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


def _is_http(address: str) -> bool:
    return address.startswith(("http://", "https://"))  # streamed: not every server knows ranges


def _package() -> ModuleType:
    try:
        import fsspec.core
    except ImportError as error:
        raise ImportError("remote paths need fsspec: pip install 'ssdd[remote]'") from error
    return fsspec
