"""Shards as tar files for webdataset: ``KEY.safetensors`` with mean and logvar, then ``KEY.json`` that says what it is.

Any latent is read from its place, by one ``pread``.
"""

import io
import json
import os
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from torch import Tensor

from ..data.tar import opened_file
from ..text import one_safe_line
from .containers import AuditedLatent, LatentMeta, ShardFile, StoredLatent
from .format import BLOCK, KEY, LATENT, META, TokenizedDataError, decode_json, latent_bytes, parse_latent

_MOST_META_BYTES = 1 << 16


class TarWriter:
    """See ``ShardWriter``."""

    def __init__(self, file: BinaryIO) -> None:
        self._tar = tarfile.TarFile(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)
        self.offsets: list[int] = []
        self.member_bytes = 0

    def add(self, meta: LatentMeta, mean: Tensor, logvar: Tensor) -> None:
        content = latent_bytes(mean, logvar)
        self.member_bytes = len(content)  # the same for all: one shape, one type
        self.offsets.append(self._tar.offset)
        self._write(meta.key + LATENT, content)
        fields = {
            "key": meta.key,
            "source": meta.source,
            "image": meta.image,
            "label": meta.label,
            "class": meta.class_name,
            "size": meta.size,
            "resized": meta.resized,
            "crop": meta.crop,
            "flipped": meta.flipped,
        }
        self._write(meta.key + META, json.dumps(fields, separators=(",", ":")).encode())

    def close(self) -> None:
        self._tar.close()

    def abandon(self) -> None:
        """A TarFile writes nothing by itself."""

    def _write(self, name: str, content: bytes) -> None:
        info = tarfile.TarInfo(name)  # time, owner and group are 0, and so the same everywhere
        info.size, info.mode = len(content), 0o644
        assert len(info.name) <= 100, "the index counts on headers of one block"
        self._tar.addfile(info, io.BytesIO(content))


class TarReader:
    """See ``ShardReader``."""

    def __init__(self, file: ShardFile) -> None:
        self._file = file

    def key(self, row: int) -> str:
        return self._key(self._bytes(row, BLOCK))

    def read(self, row: int) -> StoredLatent:
        return self._latent(self._bytes(row, BLOCK + self._file.member_bytes))

    def stream(self) -> Iterator[StoredLatent]:
        with self._file.path.open("rb", buffering=1 << 20) as file:
            for offset in self._file.offsets.tolist():
                file.seek(offset)
                yield self._latent(file.read(BLOCK + self._file.member_bytes))

    def audit(self) -> Iterator[AuditedLatent]:
        path, places = self._file.path, self._file.offsets
        for row, ((offset, name, content), (meta_name, meta)) in enumerate(self._pairs()):
            label = f"{path}:{name}"
            if row >= len(places) or offset != places[row] or len(content) != self._file.member_bytes:
                raise TokenizedDataError(f"{label}: expected the places and sizes of the index, found others")
            latent = StoredLatent(name.removesuffix(LATENT), *self._parse(content, label))
            fields = decode_json(meta, f"{path}:{meta_name}")
            yield AuditedLatent(latent, fields.get("key"), fields.get("label"), fields.get("image"))

    def _pairs(self) -> Iterator[tuple[tuple[int, str, bytes], tuple[str, bytes]]]:
        """Place, name and content of each latent, then name and content of its metadata."""
        path, latent_size = self._file.path, self._file.member_bytes
        try:
            with tarfile.open(path, "r:") as tar:
                before: tuple[int, str, bytes] | None = None
                for member in tar:
                    file = tar.extractfile(member) if member.isreg() else None
                    suffix = LATENT if before is None else META
                    name = member.name.removesuffix(suffix)
                    small = member.size <= (latent_size if before is None else _MOST_META_BYTES)
                    fits = before is None or before[1] == name + LATENT
                    known = member.name == name + suffix and KEY.fullmatch(name)
                    if file is None or not known or not small or not fits or member.issparse():
                        raise TokenizedDataError(
                            f"{path}: expected KEY{LATENT} and KEY{META} in turn, found {member.name!r}"
                        )
                    if before is None:
                        before = member.offset, member.name, file.read()
                    else:
                        yield before, (member.name, file.read())
                        before = None
                if before is not None:
                    raise TokenizedDataError(f"{path}: expected {META} after {before[1]!r}, found the end")
        except (tarfile.TarError, EOFError, OverflowError, RecursionError) as error:
            raise TokenizedDataError(f"{path}: expected a tar file, found {one_safe_line(str(error))}") from error

    def _bytes(self, row: int, size: int) -> bytes:
        descriptor = opened_file(str(self._file.path), self._file.version).descriptor
        return os.pread(descriptor, size, int(self._file.offsets[row]))

    def _latent(self, member: bytes) -> StoredLatent:
        key = self._key(member)
        if len(member) != BLOCK + self._file.member_bytes:
            raise TokenizedDataError(f"{self._file.path}:{key}: expected {self._file.member_bytes} bytes, found fewer")
        return StoredLatent(key, *self._parse(member[BLOCK:], f"{self._file.path}:{key}"))

    def _parse(self, content: bytes, label: str) -> tuple[Tensor, Tensor]:
        return parse_latent(content, self._file.shape, self._file.dtype, label)

    def _key(self, member: bytes) -> str:
        """The key of a member by its tar header. Raises TokenizedDataError if it is another one."""
        path, size = self._file.path, self._file.member_bytes
        try:
            header = tarfile.TarInfo.frombuf(member[:BLOCK], "ascii", "strict")
        except (tarfile.TarError, ValueError) as error:
            raise TokenizedDataError(f"{path}: expected a latent where the index has one, found {error}") from error
        key = header.name.removesuffix(LATENT)
        if not header.isreg() or header.size != size or not KEY.fullmatch(key):
            raise TokenizedDataError(
                f"{path}: expected a latent of {size} bytes where the index has one, found {header.name[:80]!r} with "
                f"{header.size}"
            )
        return key
