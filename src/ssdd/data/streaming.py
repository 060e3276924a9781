"""An endless, seeded stream of training crops from a data set that is read as it arrives, and never as a whole.

Each process reads its own part of the data set. A pass shuffles the shards (files), reads a few of them side by side,
one row of each in turn, and shuffles each window of about a thousand rows. The buffer of
``datasets.IterableDataset.shuffle`` does a similar thing, but its content is lost when a run stops. Here the order
within a window depends on the seed and on where the window starts, and that place is a few whole numbers: a run that
goes on reads the window again and continues behind the last row that it took.
"""

import hashlib
import io
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from .hugging_face import Cell, as_cell, encoded_image, load_split, streaming_path
from .images import ImageError, ImageReadError, read_image, reason_of
from .loader import (
    MOST_UNREADABLE_IN_A_ROW,
    Batch,
    BrokenImages,
    Crop,
    Skipped,
    as_batch,
    counted,
    start_worker,
)
from .transforms import training_crop

__all__ = ["StreamedBatches", "StreamedCrops", "streaming_path"]

_SHARDS = 4  # read side by side
_WINDOW_ROWS = 1000
_WINDOW_BYTES = 1 << 28
_IDENTIFYING_IMAGES = 4


@dataclass(frozen=True)
class _Position:
    """A place in the stream of one process: behind ``offset`` rows of the window that starts in ``round``.

    A group is the shards that are read side by side, and a round is one row of each of them.
    """

    epoch: int = 0
    group: int = 0
    round: int = 0
    offset: int = 0
    images: int = 0
    """Rows taken since the beginning of training, readable or not."""


class _Row(NamedTuple):
    name: str
    cell: Cell


@dataclass
class _Window:
    """Consecutive rows of a group; ``start`` has the offset 0."""

    start: _Position
    rows: list[_Row] = field(default_factory=list)


class StreamedCrops:
    """Training crops of a Hugging Face data set that is streamed: ``StreamedBatches`` reads them.

    Args:
        path: ``hf:OWNER/NAME[:SPLIT]?streaming``, or ``hf:./folder[:SPLIT]?streaming`` for a folder of parquet files.
        size: S, side of the crops in pixels.
        scale: Images are enlarged by up to this factor before they are cropped, see ``training_crop``.
        flip: Mirror half of the crops.
        seed: Decides the order of the images and the crops.

    Raises:
        ImageError: there is no such data set, split or image column.
        ImportError: the package ``datasets`` is not installed.
    """

    def __init__(self, path: str, size: int, scale: float, flip: bool, seed: int) -> None:
        self.size = size
        self.scale = scale
        self.flip = flip
        self.seed = seed
        self._split = load_split(path)

    def identity(self) -> str:
        """Return a SHA-256 digest, in hex, that tells whether two streams are of the same data.

        It covers the split, the columns, the number of shards and the first four images, since the number of images
        is unknown.

        Raises:
            ImageError: the data set cannot be read.
        """
        dataset = self._split.dataset
        columns = [f"{name}: {type(feature).__name__}" for name, feature in dataset.features.items()]
        digest = hashlib.sha256(repr((str(dataset.split), columns, dataset.num_shards)).encode())
        for row in itertools.islice(self._shard_rows(0, 0, 1), _IDENTIFYING_IMAGES):
            try:
                content = encoded_image(row.cell, row.name)
            except ImageReadError:
                raise
            except ImageError:
                content = b""
            digest.update(hashlib.sha256(content).digest())
        return digest.hexdigest()

    def windows(self, start: _Position, rank: int, processes: int) -> Iterator[_Window]:
        """Yield one process' windows from the one at ``start`` on, pass after pass, without end."""
        first_group, first_round = start.group, start.round
        for epoch in itertools.count(start.epoch):
            groups = self._groups(epoch, rank, processes)
            found_any = first_group > 0 or first_round > 0
            for group in range(first_group, len(groups)):
                readers = [self._shard_rows(shard, rank, processes) for shard in groups[group]]
                for window in _group_windows(readers, _Position(epoch, group, first_round)):
                    found_any = True
                    yield window
                first_round = 0
            if not found_any:
                raise ImageError(f"{self._split.label}: expected images for each process, found none for number {rank}")
            first_group = 0

    def _groups(self, epoch: int, rank: int, processes: int) -> list[list[int]]:
        """Return the shards that one process reads in a pass, in its order, by groups read side by side."""
        count = self._split.images.num_shards
        shards = np.random.default_rng([self.seed, epoch, count]).permutation(count).tolist()
        if self._shards_are_whole(processes):
            shards = shards[rank::processes]
        return [shards[i : i + _SHARDS] for i in range(0, len(shards), _SHARDS)]

    def _shards_are_whole(self, processes: int) -> bool:
        """Tell whether each process reads shards of its own, rather than some rows of every shard."""
        return self._split.images.num_shards % processes == 0

    def _shard_rows(self, shard: int, rank: int, processes: int) -> Iterator[_Row]:
        """Yield one process' rows of a shard. Raises ImageError if the shard cannot be read."""
        from datasets.distributed import split_dataset_by_node

        label, column, images = self._split.label, self._split.column, self._split.images
        try:
            dataset = images.shard(num_shards=images.num_shards, index=shard)
            first, step = 0, 1
            if not self._shards_are_whole(processes):
                # one shard cannot be shared as a whole, so this takes every `processes`-th row
                dataset = split_dataset_by_node(dataset, rank, processes)
                first, step = rank, processes
            for number, row in zip(itertools.count(first, step), dataset, strict=False):
                yield _Row(f"{label}[shard {shard}, row {number}]", as_cell(row[column]))
        except Exception as error:  # `datasets` raises whatever its storage, its parsers and the network raise
            raise ImageError(
                f"{label}: expected shard {shard} to be readable, found {type(error).__name__}: {reason_of(error)}"
            ) from error

    def order(self, window: _Window, rank: int) -> list[int]:
        """Return the order of a window's rows."""
        at = window.start
        random = np.random.default_rng([self.seed, rank, at.epoch, at.group, at.round])
        return random.permutation(len(window.rows)).tolist()

    def crop(self, row: _Row, rank: int, number: int) -> Crop:
        """Return the crop of an image, the ``number``-th of its process, or say why it cannot be read."""
        try:
            image = read_image(io.BytesIO(encoded_image(row.cell, row.name)), name=row.name)
        except ImageReadError:  # may be a good image, and without it the run would not be reproducible
            raise
        except ImageError as error:
            return Crop(None, (Skipped(row.name, str(error)),))
        random = np.random.default_rng([self.seed, rank, number])
        return Crop(training_crop(image, self.size, self.scale, self.flip, random), ())


def _group_windows(readers: list[Iterator[_Row]], start: _Position) -> Iterator[_Window]:
    """Yield the windows of a group of shards from the round of ``start`` on."""
    remaining = [itertools.islice(reader, start.round, None) for reader in readers]
    window, size = _Window(start), 0
    for following_round, rows in enumerate(itertools.zip_longest(*remaining), start.round + 1):
        for row in rows:
            if row is not None:  # shards differ in length
                window.rows.append(row)
                size += len((row.cell or {}).get("bytes") or b"")
        if len(window.rows) >= _WINDOW_ROWS or size >= _WINDOW_BYTES:
            yield window
            window, size = _Window(replace(start, round=following_round)), 0
    if window.rows:
        yield window


class StreamedBatches(Iterator[torch.Tensor]):
    """Endless batches of a stream, uint8 (batch_size / processes, 3, S, S).

    A batch has the next images that can be read; the crop of an image depends on the seed, the rank and the number of
    images that this process took before it. So batches are the same with any number of workers, and those after a
    state are the same as without a stop. With other processes they are not: each has its own part of the data set,
    whole shards if these can be shared evenly, otherwise every ``processes``-th row of every shard.

    Args:
        stream: The crops.
        batch_size: The global batch, in images.
        workers: Threads that decode and crop, all in one process beside this one, which reads ahead as well; with 0,
            this process does it.
        rank: Which of the ``processes`` that train this one is.
        processes: How many share each batch.
        broken: Counts the unreadable images of this process; by default up to 1000 of them are skipped.
        state: What ``state`` of this process returned; by default the stream begins.

    Raises:
        ValueError: the global batch does not divide by the number of processes; the state is of another process.
        ImageError: while reading, for a shard that cannot be read, beyond the limit of ``broken`` or for 100
            unreadable images in a row.
    """

    def __init__(
        self,
        stream: StreamedCrops,
        batch_size: int,
        workers: int,
        rank: int = 0,
        processes: int = 1,
        broken: BrokenImages | None = None,
        state: dict[str, int] | None = None,
    ) -> None:
        if batch_size % processes:
            raise ValueError(f"expected a batch size divisible by {processes} processes, found {batch_size}")
        self._share = {"rank": rank, "processes": processes}
        self._position = _Position() if state is None else _restored(state, self._share)
        reader = _BatchReader(stream, batch_size // processes, workers, rank, processes, self._position)
        loader = DataLoader(
            reader,
            batch_size=None,  # a batch is made as a whole, by the reader
            num_workers=min(workers, 1),
            worker_init_fn=start_worker,
            pin_memory=torch.cuda.is_available(),
        )
        self._broken = BrokenImages() if broken is None else broken
        self._received: Iterator[_PositionedBatch] = iter(loader)

    def __next__(self) -> torch.Tensor:
        batch, position = next(self._received)
        try:
            crops = counted(batch, self._broken)
        except ImageError:
            self._received = iter(())  # ends the worker now, and not when the error's traceback is forgotten
            raise
        self._position = position
        return crops

    def state(self) -> dict[str, int]:
        """Return the position behind the batches that were taken, for JSON; what was read ahead does not count."""
        return asdict(self._position) | self._share


def _restored(state: dict[str, int], share: dict[str, int]) -> _Position:
    """Return the position of a state, which must be of the same ``share`` of the data: rank and processes."""
    position = dict(state)
    saved = {name: position.pop(name) for name in share}
    if saved != share:
        raise ValueError(
            f"expected a position of process {share['rank']} of {share['processes']} in the streamed data, "
            f"found one of process {saved['rank']} of {saved['processes']}; "
            "only with the same number of processes does a stream go on"
        )
    return _Position(**position)


class _PositionedBatch(NamedTuple):
    """A batch and the position behind it: what the worker sends."""

    batch: Batch
    position: _Position


class _BatchReader(IterableDataset[_PositionedBatch]):
    """Reads, decodes and crops the images of one process: what the worker does."""

    def __init__(
        self, stream: StreamedCrops, batch_size: int, threads: int, rank: int, processes: int, start: _Position
    ) -> None:
        self.stream = stream
        self.batch_size = batch_size
        self.threads = threads
        self.rank = rank
        self.processes = processes
        self.start = start

    def __iter__(self) -> Iterator[_PositionedBatch]:
        windows = self.stream.windows(self.start, self.rank, self.processes)
        if self.threads == 0:
            yield from self._batches(map(self._crop, self._rows(windows)))
            return
        with ThreadPoolExecutor(self.threads + 1) as pool:  # one of them reads the next window
            rows = self._rows(_ahead(lambda: pool.submit(next, windows), 1))
            yield from self._batches(_ahead(lambda: pool.submit(self._crop, next(rows)), 2 * self.threads))

    def _rows(self, windows: Iterator[_Window]) -> Iterator[tuple[_Row, _Position]]:
        """Yield the rows in their shuffled order, each with the position behind it."""
        skip, images = self.start.offset, self.start.images
        for window in windows:
            order = self.stream.order(window, self.rank)
            for offset in range(skip, len(order)):
                images += 1
                yield window.rows[order[offset]], replace(window.start, offset=offset + 1, images=images)
            skip = 0

    def _crop(self, item: tuple[_Row, _Position]) -> tuple[Crop, _Position]:
        row, position = item
        return self.stream.crop(row, self.rank, position.images), position

    def _batches(self, crops: Iterator[tuple[Crop, _Position]]) -> Iterator[_PositionedBatch]:
        """Yield batches without end, unless one has an error."""
        readable = _readable(crops)
        while True:
            try:
                taken = list(itertools.islice(readable, self.batch_size))
            except ImageError as error:
                yield _PositionedBatch(Batch(torch.empty(0), [], str(error)), self.start)
                return
            yield _PositionedBatch(as_batch((c for c, _ in taken), self.batch_size, self.stream.size), taken[-1][1])
            if taken[-1][0].pixels is None:
                return


def _readable(crops: Iterator[tuple[Crop, _Position]]) -> Iterator[tuple[Crop, _Position]]:
    """Yield the crops that have pixels, each with the unreadable images before it; a last one without if too many."""
    skipped: list[Skipped] = []
    for crop, position in crops:
        skipped += crop.skipped
        too_many = len(skipped) == MOST_UNREADABLE_IN_A_ROW
        if crop.pixels is not None or too_many:
            yield Crop(crop.pixels, tuple(skipped)), position
            skipped = []
        if too_many:
            return


def _ahead(submit: Callable[[], Future[Any]], count: int) -> Iterator[Any]:
    """Yield the results of ``submit`` in order, while ``count`` more are in work."""
    pending = deque(submit() for _ in range(count))
    while True:
        result = pending.popleft().result()
        pending.append(submit())
        yield result
