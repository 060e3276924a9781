"""An endless, seeded stream of latents that can start at any image: position p is a function of (seed, p) alone.

Shapes: B latents of this process, c latent channels, h x w latent grid.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data.loader import BatchPositions, epoch_order, start_worker

STATISTICS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")


class LatentItem(Protocol):
    """A posterior: mean and logvar, float32 (c, h, w); its class, if it has one; the name of the image."""

    @property
    def mean(self) -> Tensor: ...

    @property
    def logvar(self) -> Tensor: ...

    @property
    def label(self) -> int | None: ...

    @property
    def key(self) -> str: ...


class Latents(Protocol):
    """What training needs of tokenized data; ``ssdd.tokenization.LatentDataset`` is one.

    classes: their names. manifest: of the data. latent_shape: (c, h, w). statistics: entries of a model's config.
    """

    @property
    def classes(self) -> Sequence[str]: ...

    @property
    def manifest(self) -> Mapping[str, Any]: ...

    @property
    def latent_shape(self) -> tuple[int, int, int]: ...

    @property
    def statistics(self) -> Mapping[str, Any]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> LatentItem: ...


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
        labels = [len(self.data.classes) if item.label is None else item.label for item in items]
        means, logvars = torch.stack([i.mean for i in items]), torch.stack([i.logvar for i in items])
        return LatentBatch(means.float(), logvars.float(), torch.tensor(labels))

    def _item(self, position: int) -> LatentItem:
        epoch, offset = divmod(position, len(self.data))
        item = self.data[int(epoch_order(self.seed, epoch, len(self.data))[offset])]
        shape, classes = tuple(self.data.latent_shape), len(self.data.classes)
        if tuple(item.mean.shape) != shape or tuple(item.logvar.shape) != shape:
            raise ValueError(f"{item.key}: expected a latent {shape} of {shape[0]} channels, found {item.mean.shape}")
        if item.label is not None and not 0 <= item.label < classes:
            raise ValueError(f"{item.key}: expected a class from 0 to {classes - 1}, found {item.label}")
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
