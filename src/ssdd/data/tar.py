"""Images in tar files, read in place: an index of names and positions; nothing is ever unpacked.

Read are plain tar files, webdataset's shards among them, and a tar file of tar files, such as ImageNet's training
images as they are downloaded. Headers are read from the front to the end, each with one small read; the common ones
are parsed here, several times as fast as by ``tarfile``, which parses all others.
"""

import functools
import io
import os
import tarfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .find import LINK, kind_left_out
from .images import ImageError, ImageReadError, printable, read_failure, read_image, reason_of
from .names import PackedNames

_BLOCK = tarfile.BLOCKSIZE
_END = bytes(_BLOCK)
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
# What of a pax header can move or rename a member; times, owners and comments cannot (webdataset writes a time).
_PAX_THAT_MATTERS = (b"path=", b"size=", b"GNU.sparse")
_LONGEST_PAX = 1 << 16
_TAR = ".tar"
_CHUNK = 1 << 20
_NO_CONTENT = -1
_OPEN_FILES = 128  # a data set may have more shards than a process may have files open (often 1024, or 256)


class TarSource:
    """Image members of an uncompressed tar file, sorted by name; hidden ones are skipped, as in a folder.

    Members of a tar file inside it (one level) are listed as ``inner.tar/member``. Only the members' positions are
    read when it is opened, 24 bytes and the name for each; nothing is ever extracted to disk, so their names
    (absolute, with ``..``) do no harm. Links and sparse files are passed over, devices as well.

    ``left_out``: other members, by their extension.
    """

    def __init__(self, path: str | Path) -> None:
        """Raise ImageError if it is no tar file, a compressed one, or cut off or damaged, inside as well."""
        self.path = Path(path)
        names: list[str] = []
        offsets, sizes = array("q"), array("q")
        self.left_out: Counter[str] = Counter()
        self._version = file_version(self.path)
        with self.path.open("rb", buffering=0) as file:
            for name, offset, size, kind in tar_members(file, self.path.stat().st_size, printable(str(path))):
                if kind is not None:
                    self.left_out[kind] += 1
                    continue
                names.append(name)
                offsets.append(offset)
                sizes.append(size)
        order = sorted(range(len(names)), key=names.__getitem__)
        self._names = PackedNames(names[i] for i in order)
        self._offsets = np.array(offsets, np.int64)[order]
        self._sizes = np.array(sizes, np.int64)[order]

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return f"{self.path}:{self._names[index]}"

    def key(self, index: int) -> str:
        return self._names[index]

    def content(self, index: int) -> bytes:
        """Return the encoded image. Raises as ``read_part``."""
        offset, size = int(self._offsets[index]), int(self._sizes[index])
        return read_part(str(self.path), self._version, offset, size, self.name(index))

    def read(self, index: int) -> np.ndarray:
        """Return uint8 (H, W, 3). Raises ImageError."""
        return read_image(io.BytesIO(self.content(index)), name=self.name(index))


class OpenedFile:
    """A file opened for reading, closed when nobody refers to it any more."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def read(self, size: int, offset: int) -> bytes:
        """Read from a place. The file stays open meanwhile, which it may not after a look at ``descriptor`` alone."""
        return os.pread(self.descriptor, size, offset)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # at the very end `os` is gone
        if hasattr(self, "descriptor"):
            close(self.descriptor)


@functools.lru_cache(maxsize=_OPEN_FILES)
def opened_file(path: str, version: tuple[int, ...]) -> OpenedFile:
    """Open a file, which stays open in each process; ``pread`` has no position that forked processes would share.

    ``version`` tells the file from one that takes its place later.
    """
    return OpenedFile(path)


def file_version(path: str | Path) -> tuple[int, int, int]:
    """Return what tells a file from one that takes its place later."""
    state = os.stat(path)
    return state.st_dev, state.st_ino, state.st_mtime_ns


def read_part(path: str, version: tuple[int, ...], offset: int, size: int, name: str) -> bytes:
    """Return the bytes of a member of a tar file.

    Args:
        path: The tar file.
        version: See ``file_version``.
        offset: Where the member begins.
        size: Its bytes.
        name: Called so in errors.

    Raises:
        ImageError: It cannot be read whole, which is never the image's own fault.
    """
    try:
        content = opened_file(path, version).read(size, offset)
    except OSError as error:
        message = f"{printable(name)}: expected a readable tar file, found {reason_of(error)}"
        raise read_failure(error, message) from error
    if len(content) != size:
        raise ImageReadError(
            f"{printable(name)}: expected {size} bytes at byte {offset}, found {len(content)}: "
            "the tar file has been shortened since it was opened"
        )
    return content


class TarMember(NamedTuple):
    """A regular file that is not hidden, or a link. kind: what it is left out as; None for an image."""

    name: str
    offset: int
    size: int
    kind: str | None


def tar_members(file: io.FileIO, size: int, label: str) -> Iterator[TarMember]:
    """Yield the members of a tar file, and in place of a tar file inside it the members of that.

    Raises ImageError as ``TarSource``.
    """
    for member in _visible(file, 0, size, label):
        if member.kind != _TAR:
            yield member
            continue
        inside = f"{label}:{printable(member.name)}"
        for inner in _visible(file, member.offset, member.offset + member.size, inside):
            if inner.kind == _TAR:
                raise ImageError(
                    f"{inside}: expected images, found one more tar file, {printable(inner.name)}: tar files inside "
                    "a tar file are read, but none inside those; unpack the outermost one"
                )
            yield inner._replace(name=f"{member.name}/{inner.name}")


def _visible(file: io.FileIO, begin: int, end: int, label: str) -> Iterator[TarMember]:
    """Yield the members that are not hidden: macOS packs a hidden ``._photo.jpg`` with each photo."""
    for name, offset, length in _Headers(file, begin, end, label):
        if any(part[:1] == "." and part not in (".", "..") for part in name.split("/")):
            continue
        if offset == _NO_CONTENT:
            yield TarMember(name, 0, 0, LINK)
            continue

        def first_bytes(offset: int = offset, length: int = length) -> bytes:
            return os.pread(file.fileno(), min(16, length), offset)

        yield TarMember(name, offset, length, kind_left_out(name, first_bytes))


class _Member(NamedTuple):
    name: str | None  # None: no regular file
    offset: int
    size: int
    after: int  # where the next header is


class _Headers:
    """Name, position and size of each regular member of the tar file at bytes ``begin`` to ``end`` of ``file``.

    Links and sparse files are among them, without a position.

    Raises ImageError unless that is a whole tar file: one that ends with a block of zeros. At a damaged or cut header
    ``tarfile`` itself would end without complaint, and nobody would know of the photographs behind it.
    """

    def __init__(self, file: io.FileIO, begin: int, end: int, label: str) -> None:
        self._file, self._begin, self._end, self._label = file, begin, end, label
        self._tarfile: tarfile.TarFile | None = None

    def __iter__(self) -> Iterator[tuple[str, int, int]]:
        at = self._begin
        while (header := self._block(at)) != _END:
            member = self._common(header, at) or self._rare(header, at)
            if member.after <= at or member.offset + member.size > self._end:
                raise self._damaged(at)
            if member.name is not None:
                yield member.name, member.offset, member.size
            at = member.after
        self._check_rest(at)

    def _check_rest(self, at: int) -> None:
        """Raise ImageError unless zeros follow the end mark: else there are members that a hole hides, or of a second
        tar file."""
        for begin in range(at, self._end, _CHUNK):
            rest = os.pread(self._file.fileno(), min(_CHUNK, self._end - begin), begin)
            if rest.count(0) != len(rest):
                raise ImageError(
                    f"{self._label}: expected nothing behind the end of the tar file at byte {at}, found more: it is "
                    "damaged, or several files were put one after the other, which have to be several files"
                )

    def _block(self, at: int) -> bytes:
        return os.pread(self._file.fileno(), min(_BLOCK, max(0, self._end - at)), at)

    def _common(self, header: bytes, at: int) -> _Member | None:
        """Parse a regular file with a short name, or a pax header that changes nothing. None: leave it to ``tarfile``.

        The rules are those of ``tarfile.TarInfo.frombuf``.
        """
        kind = header[156:157]
        if kind not in (b"0", b"\0", b"x", b"g") or header[257:262] != b"ustar":
            return None
        try:
            size = int(header[124:136].rstrip(b" \0"), 8)
            checksum = int(header[148:156].rstrip(b" \0"), 8)
        except ValueError:  # the binary form of large numbers, for one
            return None
        if size < 0 or checksum != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            return None
        offset = at + _BLOCK
        after = offset + -(-size // _BLOCK) * _BLOCK
        if kind in b"xg":
            content = os.pread(self._file.fileno(), size, offset) if size <= _LONGEST_PAX else b"size="
            return None if any(key in content for key in _PAX_THAT_MATTERS) else _Member(None, offset, size, after)
        name, prefix = (_text(header[a:b]) for a, b in ((0, 100), (345, 500)))
        if (kind == b"\0" and name.endswith("/")) or (self._tarfile is not None and self._tarfile.pax_headers):
            return None
        return _Member(f"{prefix}/{name}" if prefix else name, offset, size, after)

    def _rare(self, header: bytes, at: int) -> _Member:
        try:
            if self._tarfile is None:
                self._file.seek(self._begin)
                self._tarfile = tarfile.TarFile(fileobj=self._file, mode="r")
            self._file.seek(at)
            found = tarfile.TarInfo.fromtarfile(self._tarfile)
        except (tarfile.TarError, EOFError, ValueError, OverflowError, MemoryError, RecursionError) as error:
            raise (self._no_tar(header, error) if at == self._begin else self._damaged(at)) from error
        if found.issym() or found.islnk() or found.issparse():
            return _Member(found.name, _NO_CONTENT, 0, self._tarfile.offset)
        name = found.name if found.isreg() else None
        return _Member(name, found.offset_data, found.size if name else 0, self._tarfile.offset)

    def _no_tar(self, header: bytes, error: Exception) -> ImageError:
        packed = next((kind for magic, kind in _COMPRESSED.items() if header.startswith(magic)), None)
        if packed is None:
            return ImageError(f"{self._label}: expected an uncompressed tar file, found {reason_of(error)}")
        return ImageError(
            f"{self._label}: expected an uncompressed tar file, found {packed} compression: decompress it first, "
            "because single images cannot be read out of compressed data"
        )

    def _damaged(self, at: int) -> ImageError:
        return ImageError(f"{self._label}: expected a complete tar file, found it cut off or damaged at byte {at}")


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
