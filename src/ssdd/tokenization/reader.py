"""Tokenized data as a data set: any latent by its number, or all of them in order.

Shapes: c latent channels, h x w latent grid.
"""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..data.tar import opened_file
from .format import BLOCK, KEY, LATENT, STORED, TokenizedDataError, parse_latent, shard_name
from .manifest import Manifest, read_index, read_manifest
from .source import NO_LABEL

_STATISTICS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")


@dataclass(frozen=True)
class LatentItem:
    """mean, logvar: (c, h, w) float32, of a raw latent's posterior. label: index into the set's classes, or None.

    key: unique in its set: number of the image, of its crop, ``f`` if mirrored, its name.
    """

    mean: Tensor
    logvar: Tensor
    label: int | None
    key: str


class LatentDataset(Dataset[LatentItem]):
    """The latents in a finished folder of ``ssdd tokenize``.

    ``data[i]`` reads one member of a shard from its place: 16 bytes of memory a latent, and no more. It can be sent to
    worker processes, forked or spawned. Nothing in the folder is trusted: sizes, types, shapes and names are checked,
    and the checksums by ``verify``.

    Attributes:
        manifest: ``manifest.json``. classes: names by label; empty without labels. latent_shape: (c, h, w).
    """

    def __init__(self, folder: str | Path) -> None:
        """Raises FileNotFoundError or ValueError with one line: no finished set, a shard that is missing or other."""
        self.folder = Path(folder)
        self._manifest: Manifest = read_manifest(self.folder)
        self.manifest: dict[str, Any] = self._manifest.content
        self.classes = self._manifest.classes
        self.latent_shape = self._manifest.latent_shape
        self.statistics = _statistics(self.manifest, self.latent_shape[0], str(self.folder))
        self._dtype = STORED[self._manifest.store]
        offsets, labels, self._sizes, self._versions = [], [], [], []
        for shard in self._manifest.shards:
            index = read_index(self.folder, shard, self._manifest)
            self._versions.append(_check_size(self.folder / shard_name(shard.number), index.tar_bytes))
            offsets.append(np.array(index.offsets, np.int64))
            labels.append(np.array([NO_LABEL if v is None else v for v in index.labels], np.int64))
            self._sizes.append(index.member_bytes)
        self._ends = np.cumsum([len(part) for part in offsets])
        self._offsets, self._labels = np.concatenate(offsets), np.concatenate(labels)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> LatentItem:
        """Raises IndexError, ValueError for a damaged shard, OSError for one that cannot be read."""
        if not 0 <= index < len(self):
            raise IndexError(f"expected an index from 0 to {len(self) - 1}, found {index}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        path, offset, size = self._path(shard), int(self._offsets[index]), self._sizes[shard]
        descriptor = opened_file(str(path), self._versions[shard]).descriptor
        return self._item(os.pread(descriptor, BLOCK + size, offset), size, int(self._labels[index]), path)

    def label(self, index: int) -> int | None:
        """Of a latent, without reading it."""
        label = int(self._labels[index])
        return None if label == NO_LABEL else label

    def stream(self) -> Iterator[LatentItem]:
        """All latents in order, each shard read from its begin to its end. Raises ValueError, OSError."""
        at = 0
        for shard, end in enumerate(self._ends.tolist()):
            path, size = self._path(shard), self._sizes[shard]
            with path.open("rb", buffering=1 << 20) as file:
                for i in range(at, end):
                    file.seek(int(self._offsets[i]))
                    yield self._item(file.read(BLOCK + size), size, int(self._labels[i]), path)
            at = end

    def _path(self, shard: int) -> Path:
        return self.folder / shard_name(shard)

    def _item(self, member: bytes, size: int, label: int, path: Path) -> LatentItem:
        key = _key(member, size, str(path))
        place = f"{path}:{key}"
        mean, logvar = parse_latent(member[BLOCK:], self.latent_shape, self._dtype, place)
        return LatentItem(mean.float(), logvar.float(), None if label == NO_LABEL else label, key)


def _key(member: bytes, size: int, label: str) -> str:
    """The key of a member by its tar header. Raises TokenizedDataError if it is another one, or cut off."""
    try:
        header = tarfile.TarInfo.frombuf(member[:BLOCK], "ascii", "strict")
    except (tarfile.TarError, ValueError) as error:
        raise TokenizedDataError(f"{label}: expected a latent where the index has one, found {error}") from error
    key = header.name.removesuffix(LATENT)
    if not header.isreg() or header.size != size or len(member) != BLOCK + size or not KEY.fullmatch(key):
        raise TokenizedDataError(
            f"{label}: expected a latent of {size} bytes where the index has one, found {header.name[:80]!r} with "
            f"{header.size}"
        )
    return key


def _check_size(path: Path, size: int) -> tuple[int, int, int]:
    """What tells this file from one that takes its place later."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected this shard, found none: run ssdd tokenize again")
    found = path.stat()
    if found.st_size != size:
        raise TokenizedDataError(
            f"{path}: expected {size} bytes, found {found.st_size}: run ssdd tokenize again to make it anew"
        )
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _statistics(manifest: dict[str, Any], channels: int, label: str) -> dict[str, Any]:
    """The config entries, as ``LatentStatistics.config`` gives them. Raises TokenizedDataError."""
    found = manifest.get("statistics")
    found = found if isinstance(found, dict) else {}
    values = {name: found.get(name) for name in _STATISTICS}
    scalars = all(_finite(values[name]) for name in _STATISTICS[:2])
    lists = all(
        isinstance(v := values[name], list) and len(v) == channels and all(map(_finite, v)) for name in _STATISTICS[2:]
    )
    if not scalars or not lists:
        raise TokenizedDataError(f"{label}: expected finite {', '.join(_STATISTICS)}, found {str(values)[:120]}")
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}


def _finite(value: object) -> bool:
    return type(value) in (int, float) and bool(torch.tensor(value, dtype=torch.float64).isfinite())
