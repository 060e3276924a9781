"""An endless, seeded stream of training crops that can start at any image.

Position p of the stream is a function of (seed, p) alone: which photograph (a fresh permutation each pass), which
crop, flipped or not. So a run that stopped after p images goes on with image p, however many processes read.
"""

import functools
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from .images import ImageError
from .sources import ImageSource
from .transforms import training_crop

_TRIES = 100


class CropStream(Dataset[torch.Tensor]):
    """Maps a position of the stream to its crop, uint8 (3, S, S)."""

    def __init__(self, source: ImageSource, size: int, scale: float, flip: bool, seed: int) -> None:
        self.source = source
        self.size = size
        self.scale = scale
        self.flip = flip
        self.seed = seed
        self._reported: set[int] = set()

    def __getitem__(self, position: int) -> torch.Tensor:
        """uint8 (3, S, S). A photograph that cannot be read is reported once, and the next one is taken."""
        epoch, offset = divmod(position, len(self.source))
        order = _permutation(self.seed, epoch, len(self.source))
        tries = min(_TRIES, len(self.source))
        for i in range(tries):
            index = int(order[(offset + i) % len(self.source)])
            try:
                image = self.source.read(index)
            except ImageError as error:
                if index not in self._reported:
                    self._reported.add(index)
                    warnings.warn(f"skipped: {error}", stacklevel=1)
                continue
            random = np.random.default_rng([self.seed, position])
            crop = training_crop(image, self.size, self.scale, self.flip, random)
            return torch.from_numpy(crop).permute(2, 0, 1)
        raise ImageError(f"expected readable images, found {tries} unreadable ones in a row")


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, length]).permutation(length)


class _BatchPositions(Sampler[list[int]]):
    """Positions of one process' part of each global batch, from ``start`` on, without end."""

    def __init__(self, start: int, batch_size: int, rank: int, processes: int) -> None:
        self.start, self.batch_size, self.rank, self.processes = start, batch_size, rank, processes

    def __iter__(self) -> Iterator[list[int]]:
        local = self.batch_size // self.processes
        first = self.start + self.rank * local
        while True:
            yield list(range(first, first + local))
            first += self.batch_size


def crop_batches(
    stream: CropStream, start: int, batch_size: int, workers: int, rank: int = 0, processes: int = 1
) -> Iterator[torch.Tensor]:
    """Endless batches, uint8 (batch_size / processes, 3, S, S), from position ``start`` of the stream.

    Raises ValueError if the global batch does not divide by the number of processes.
    """
    if batch_size % processes:
        raise ValueError(f"expected a batch size divisible by {processes} processes, found {batch_size}")
    loader = DataLoader(
        stream,
        batch_sampler=_BatchPositions(start, batch_size, rank, processes),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
    return _batches(iter(loader))


def _batches(batches: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The batches; a worker's ImageError keeps its one line and loses the worker's traceback."""
    try:
        yield from batches
    except ImageError as error:
        line = str(error).strip().splitlines()[-1]
        raise ImageError(line.removeprefix(f"{ImageError.__module__}.{ImageError.__qualname__}: ")) from error
