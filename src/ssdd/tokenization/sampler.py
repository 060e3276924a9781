"""Shuffled batches of one latent shape, for sets with buckets."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from ..data.permutation import KeyedPermutation
from .reader import LatentDataset


class LatentBatchSampler(Sampler[list[int]]):
    """Batches of indices, each of latents of one shape: ``DataLoader(data, batch_sampler=LatentBatchSampler(...))``.

    The order is a function of the seed, the epoch (``set_epoch``) and nothing else, and is computed as it is needed:
    memory does not grow with the number of latents. It serves sets without buckets as well.

    Args:
        data: The set.
        batch_size: Latents a batch; the last one of each shape may have fewer.
        shuffle: Permute the latents of each shape, and the batches of all shapes, anew in every epoch.
        seed: Of the order, the same in all processes.
        rank: Number of this process among ``processes``, each of which has its own batches, as many as the others:
            up to ``processes - 1`` batches of an epoch, other ones each time, are left out.
        processes: How many share an epoch.
        drop_last: Leave out batches with fewer than ``batch_size`` latents.
    """

    def __init__(
        self,
        data: LatentDataset,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        processes: int = 1,
        drop_last: bool = False,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < processes:
            raise ValueError(f"expected a positive batch size and a rank below {processes}, found {batch_size}, {rank}")
        self._batch_size, self._shuffle, self._seed, self._epoch = batch_size, shuffle, seed, 0
        self._rank, self._processes = rank, processes
        self._ranges = [numbers for _, numbers in data.ranges_of_shapes()]
        counts = [
            len(latents) // batch_size if drop_last else -(-len(latents) // batch_size) for latents in self._ranges
        ]
        self._ends = np.cumsum(counts)

    def __len__(self) -> int:
        """Return the number of batches of this process in an epoch."""
        return int(self._ends[-1]) // self._processes

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass, as for ``torch.utils.data.DistributedSampler``."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        batches = self._order(int(self._ends[-1]), 0)
        orders = [self._order(len(latents), 1 + k) for k, latents in enumerate(self._ranges)]
        for i in range(self._rank, len(self) * self._processes, self._processes):
            k = int(np.searchsorted(self._ends, batches[i], side="right"))
            first = (batches[i] - int(self._ends[k - 1] if k else 0)) * self._batch_size
            rows = range(first, min(first + self._batch_size, len(orders[k])))
            yield [self._ranges[k][orders[k][row]] for row in rows]

    def _order(self, length: int, number: int) -> KeyedPermutation | range:
        return KeyedPermutation(length, self._seed, self._epoch, number) if self._shuffle else range(length)
