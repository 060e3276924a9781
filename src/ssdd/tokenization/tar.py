"""Shards as tar files for webdataset: ``KEY.safetensors`` with mean and logvar, ``KEY.json`` that says what it is, and
what else the sample had, with its own extension.

Any latent is read from its place, by one ``pread``.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..data.tar import opened_file
from ..text import one_safe_line
from .format import KEY, TokenizedDataError
from .records import AuditedLatent, Latent, ShardFile, StoredLatent

BLOCK = 512
"""Bytes of a tar header, which the content follows."""
LATENT, META = ".safetensors", ".json"
_SOURCE = "source."
_TAKEN = re.compile(rf"({re.escape(_SOURCE)})*(safetensors|json)")
"""Extensions of a sample's members which get one more ``source.`` before them, to differ from ours and each other."""
_MOST_MEMBER_BYTES = 1 << 26


def stored_as(extension: str) -> str:
    """Return the extension under which a member of a sample stands beside its latent."""
    return f"{_SOURCE}{extension}" if _TAKEN.fullmatch(extension) else extension


class TarWriter:
    """See ``ShardWriter``."""

    def __init__(self, file: BinaryIO) -> None:
        self._tar = tarfile.TarFile(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)
        self.offsets: list[int] = []
        self.member_bytes = 0
        self.info: dict[str, Any] | None = None

    def add(self, latent: Latent) -> None:
        content = save({"mean": latent.mean.contiguous(), "logvar": latent.logvar.contiguous()})
        self.member_bytes = len(content)  # the same for all: one shape, one type
        self.offsets.append(self._tar.offset)
        self._write(latent.key + LATENT, content)
        fields = {
            "key": latent.key,
            "source": latent.source,
            "image": latent.image,
            "label": latent.label,
            "class": latent.class_name,
            "size": latent.size,
            "resized": latent.resized,
            "crop": latent.crop,
            "flipped": latent.flipped,
        }
        self._write(latent.key + META, json.dumps(fields, separators=(",", ":")).encode())
        for extension, member in latent.members.items():
            self._write(f"{latent.key}.{stored_as(extension)}", member)

    def close(self) -> None:
        self._tar.close()

    def abandon(self) -> None:
        """Do nothing: a TarFile writes nothing by itself."""

    def _write(self, name: str, content: bytes) -> None:
        info = tarfile.TarInfo(name)  # time, owner and group are 0, and so the same everywhere
        info.size, info.mode = len(content), 0o644
        assert len(info.name.encode()) <= 100, "the index counts on headers of one block"
        self._tar.addfile(info, io.BytesIO(content))


class TarReader:
    """See ``ShardReader``."""

    def __init__(self, file: ShardFile) -> None:
        self._file = file

    def key(self, row: int) -> str:
        return self._key(self._bytes(row, BLOCK))

    def read(self, row: int, members: bool = False) -> StoredLatent:
        latent = self._latent(self._bytes(row, BLOCK + self._file.member_bytes))
        return replace(latent, members=self._members(row, latent.key)) if members else latent

    def stream(self) -> Iterator[StoredLatent]:
        with self._file.path.open("rb", buffering=1 << 20) as file:
            for offset in self._file.offsets.tolist():
                file.seek(offset)
                yield self._latent(file.read(BLOCK + self._file.member_bytes))

    def audit(self) -> Iterator[AuditedLatent]:
        path, places = self._file.path, self._file.offsets
        for row, sample in enumerate(self._samples()):
            offset, name, content = sample[0]
            label = f"{path}:{name}"
            if row >= len(places) or offset != places[row] or len(content) != self._file.member_bytes:
                raise TokenizedDataError(f"{label}: expected the places and sizes of the index, found others")
            key = name.removesuffix(LATENT)
            if len(sample) < 2 or sample[1][1] != key + META:
                raise TokenizedDataError(
                    f"{label}: expected {META} after it, found {sample[1][1] if sample[1:] else 'the end'!r}"
                )
            fields = _fields(sample[1][2], f"{path}:{sample[1][1]}")
            latent = StoredLatent(key, *self._parse(content, label), _by_extension(key, sample[2:]))
            class_of = fields.get("class") if fields.get("label") is None else fields.get("label")
            yield AuditedLatent(latent, fields.get("key"), class_of, fields.get("image"))

    def _samples(self) -> Iterator[list[tuple[int, str, bytes]]]:
        """Place, name and content of the members of each latent: itself, its metadata, others."""
        path, sample = self._file.path, list[tuple[int, str, bytes]]()
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    file = tar.extractfile(member) if member.isreg() and not member.issparse() else None
                    key, _, _ = member.name.partition(".")
                    if (
                        file is None
                        or not KEY.fullmatch(key)
                        or member.size > max(self._file.member_bytes, _MOST_MEMBER_BYTES)
                    ):
                        raise TokenizedDataError(f"{path}: expected the members of latents, found {member.name!r}")
                    if member.name == key + LATENT:
                        if sample:
                            yield sample
                        sample = []
                    elif not sample or not sample[0][1].startswith(f"{key}."):
                        raise TokenizedDataError(f"{path}: expected KEY{LATENT} first, found {member.name!r}")
                    sample.append((member.offset, member.name, file.read()))
                if sample:
                    yield sample
        except (tarfile.TarError, EOFError, OverflowError, RecursionError) as error:
            raise TokenizedDataError(f"{path}: expected a tar file, found {one_safe_line(str(error))}") from error

    def _members(self, row: int, key: str) -> Mapping[str, bytes]:
        """The other members of a latent's sample: what lies between it and the next one."""
        places = self._file.offsets
        end = int(places[row + 1]) if row + 1 < len(places) else self._file.path.stat().st_size
        content = self._bytes(row, min(end - int(places[row]), 4 * _MOST_MEMBER_BYTES))
        try:
            with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
                found = [(0, m.name, tar.extractfile(m).read()) for m in tar if m.isreg()]  # type: ignore[union-attr]
        except (tarfile.TarError, EOFError, OverflowError) as error:
            raise TokenizedDataError(
                f"{self._file.path}:{key}: expected a sample, found {one_safe_line(str(error))}"
            ) from error
        return _by_extension(key, found[2:])

    def _bytes(self, row: int, size: int) -> bytes:
        return opened_file(str(self._file.path), self._file.version).read(size, int(self._file.offsets[row]))

    def _latent(self, member: bytes) -> StoredLatent:
        key = self._key(member)
        if len(member) != BLOCK + self._file.member_bytes:
            raise TokenizedDataError(f"{self._file.path}:{key}: expected {self._file.member_bytes} bytes, found fewer")
        return StoredLatent(key, *self._parse(member[BLOCK:], f"{self._file.path}:{key}"))

    def _parse(self, content: bytes, label: str) -> tuple[Tensor, Tensor]:
        """Mean and log-variance as they are stored. Raises TokenizedDataError for other names, types or shapes."""
        try:
            tensors = load(content)
        except (SafetensorError, ValueError, KeyError) as error:
            raise TokenizedDataError(
                f"{label}: expected safetensors, found {one_safe_line(str(error))[:100]}"
            ) from error
        found = {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}
        expected: tuple[torch.dtype, tuple[int, ...]] = (self._file.dtype, tuple(self._file.shape))
        if found != dict.fromkeys(("mean", "logvar"), expected):
            raise TokenizedDataError(f"{label}: expected mean and logvar, {expected}, found {str(found)[:200]}")
        return tensors["mean"], tensors["logvar"]

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


def _fields(content: bytes, label: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise TokenizedDataError(f"{label}: expected JSON, found {one_safe_line(str(error))[:100]}") from error
    if not isinstance(found, dict):
        raise TokenizedDataError(f"{label}: expected a JSON object, found {type(found).__name__}")
    return found


def _by_extension(key: str, members: list[tuple[int, str, bytes]]) -> dict[str, bytes]:
    found = {name.removeprefix(f"{key}."): content for _, name, content in members}
    return {name.removeprefix(_SOURCE) if _TAKEN.fullmatch(name) else name: content for name, content in found.items()}
