"""An endless, seeded stream of latents that can start at any image: position p is a function of (seed, p) alone.

Shapes: B latents of this process, c latent channels, h x w latent grid.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..checkpoints.identity import LatentIdentity
from ..data.loader import BatchPositions, start_worker
from ..data.permutation import KeyedPermutation

STATISTICS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")


class Latents(Protocol):
    """What training needs of tokenized data; ``ssdd.tokenization.LatentDataset`` is one.

    classes: their names. model: whose latents. digest: of what decides them. latent_shape: (c, h, w). statistics:
    entries of a model's config.
    ``data[i]`` has the posterior's ``mean`` and ``logvar``, float32 (c, h, w), the ``label``, an int64 scalar that is
    -1 for none, and the ``key``.
    """

    @property
    def classes(self) -> Sequence[str]: ...

    @property
    def model(self) -> LatentIdentity: ...

    @property
    def digest(self) -> str: ...

    @property
    def latent_shape(self) -> tuple[int, int, int]: ...

    @property
    def statistics(self) -> Mapping[str, Any]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]: ...


def open_latents(folder: str) -> Latents:
    """Tokenized data in a folder. Raises OSError or ValueError with one line if there are none."""
    from ..tokenization import LatentDataset

    return LatentDataset(folder)


def normalization_of(statistics: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """The statistics of a data set as ``normalization.latent_map`` takes them.

    Raises ValueError where they are missing (1 and 0, as of a model that was never measured, count as missing), or of
    another number of channels.
    """
    found = {name: statistics.get(name) for name in STATISTICS}
    per_channel = [found["latents_mean"], found["latents_std"]]
    if found["scaling_factor"] is None or (
        (found["scaling_factor"], found["shift_factor"] or 0) == (1, 0) and None in per_channel
    ):
        raise ValueError(
            "expected the latents' statistics (scaling_factor, ...), found none: make the data again with "
            "`ssdd tokenize`, which measures them"
        )
    for values in per_channel:
        if values is not None and len(values) != channels:
            raise ValueError(f"expected statistics of {channels} channels, found {len(values)}")
    found["shift_factor"] = found["shift_factor"] or 0.0
    return found | {"latents_convention": statistics.get("latents_convention") or "measured"}


@dataclass(frozen=True)
class LatentBatch:
    """mean, logvar: (B, c, h, w). labels: (B,) int64, the number of classes for an image without a label."""

    mean: Tensor
    logvar: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def split(self, size: int) -> list["LatentBatch"]:
        pieces = (tensor.split(size) for tensor in (self.mean, self.logvar, self.labels))
        return [LatentBatch(*parts) for parts in zip(*pieces, strict=True)]

    def to(self, device: torch.device) -> "LatentBatch":
        return LatentBatch(*(t.to(device, non_blocking=True) for t in (self.mean, self.logvar, self.labels)))


class LatentStream:
    """Maps positions to latents: every pass is a fresh permutation."""

    def __init__(self, data: Latents, seed: int) -> None:
        """Raises ValueError for no data."""
        if not len(data):
            raise ValueError("expected latents to train on, found none: all images were skipped")
        self.data, self.seed = data, seed

    def batch(self, positions: Sequence[int]) -> LatentBatch:
        """Raises ValueError for a latent of another shape, or a class that there is not."""
        items = [self._item(position) for position in positions]
        labels = torch.stack([item["label"] for item in items])
        means, logvars = (torch.stack([item[name] for item in items]) for name in ("mean", "logvar"))
        return LatentBatch(means.float(), logvars.float(), labels.where(labels >= 0, len(self.data.classes)))

    def _item(self, position: int) -> Mapping[str, Any]:
        epoch, offset = divmod(position, len(self.data))
        item = self.data[KeyedPermutation(len(self.data), self.seed, epoch)[offset]]
        shape, classes, key = tuple(self.data.latent_shape), len(self.data.classes), item["key"]
        if tuple(item["mean"].shape) != shape or tuple(item["logvar"].shape) != shape:
            raise ValueError(f"{key}: expected a latent {shape} of {shape[0]} channels, found {item['mean'].shape}")
        if not -1 <= int(item["label"]) < classes:
            raise ValueError(f"{key}: expected a class from 0 to {classes - 1}, found {int(item['label'])}")
        return item


class _Read(NamedTuple):
    """What a worker sends: errors too, since one that it raised would come with its traceback in the message."""

    tensors: tuple[Tensor, ...]
    error: str | None


class _Reader(Dataset[_Read]):
    def __init__(self, stream: LatentStream) -> None:
        self.stream = stream

    def __getitem__(self, positions: list[int]) -> _Read:
        try:
            batch = self.stream.batch(positions)
        except (ValueError, OSError) as error:
            return _Read((), str(error))
        return _Read((batch.mean, batch.logvar, batch.labels), None)


def latent_batches(
    stream: LatentStream, start: int, batch_size: int, workers: int, rank: int = 0, processes: int = 1
) -> Iterator[LatentBatch]:
    """Endless parts of process ``rank`` of the global batches from position ``start`` on; see ``crop_batches``.

    Raises ValueError, while reading, for latents that cannot be used.
    """
    loader = DataLoader(
        _Reader(stream),
        batch_size=None,
        sampler=BatchPositions(start, batch_size, rank, processes),
        num_workers=workers,
        worker_init_fn=start_worker,
        pin_memory=torch.cuda.is_available(),
    )
    for tensors, error in loader:
        if error is not None:
            raise ValueError(error)
        yield LatentBatch(*tensors)
