"""An endless, seeded stream of training crops that can start at any image.

Position p of the stream is a function of (seed, p) alone: which photograph (a fresh permutation each pass), which
crop, flipped or not. So a run that stopped after p images goes on with image p, however many processes read.
"""

import functools
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from .images import ImageError, use_own_limit
from .sources import ImageSource
from .transforms import training_crop

MOST_UNREADABLE_IN_A_ROW = 100
_LOG = logging.getLogger(__name__)


class BrokenImages:
    """The unreadable images that a run has met: each is named once, and too many of them end the run.

    It lives in the training process, which is told what the workers met, so an image that several of them found
    broken counts once.
    """

    def __init__(self, limit: int = 1000) -> None:
        """``limit``: how many images may be unreadable; 0 for none."""
        self.limit = limit
        self._names: dict[str, None] = {}  # in the order in which they were met

    @property
    def count(self) -> int:
        return len(self._names)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._names)

    def add(self, name: str, reason: str) -> None:
        """Count the image ``name``; ``reason`` is the line that names it and says why it cannot be read.

        Raises ImageError beyond the limit.
        """
        if name in self._names:
            return
        self._names[name] = None
        _LOG.warning("skipped: %s", reason)
        if self.count > self.limit:
            raise ImageError(
                f"expected at most {self.limit} unreadable images, found {self.count}; `ssdd data check` lists all of "
                "them, --data.broken-limit raises the limit"
            )


class Skipped(NamedTuple):
    """An unreadable image: its name and the line that says why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Crop:
    """What is at one position of the stream: uint8 (S, S, 3), and the images before it that could not be read.

    No pixels if there were too many of these.
    """

    pixels: np.ndarray | None
    skipped: tuple[Skipped, ...]


class CropStream(Dataset[torch.Tensor]):
    """Maps a position of the stream to its crop, uint8 (3, S, S)."""

    def __init__(self, source: ImageSource, size: int, scale: float, flip: bool, seed: int) -> None:
        self.source = source
        self.size = size
        self.scale = scale
        self.flip = flip
        self.seed = seed

    def __getitem__(self, position: int) -> torch.Tensor:
        """Return uint8 (3, S, S). Raises ImageError if a hundred photographs in a row, or all, cannot be read."""
        crop = self.crop(position)
        if crop.pixels is None:
            raise ImageError(_too_many_in_a_row(crop))
        return torch.from_numpy(crop.pixels).permute(2, 0, 1)

    def crop(self, position: int) -> Crop:
        """Return the crop at a position; in place of a photograph that cannot be read the next one is taken."""
        epoch, offset = divmod(position, len(self.source))
        order = epoch_order(self.seed, epoch, len(self.source))
        skipped: list[Skipped] = []
        for i in range(min(MOST_UNREADABLE_IN_A_ROW, len(self.source))):
            index = int(order[(offset + i) % len(self.source)])
            try:
                image = self.source.read(index)
            except ImageError as error:
                skipped.append(Skipped(self.source.name(index), str(error)))
                continue
            random = np.random.default_rng([self.seed, position])
            return Crop(training_crop(image, self.size, self.scale, self.flip, random), tuple(skipped))
        return Crop(None, tuple(skipped))


def _too_many_in_a_row(crop: Crop) -> str:
    return f"expected readable images, found {len(crop.skipped)} unreadable ones in a row"


@functools.lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    """Return the order of a pass over so many items: a fresh permutation each time."""
    return np.random.default_rng([seed, epoch, length]).permutation(length)


class BatchPositions(Sampler[list[int]]):
    """Positions of one process' part of each global batch, from ``start`` on, without end."""

    def __init__(self, start: int, batch_size: int, rank: int, processes: int) -> None:
        self.start, self.batch_size, self.rank, self.processes = start, batch_size, rank, processes

    def __iter__(self) -> Iterator[list[int]]:
        local = self.batch_size // self.processes
        first = self.start + self.rank * local
        while True:
            yield list(range(first, first + local))
            first += self.batch_size


class Batch(NamedTuple):
    """What a worker sends: errors too, since one that it raised would come with its traceback in the message."""

    crops: torch.Tensor
    skipped: list[Skipped]
    error: str | None


class _BatchReader(Dataset[Batch]):
    """Maps the positions of a batch to its crops: what a worker does."""

    def __init__(self, stream: CropStream) -> None:
        self.stream = stream

    def __getitem__(self, positions: list[int]) -> Batch:
        return as_batch((self.stream.crop(p) for p in positions), len(positions), self.stream.size)


def as_batch(crops: Iterable[Crop], count: int, size: int) -> Batch:
    """Return ``count`` crops of side ``size`` as a batch; it has an error if one of them has no pixels."""
    batch = torch.empty(count, 3, size, size, dtype=torch.uint8, device="cpu")
    planes = batch.numpy()
    skipped: list[Skipped] = []
    for i, crop in enumerate(crops):
        skipped += crop.skipped
        if crop.pixels is None:
            return Batch(batch, skipped, _too_many_in_a_row(crop))
        planes[i] = crop.pixels.transpose(2, 0, 1)
    return Batch(batch, skipped, None)


def crop_batches(
    stream: CropStream,
    start: int,
    batch_size: int,
    workers: int,
    rank: int = 0,
    processes: int = 1,
    broken: BrokenImages | None = None,
) -> Iterator[torch.Tensor]:
    """Endless batches, uint8 (batch_size / processes, 3, S, S), from position ``start`` of the stream.

    Args:
        stream: What the positions stand for.
        start: Images seen so far, by all processes together.
        batch_size: The global batch, in images.
        workers: Processes that read and crop; 0 does it in this one.
        rank: Which of the ``processes`` that train this one is.
        processes: How many share each batch.
        broken: Counts the unreadable images of this process; by default up to 1000 of them are skipped.

    Raises:
        ValueError: the global batch does not divide by the number of processes.
        ImageError: while reading, beyond the limit of ``broken`` or for 100 unreadable images in a row.
    """
    if batch_size % processes:
        raise ValueError(f"expected a batch size divisible by {processes} processes, found {batch_size}")
    loader = DataLoader(
        _BatchReader(stream),
        batch_size=None,  # a batch is made as a whole, by the reader
        sampler=BatchPositions(start, batch_size, rank, processes),
        num_workers=workers,
        worker_init_fn=start_worker,
        pin_memory=torch.cuda.is_available(),
    )
    return _batches(iter(loader), BrokenImages() if broken is None else broken)


def _batches(batches: Iterator[Batch], broken: BrokenImages) -> Iterator[torch.Tensor]:
    try:
        for batch in batches:
            yield counted(batch, broken)
    finally:
        del batches  # ends the workers now, and not when the last traceback of an error is forgotten


def counted(batch: Batch, broken: BrokenImages) -> torch.Tensor:
    """Count the unreadable images of a batch, and return its crops. Raises ImageError for too many, or its error."""
    for skipped in batch.skipped:
        broken.add(skipped.name, skipped.reason)
    if batch.error is not None:
        raise ImageError(batch.error)
    return batch.crops


def start_worker(_: int) -> None:
    """Make a DataLoader's worker outlive a signal to the whole group of processes.

    Ctrl-C, or a scheduler that ends a job, signals every process of it. The training process then saves, and may want
    more batches before that; its workers end when it tells them to, or when it is gone.
    """
    torch.set_num_threads(1)
    use_own_limit()
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # `multiprocessing` ends workers by SIGTERM too, and waits for them, so one from the parent counts. Where the
    # sender cannot be told (macOS), each SIGTERM ends the worker, as it does without this function.
    parent = multiprocessing.parent_process()
    if parent is not None and hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_when_parent_says_so, args=(parent.pid,), daemon=True).start()
    if parent is not None:  # after the mask, which a thread takes over
        threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Wait for the end of the process that started this one, and end this one: for a thread of a worker.

    A worker whose parent was killed would wait for ever for somebody to read what it has ready.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(0)


def _end_when_parent_says_so(parent: int | None) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)
