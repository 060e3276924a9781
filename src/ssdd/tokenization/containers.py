"""What shards are written as: a writer and a reader for each container.

A new one is a class for each side, an entry in ``open_writer`` and ``open_reader``, and one in ``format.SUFFIXES``.

Shapes: c latent channels, h x w latent grid.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from .format import Container, Label, Shape


@dataclass(frozen=True)
class Latent:
    """A latent, and where it comes from.

    Attributes:
        key: Unique in its set.
        mean: (c, h, w) of the stored type, on the CPU.
        logvar: The same.
        source: Name of the image.
        image: Its number.
        label: Number of its class; None where there is none, or where the number is not known.
        class_name: Name of its class, or None.
        size: Height and width of the photograph before the resize.
        resized: Height and width after it.
        crop: Top, left, height, width in the resized photograph.
        flipped: Whether it was mirrored after that.
        members: Other members of its webdataset sample, by their extension, and the caption of a file of labels.
    """

    key: str
    mean: Tensor
    logvar: Tensor
    source: str
    image: int
    label: int | None
    class_name: str | None
    size: tuple[int, int]
    resized: tuple[int, int]
    crop: tuple[int, int, int, int]
    flipped: bool
    members: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def identity(self) -> Label:
        """The label of the index: the class by its number, or else by its name."""
        return self.class_name if self.label is None else self.label


@dataclass(frozen=True)
class StoredLatent:
    """A latent as it is stored, and, where they were asked for, what stands beside it.

    Attributes:
        key: Its key.
        mean: (c, h, w) of the stored type.
        logvar: The same.
        members: See ``Latent``.
        image: Number of its image.
        label: Number of its class, or else its name.
    """

    key: str
    mean: Tensor
    logvar: Tensor
    members: Mapping[str, bytes] = field(default_factory=dict)
    image: object = None
    label: object = None


@dataclass(frozen=True)
class ShardFile:
    """A shard to read: its file, and what each latent has to be.

    Attributes:
        path: Where it lies.
        version: What tells the file from one that takes its place later.
        latents: Their number.
        shape: (c, h, w) of each.
        dtype: Their type.
        member_bytes: See ``ShardIndex``.
        offsets: See ``ShardIndex``.
    """

    path: Path
    version: tuple[int, ...]
    latents: int
    shape: Shape
    dtype: torch.dtype
    member_bytes: int
    offsets: np.ndarray = field(compare=False)


class ShardWriter(ABC):
    """Writes latents in order into an open file, which stays open.

    Attributes:
        offsets, member_bytes, info: For the index, see ``ShardIndex``.
    """

    def __init__(self, file: BinaryIO, shape: Shape, dtype: torch.dtype) -> None:
        """Raise ImportError, with the extra that is missing."""
        self.file, self.shape, self.dtype = file, shape, dtype
        self.offsets: list[int] = []
        self.member_bytes = 0
        self.info: dict[str, Any] | None = None

    @abstractmethod
    def add(self, latent: Latent) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """End the container."""

    def abandon(self) -> None:  # noqa: B027
        """Write nothing any more: instead of ``close``, or after it failed."""


class ShardReader(ABC):
    """Reads a shard and trusts none of it. It can be sent to another process, forked or spawned.

    All methods raise TokenizedDataError for other bytes than ``ShardFile`` promises, OSError where none can be read.
    """

    def __init__(self, file: ShardFile) -> None:
        self.file = file

    @abstractmethod
    def key(self, row: int) -> str:
        """Return the key of a latent without reading it."""

    @abstractmethod
    def read(self, row: int, whole: bool = False) -> StoredLatent:
        """Return a latent by its number in the shard; the ``whole`` of it has also what is stored beside it."""

    def stream(self, whole: bool = False) -> Iterator[StoredLatent]:
        """Return all latents in order."""
        return (self.read(row, whole) for row in range(self.file.latents))


def open_writer(container: Container, file: BinaryIO, shape: Shape, dtype: torch.dtype) -> ShardWriter:
    """Raise ImportError, with the extra that is missing, for a container that cannot be written here."""
    from . import lightningdit, mds, parquet, tar

    writers: dict[Container, type[ShardWriter]] = {
        "tar": tar.TarWriter,
        "parquet": parquet.ParquetWriter,
        "lightningdit": lightningdit.LightningDiTWriter,
        "mds": mds.MDSWriter,
    }
    return writers[container](file, shape, dtype)


def open_reader(container: Container, file: ShardFile) -> ShardReader:
    """Raise ImportError, with the extra that is missing, or ValueError, for a container that cannot be read here."""
    from . import lightningdit, parquet, tar

    readers: dict[Container, type[ShardReader]] = {
        "tar": tar.TarReader,
        "parquet": parquet.ParquetReader,
        "lightningdit": lightningdit.LightningDiTReader,
    }
    if container not in readers:
        raise ValueError(f"{file.path}: expected shards that are read here, found MDS: read them by mosaicml-streaming")
    return readers[container](file)


def writer_version(container: Container) -> str | None:
    """Return the package that decides a container's bytes, with its version. Raises ImportError where it is missing."""
    from ..data.packages import parquet
    from . import mds

    if container == "parquet":
        return f"pyarrow {parquet()[0].__version__}"
    return f"mosaicml-streaming {mds.streaming().__version__}" if container == "mds" else None
