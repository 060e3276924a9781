"""Shards as tar files for webdataset: ``KEY.safetensors`` with mean and logvar, ``KEY.json`` that says what it is, and
what else the sample had, with its own extension.

Any latent is read from its place, by one ``pread``.
"""

import io
import json
import re
import tarfile
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..data.tar import opened_file
from ..runtime.text import one_safe_line
from .containers import Latent, ShardReader, ShardWriter, StoredLatent
from .format import KEY, Shape, TokenizedDataError

_BLOCK = 512
"""Bytes of a tar header, which the content follows."""
_LATENT, _META = ".safetensors", ".json"
_SOURCE = "source."
_TAKEN = re.compile(rf"({re.escape(_SOURCE)})*(safetensors|json)")
"""Extensions of a sample's members which get one more ``source.`` before them, to differ from ours and each other."""
_MOST_SAMPLE_BYTES = 1 << 28


def stored_as(extension: str) -> str:
    """Return the extension under which a member of a sample stands beside its latent."""
    return f"{_SOURCE}{extension}" if _TAKEN.fullmatch(extension) else extension


class TarWriter(ShardWriter):
    """See ``ShardWriter``."""

    def __init__(self, file: BinaryIO, shape: Shape, dtype: torch.dtype) -> None:
        super().__init__(file, shape, dtype)
        self._tar = tarfile.TarFile(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)

    def add(self, latent: Latent) -> None:
        content = save({"mean": latent.mean.contiguous(), "logvar": latent.logvar.contiguous()})
        self.member_bytes = len(content)  # the same for all: one shape, one type
        self.offsets.append(self._tar.offset)
        self._write(latent.key + _LATENT, content)
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
        self._write(latent.key + _META, json.dumps(fields, separators=(",", ":")).encode())
        for extension, member in latent.members.items():
            self._write(f"{latent.key}.{stored_as(extension)}", member)

    def close(self) -> None:
        self._tar.close()

    def _write(self, name: str, content: bytes) -> None:
        info = tarfile.TarInfo(name)  # time, owner and group are 0, and so the same everywhere
        info.size, info.mode = len(content), 0o644
        assert len(info.name.encode()) <= 100, "the index counts on headers of one block"
        self._tar.addfile(info, io.BytesIO(content))


class TarReader(ShardReader):
    """See ``ShardReader``."""

    def key(self, row: int) -> str:
        return self._key(self._bytes(row, _BLOCK))

    def read(self, row: int, whole: bool = False) -> StoredLatent:
        size = _BLOCK + self.file.member_bytes
        member = self._bytes(row, size)
        key = self._key(member)
        label = f"{self.file.path}:{key}"
        if len(member) != size:
            raise TokenizedDataError(f"{label}: expected {self.file.member_bytes} bytes, found fewer")
        mean, logvar = self._parse(member[_BLOCK:], label)
        if not whole:
            return StoredLatent(key, mean, logvar)
        _, (name, meta), *members = self._sample(row, label)
        if name != key + _META:
            raise TokenizedDataError(f"{label}: expected {_META} after it, found {name!r}")
        stated = _fields(meta, label)
        if stated.get("key") != key:
            raise TokenizedDataError(f"{label}: expected its key in {_META}, found {str(stated.get('key'))[:80]!r}")
        others = {name.removeprefix(f"{key}."): content for name, content in members}
        named = {n.removeprefix(_SOURCE) if _TAKEN.fullmatch(n) else n: content for n, content in others.items()}
        class_of = stated.get("class") if stated.get("label") is None else stated.get("label")
        return StoredLatent(key, mean, logvar, named, stated.get("image"), class_of)

    def _sample(self, row: int, label: str) -> list[tuple[str, bytes]]:
        """Return name and content of all members up to the next latent, at least two."""
        places = self.file.offsets
        end = int(places[row + 1]) if row + 1 < len(places) else self.file.path.stat().st_size
        content = self._bytes(row, min(end - int(places[row]), _MOST_SAMPLE_BYTES))
        try:
            with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
                found = [(m.name, tar.extractfile(m).read()) for m in tar if m.isreg()]  # type: ignore[union-attr]
        except (tarfile.TarError, EOFError, OverflowError, RecursionError) as error:
            raise TokenizedDataError(f"{label}: expected a sample, found {one_safe_line(str(error))}") from error
        return found if len(found) > 1 else [*found, ("the end", b"")]

    def _bytes(self, row: int, size: int) -> bytes:
        return opened_file(str(self.file.path), self.file.version).read(size, int(self.file.offsets[row]))

    def _parse(self, content: bytes, label: str) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance. Raises TokenizedDataError for other names, types or shapes."""
        try:
            tensors = load(content)
        except (SafetensorError, ValueError, KeyError) as error:
            raise TokenizedDataError(
                f"{label}: expected safetensors, found {one_safe_line(str(error))[:100]}"
            ) from error
        found = {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}
        expected = (self.file.dtype, tuple(self.file.shape))
        if found != dict.fromkeys(("mean", "logvar"), expected):
            raise TokenizedDataError(f"{label}: expected mean and logvar, {expected}, found {str(found)[:200]}")
        return tensors["mean"], tensors["logvar"]

    def _key(self, member: bytes) -> str:
        """Return the key of a member by its tar header. Raises TokenizedDataError if it is another one."""
        path, size = self.file.path, self.file.member_bytes
        try:
            header = tarfile.TarInfo.frombuf(member[:_BLOCK], "ascii", "strict")
        except (tarfile.TarError, ValueError) as error:
            raise TokenizedDataError(f"{path}: expected a latent where the index has one, found {error}") from error
        key = header.name.removesuffix(_LATENT)
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
