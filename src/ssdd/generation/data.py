"""An endless, seeded stream of latents that can start at any batch: position p is a function of (seed, p) alone.

A set that was tokenized with ``--buckets`` has latents of several shapes, and a batch holds one of them. Every bucket,
the latents of one shape, is an endless stream of its own: pass after pass, each a fresh permutation, cut into whole
batches. An epoch of the set is one pass of every bucket, and takes its batches in random order: those that the buckets
have complete by then. What is left of a pass, less than a batch, begins the bucket's first batch of a later epoch; so
nothing is ever left out, and a bucket smaller than a batch has its turn every few epochs.

Shapes: B latents of this process, c latent channels, h x w latent grid.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..autoencoder.normalization import check_convention
from ..checkpoints.config import STATISTICS, read_statistics
from ..data.loader import BatchPositions, start_worker
from ..data.permutation import KeyedPermutation
from ..tokenization import LatentDataset

Shape = tuple[int, int, int]
"""(c, h, w)."""


def normalization_of(statistics: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """Return the statistics of a data set as ``normalization.latent_map`` takes them.

    Raises ValueError where they are missing (1 and 0, as of a model that was never measured, count as missing), of
    another number of channels, or no numbers that can be a mean and a deviation.
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
        if isinstance(values, list | tuple) and len(values) != channels:
            raise ValueError(f"expected statistics of {channels} channels, found {len(values)}")
    if None in per_channel and per_channel != [None, None]:
        raise ValueError("expected both latents_mean and latents_std or neither, found one of them")
    read_statistics("statistics", found, channels)
    convention = statistics.get("latents_convention") or "measured"
    check_convention(convention)
    found["shift_factor"] = found["shift_factor"] or 0.0
    return found | {"latents_convention": convention}


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


class Bucket(NamedTuple):
    """The latents of one shape, (c, h, w), by their numbers in the set."""

    shape: Shape
    numbers: range


def find_buckets(data: LatentDataset) -> list[Bucket]:
    """Return the buckets of a set, the largest first. Raises as ``data[i]`` does."""
    buckets = (Bucket(*found) for found in data.ranges_of_shapes())
    return sorted(buckets, key=lambda bucket: len(bucket.numbers), reverse=True)


class LatentStream:
    """Maps positions to latents.

    Args:
        data: the latents.
        seed: of their order.
        batch_size: positions of a global batch. A set of one shape has the same order whatever it is.

    Raises:
        ValueError: there are no data.
    """

    def __init__(self, data: LatentDataset, seed: int, batch_size: int = 1) -> None:
        if not len(data):
            raise ValueError("expected latents to train on, found none: all images were skipped")
        self.data, self.seed, self.batch_size = data, seed, batch_size
        self.buckets = find_buckets(data)

    @property
    def shapes(self) -> list[Shape]:
        """All shapes, (c, h, w), the most frequent one first."""
        return [bucket.shape for bucket in self.buckets]

    def batch(self, positions: Sequence[int]) -> LatentBatch:
        """Return latents of one global batch. Raises ValueError for one of another shape, or an unknown class."""
        items = [self._item(*self.locate(position)) for position in positions]
        labels = torch.stack([item["label"] for item in items])
        means, logvars = (torch.stack([item[name] for item in items]) for name in ("mean", "logvar"))
        return LatentBatch(means.float(), logvars.float(), labels.where(labels >= 0, len(self.data.classes)))

    def locate(self, position: int) -> tuple[Bucket, int]:
        """Return the bucket of a position, and the number in the set of the latent that stands there."""
        if len(self.buckets) == 1:
            bucket = self.buckets[0]
        else:
            batch, offset = divmod(position, self.batch_size)
            bucket, batch_of_bucket = self._bucket_of(batch)
            position = batch_of_bucket * self.batch_size + offset
        count = len(bucket.numbers)
        passes, offset = divmod(position, count)
        return bucket, bucket.numbers[KeyedPermutation(count, self.seed, passes)[offset]]

    def _bucket_of(self, batch: int) -> tuple[Bucket, int]:
        """Return the bucket that makes a global batch, and which of that bucket's batches it is."""
        epoch = batch * self.batch_size // len(self.data)  # not later than the right one, by few epochs at most
        while sum(self._batches_before(epoch + 1)) <= batch:
            epoch += 1
        before, after = self._batches_before(epoch), self._batches_before(epoch + 1)
        turn = KeyedPermutation(sum(after) - sum(before), self.seed, epoch)[batch - sum(before)]
        for bucket, first, end in zip(self.buckets, before, after, strict=True):
            if turn < end - first:
                return bucket, first + turn
            turn -= end - first
        raise AssertionError("an epoch has as many turns as its buckets have batches")

    def _batches_before(self, epoch: int) -> list[int]:
        """Return how many batches each bucket has complete when an epoch begins."""
        return [epoch * len(bucket.numbers) // self.batch_size for bucket in self.buckets]

    def _item(self, bucket: Bucket, number: int) -> Mapping[str, Any]:
        item = self.data[number]
        shape, classes, key = bucket.shape, len(self.data.classes), item["key"]
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
