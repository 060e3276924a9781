"""Tokenized data as a data set: any latent by its number, or all of them in order.

Shapes: c latent channels, h x w latent grid.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .containers import ShardFile, ShardReader, StoredLatent, open_reader
from .format import STORED, ShardIndex, TokenizedDataError, shard_name
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

    ``data[i]`` reads one latent from its place in a shard: 16 bytes of memory a latent, and no more. It can be sent to
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
        self._shards: list[ShardReader] = []
        labels = []
        for entry in self._manifest.shards:
            index = read_index(self.folder, entry, self._manifest)
            self._shards.append(open_shard(self.folder, index, self._manifest))
            labels.append(np.array([NO_LABEL if v is None else v for v in index.labels], np.int64))
        self._ends = np.cumsum([len(part) for part in labels])
        self._labels = np.concatenate(labels)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> LatentItem:
        """Raises IndexError, ValueError for a damaged shard, OSError for one that cannot be read."""
        shard, row = self._locate(index)
        return _item(self._shards[shard].read(row), int(self._labels[index]))

    def label(self, index: int) -> int | None:
        """Of a latent, without reading it."""
        label = int(self._labels[index])
        return None if label == NO_LABEL else label

    def key(self, index: int) -> str:
        """Of a latent, without reading it. Raises as ``data[index]``."""
        shard, row = self._locate(index)
        return self._shards[shard].key(row)

    def stream(self) -> Iterator[LatentItem]:
        """All latents in order, each shard read from its begin to its end. Raises ValueError, OSError."""
        latents = (latent for shard in self._shards for latent in shard.stream())
        for latent, label in zip(latents, self._labels, strict=True):
            yield _item(latent, int(label))

    def _locate(self, index: int) -> tuple[int, int]:
        """The number of the shard, and the row in it."""
        if not 0 <= index < len(self):
            raise IndexError(f"expected an index from 0 to {len(self) - 1}, found {index}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, index - int(self._ends[shard - 1] if shard else 0)


def _item(latent: StoredLatent, label: int) -> LatentItem:
    return LatentItem(latent.mean.float(), latent.logvar.float(), None if label == NO_LABEL else label, latent.key)


def open_shard(folder: Path, index: ShardIndex, manifest: Manifest) -> ShardReader:
    """A shard of a finished set. Raises FileNotFoundError, or TokenizedDataError for one of another size."""
    path = folder / shard_name(index.number, manifest.container)
    file = ShardFile(
        path=path,
        version=_check_size(path, index.file_bytes),
        latents=index.latents,
        shape=manifest.latent_shape,
        dtype=STORED[manifest.store],
        offsets=np.array(index.offsets, np.int64),
        member_bytes=index.member_bytes,
    )
    return open_reader(manifest.container, file)


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
