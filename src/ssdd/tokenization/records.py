"""What a shard holds of each latent, and the two sides of a container: its writer and its reader.

Shapes: c latent channels, h x w latent grid.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .format import Label, Shape


@dataclass(frozen=True)
class Latent:
    """A latent, and where it comes from.

    Attributes:
        key: unique in its set.
        mean, logvar: (c, h, w) of the stored type, on the CPU.
        source: name of the image. image: its number.
        label: number of its class. class_name: its name. None where there is none, or where the number is not known.
        size, resized: height and width of the photograph before and after the resize.
        crop: top, left, height, width in the resized one. flipped: mirrored after that.
        members: other members of its webdataset sample, by their extension, and the caption of a file of labels.
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
    """mean, logvar: (c, h, w) as they are stored. members: see ``Latent``."""

    key: str
    mean: Tensor
    logvar: Tensor
    members: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class AuditedLatent:
    """A latent, and what is stored beside it: its key, its label or the name of its class, the number of its image."""

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
    """Writes latents in order; ``offsets``, ``member_bytes`` and ``info`` are for the index."""

    offsets: list[int]
    member_bytes: int
    info: dict[str, Any] | None

    def add(self, latent: Latent) -> None: ...

    def close(self) -> None:
        """End the container; the file stays open."""

    def abandon(self) -> None:
        """Write nothing any more: instead of ``close``, or after it failed."""


class ShardReader(Protocol):
    """Reads a shard and trusts none of it. It can be sent to another process, forked or spawned.

    All methods raise TokenizedDataError for other bytes than ``ShardFile`` promises, OSError where none can be read.
    """

    def key(self, row: int) -> str:
        """Return the key of a latent."""

    def read(self, row: int, members: bool = False) -> StoredLatent:
        """Return a latent by its number in the shard, with the other members of its sample if they are asked for."""

    def stream(self) -> Iterator[StoredLatent]:
        """Return all latents in order."""

    def audit(self) -> Iterator[AuditedLatent]:
        """Return all latents with what is stored beside them; whatever else is in the file is an error."""
