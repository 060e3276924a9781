"""What shards are written as: ``tar`` (for webdataset) or ``parquet``, each behind one writer and one reader.

Shapes: c latent channels, h x w latent grid.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import torch
from torch import Tensor

from .format import Container, Shape


@dataclass(frozen=True)
class LatentMeta:
    """Where a latent comes from.

    key: unique in its set. source: name of the image, and its number. label, class_name: None without one.
    size, resized: height and width of the photograph before and after the resize. crop: top, left, height, width in
    the resized one, then mirrored or not.
    """

    key: str
    source: str
    image: int
    label: int | None
    class_name: str | None
    size: tuple[int, int]
    resized: tuple[int, int]
    crop: tuple[int, int, int, int]
    flipped: bool


@dataclass(frozen=True)
class StoredLatent:
    """mean, logvar: (c, h, w) as they are stored."""

    key: str
    mean: Tensor
    logvar: Tensor


@dataclass(frozen=True)
class AuditedLatent:
    """A latent, and what is stored beside it: its key, its label and the number of its image."""

    latent: StoredLatent
    key: object
    label: object
    image: object


@dataclass(frozen=True)
class ShardFile:
    """A shard to read: its file, what tells that file from a later one, how many latents, and what each has to be.

    offsets, member_bytes: as in ``ShardIndex``.
    """

    path: Path
    version: tuple[int, ...]
    latents: int
    shape: Shape
    dtype: torch.dtype
    offsets: np.ndarray
    member_bytes: int


class ShardWriter(Protocol):
    """Writes latents in order into an open file; ``offsets`` and ``member_bytes`` are for the index."""

    offsets: list[int]
    member_bytes: int

    def add(self, meta: LatentMeta, mean: Tensor, logvar: Tensor) -> None:
        """mean, logvar: (c, h, w) of the stored type, on the CPU."""

    def close(self) -> None:
        """Ends the container; the file stays open."""

    def abandon(self) -> None:
        """Instead of ``close``, or after it failed: nothing is written to the file any more."""


class ShardReader(Protocol):
    """Reads a shard and trusts none of it. It can be sent to another process, forked or spawned.

    All methods raise TokenizedDataError for other bytes than ``ShardFile`` promises, OSError where none can be read.
    """

    def key(self, row: int) -> str:
        """Of a latent."""

    def read(self, row: int) -> StoredLatent:
        """Any latent, by its number in the shard."""

    def stream(self) -> Iterator[StoredLatent]:
        """All in order."""

    def audit(self) -> Iterator[AuditedLatent]:
        """All in order, with what is stored beside each; whatever else is in the file is an error."""


def open_writer(container: Container, file: BinaryIO, shape: Shape, dtype: torch.dtype) -> ShardWriter:
    """Raises ImportError, with the extra that is missing, for a container that cannot be written here."""
    if container == "parquet":
        from .parquet import ParquetWriter

        return ParquetWriter(file, shape, dtype)
    from .tar import TarWriter

    return TarWriter(file)


def open_reader(container: Container, file: ShardFile) -> ShardReader:
    """Raises ImportError, with the extra that is missing, for a container that cannot be read here."""
    if container == "parquet":
        from .parquet import ParquetReader

        return ParquetReader(file)
    from .tar import TarReader

    return TarReader(file)


def container_version(container: Container) -> dict[str, str]:
    """The package that decides a container's bytes, with its version. Raises ImportError where it is missing."""
    if container == "parquet":
        from .parquet import pyarrow_version

        return {"pyarrow": pyarrow_version()}
    return {}
