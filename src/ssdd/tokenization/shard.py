"""One shard: crops of its images, encoded in fixed batches, written as a file with its index.

Threads read and crop ahead, the encoder runs in this one, and another one copies, hashes and writes. A shard's bytes
are a function of the plan and the shard's number alone: not of other shards, of what was interrupted before, nor of how
many read.

Shapes: B crops of h' x w' pixels, c latent channels, h x w latent grid.
"""

import hashlib
import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from ..data.images import ImageError, ImageReadError, printable
from ..data.pixels import images_to_tensor
from ..statistics import LatentStatistics
from .crops import Crop
from .format import (
    STORED,
    Container,
    Label,
    Moments,
    Shape,
    ShardIndex,
    SkippedImage,
    TokenizedDataError,
    escaped,
    index_name,
    key_of,
    shard_name,
)
from .output import Output, guarded, one_line
from .plan import OpenJob, ShardTask, Work
from .quarantine import ReadingNotes, crashing, reading_notes
from .records import Latent, ShardWriter
from .sources import ShardImages
from .writers import open_writer

A = TypeVar("A")
B = TypeVar("B")

Report = Callable[[int], object]
"""Callback that receives the number of images just finished."""
_AGAIN = "run the same command again"
_BATCHES_AHEAD = 2


class InputShardError(ImageError):
    """An input shard that is none: the others can be made all the same."""


class UnreadImageError(OSError):
    """An image that was listed and cannot be read now, through no fault of its own: to skip it would be for ever."""


@dataclass(frozen=True)
class CroppedImage:
    """An image: its number in the shard, the sides of the photograph, its crops, and what else its sample has."""

    image: int
    size: tuple[int, int]
    crops: tuple[Crop, ...]
    members: dict[str, bytes]


@dataclass(frozen=True)
class Piece:
    """A crop to encode: ``item.crops[number]``."""

    item: CroppedImage
    number: int

    @property
    def crop(self) -> Crop:
        return self.item.crops[self.number]


def write_shard(job: OpenJob, task: ShardTask, output: Output, work: Work, report: Report) -> ShardIndex:
    """Make a shard and its index; what was there of it is replaced. The index appears last, and vouches for the shard.

    Args:
        work: what this process was given, with which another one can read an image.
        report: receives the number of images after each batch.

    Raises:
        UnreadImageError: an image that is lost or unreadable since it was listed.
        InputShardError: an input shard that is none. Broken images are in the index instead.
        ImageReadError: one that cannot be read now.
        ValueError: a latent that is not finite as it is to be stored.
        OSError: nothing can be written.
    """
    name, folder = shard_name(task.number, job.plan.container), output.folder
    output.remove(index_name(task.number))  # it would vouch for the new file
    with ExitStack() as stack:
        try:
            images = stack.enter_context(job.data.open(task))
        except ImageReadError:
            raise
        except ImageError as error:
            raise InputShardError(str(error)) from error
        notes, suspects = stack.enter_context(reading_notes(folder, job.digest, task.number))
        stack.enter_context(_threads(job))
        crashes = crashing(partial(_read_alone, work, task), suspects)
        reader = _Reader(job, task, images, notes, crashes)
        place = output.label(name)
        with output.writing(name) as path, guarded(place, path.open("wb")) as raw, HashedFile(place, raw) as file:
            index = _write(job, task, reader, file, work, report)
    with output.writing(index_name(task.number)) as path, one_line(output.label(name)):
        path.write_bytes(index.encode())
    return index


def _read_alone(work: Work, task: ShardTask, image: int) -> None:
    with work.data().open(task) as images:
        images.read(image)


@contextmanager
def _threads(job: OpenJob) -> Iterator[None]:
    """Run with the job's number of threads: on a CPU it changes the rounding."""
    before = torch.get_num_threads()
    try:
        if job.on_cpu:
            torch.set_num_threads(job.job.threads)
        yield
    finally:
        torch.set_num_threads(before)


class HashedFile(io.RawIOBase):
    """Write through, in order, and keep the SHA-256 of all of it. Raises as ``one_line`` for the file ``label``."""

    def __init__(self, label: str, file: BinaryIO) -> None:
        self.digest = hashlib.sha256()
        self._label, self._file = label, file

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def write(self, content: Any) -> int:
        self.digest.update(content)
        with one_line(self._label):
            return self._file.write(content)


class _Reader:
    """Reads and crops an image by its number in the shard, in any thread."""

    def __init__(
        self, job: OpenJob, task: ShardTask, images: ShardImages, notes: ReadingNotes, crashes: dict[int, str]
    ) -> None:
        self.images = images
        self._protocol, self._task, self._notes, self._crashes = job.job.protocol, task, notes, crashes

    def __call__(self, i: int) -> CroppedImage | SkippedImage:
        """Raises UnreadImageError."""
        images, task = self.images, self._task
        place = printable(images.place(i))
        if i in self._crashes:
            reason = f"{place}: expected an image, found one whose decoder ends the process by {self._crashes[i]}"
            return SkippedImage(task.first + i, images.name(i), reason)
        numbers = (task.first + i,) if task.input is None else (task.number, i)
        try:
            with self._notes.reading(i):
                pixels = images.read(i)
                crops = self._protocol.cut(pixels, numbers)
                members = images.members(i)
        except ImageError as error:
            if images.is_gone(i):
                line = f"{place}: expected the image that was listed, found none: put the data back and {_AGAIN}"
                raise UnreadImageError(line) from error
            if isinstance(error, ImageReadError):
                raise UnreadImageError(f"{error}: when it can be read, {_AGAIN}") from error
            return SkippedImage(task.first + i, images.name(i), str(error))
        except MemoryError as error:
            line = (
                f"{place}: expected memory for this image, found too little: free some, or pass fewer --workers, and "
            )
            raise UnreadImageError(line + _AGAIN) from error
        return CroppedImage(i, (pixels.shape[0], pixels.shape[1]), crops, members)


def in_order(work: Callable[[A], B], items: Iterable[A], threads: int, ahead: int) -> Iterator[B]:
    """Return ``work`` of each item in order, at most ``ahead`` of them done beforehand; without threads none."""
    if threads == 0:
        yield from map(work, items)
        return
    futures: deque[Future[B]] = deque()
    with ThreadPoolExecutor(threads, "ssdd-read") as pool:
        try:
            for item in items:
                futures.append(pool.submit(work, item))
                if len(futures) > ahead:
                    yield futures.popleft().result()
            while futures:
                yield futures.popleft().result()
        finally:
            for future in futures:
                future.cancel()


def _write(
    job: OpenJob, task: ShardTask, reader: _Reader, hashed: HashedFile, work: Work, report: Report
) -> ShardIndex:
    """Encode all crops of the shard into an open file."""
    file = cast(BinaryIO, hashed)
    content = _Content(job, task, reader.images)
    items = in_order(reader, range(len(reader.images)), work.readers, _BATCHES_AHEAD * job.job.batch_size)
    pending: deque[Future[None]] = deque()
    with ThreadPoolExecutor(
        1, "ssdd-write", initializer=partial(torch.set_num_threads, torch.get_num_threads())
    ) as pool:
        try:
            for batch, done in _batches(items, job.job.batch_size, content.skipped):
                pending.append(pool.submit(content.store, batch, _encode(job, batch), file))
                while len(pending) > _BATCHES_AHEAD:
                    pending.popleft().result()
                report(done)
            while pending:
                pending.popleft().result()
            content.close(file)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            content.abandon()
            raise
    statistics = content.statistics
    return ShardIndex(
        plan=job.digest,
        number=task.number,
        first=task.first,
        last=task.first + len(reader.images),
        file_bytes=hashed.tell(),
        sha256=hashed.digest.hexdigest(),
        member_bytes=content.member_bytes,
        offsets=content.offsets,
        labels=content.labels,
        skipped=content.skipped,
        left_out=dict(reader.images.left_out),
        statistics=Moments(**statistics.state()) if statistics.count else None,
        shape=content.shape,
        info=content.info,
        input_bytes=reader.images.input_bytes,
        made_by=job.made_by,
    )


def _batches(
    items: Iterator[CroppedImage | SkippedImage], size: int, skipped: list[SkippedImage]
) -> Iterator[tuple[list[Piece], int]]:
    """All crops, ``size`` at a time, and how many images more are done; broken images are no gaps in the batches."""
    waiting: list[Piece] = []
    read = reported = 0
    for item in items:
        read += 1
        if isinstance(item, SkippedImage):
            skipped.append(item)
            continue
        waiting += [Piece(item, number) for number in range(len(item.crops))]
        while len(waiting) >= size:
            batch, waiting = waiting[:size], waiting[size:]
            done = read - len({piece.item.image for piece in waiting})
            yield batch, done - reported
            reported = done
    yield waiting, read - reported


@dataclass(frozen=True)
class _Encoded:
    """Mean and log-variance (B, c, h, w) of the stored type, of the crops and, where asked for, of the mirrored ones.

    On a GPU they are on their way to the CPU until ``ready`` has passed.
    """

    ways: list[tuple[Tensor, Tensor]]
    ready: torch.cuda.Event | None


def _encode(job: OpenJob, batch: list[Piece]) -> _Encoded | None:
    if not batch:
        return None
    device, store = job.encoder.device, STORED[job.job.store]
    pixels = torch.from_numpy(np.stack([piece.crop.pixels for piece in batch]))
    if device.type == "cuda":
        pixels = pixels.pin_memory()
    x = images_to_tensor(pixels.to(device, non_blocking=True))
    ways = []
    for crops in [x, x.flip(-1)] if job.job.protocol.flips else [x]:
        posterior = job.encoder.encode(crops)
        mean, logvar = (t.to(store).to("cpu", non_blocking=True) for t in (posterior.mean, posterior.logvar))
        ways.append((mean, logvar))
    ready = None
    if device.type == "cuda":
        ready = torch.cuda.Event()
        ready.record()
    return _Encoded(ways, ready)


class _Content:
    """Stores batches in a container, and gathers what the index will say of them."""

    def __init__(self, job: OpenJob, task: ShardTask, images: ShardImages) -> None:
        self.labels: list[Label] = []
        self.skipped: list[SkippedImage] = []
        self.statistics = LatentStatistics()
        self.shape: Shape | None = None
        self._job, self._task, self._images = job, task, images
        self._writer: ShardWriter | None = None

    @property
    def offsets(self) -> list[int]:
        return self._writer.offsets if self._writer else []

    @property
    def info(self) -> dict[str, Any] | None:
        return self._writer.info if self._writer else None

    @property
    def member_bytes(self) -> int:
        return self._writer.member_bytes if self._writer else 0

    def store(self, batch: list[Piece], encoded: _Encoded | None, file: BinaryIO) -> None:
        """Raises ValueError if a latent is not finite."""
        if encoded is None:
            return
        if encoded.ready is not None:
            encoded.ready.synchronize()
        for mean, logvar in encoded.ways:
            self._check(batch, mean, logvar)
        writer = self._open(file, encoded.ways[0][0])
        for i, piece in enumerate(batch):
            for flipped, (mean, logvar) in enumerate(encoded.ways):
                latent = self._latent(piece, bool(flipped), mean[i], logvar[i])
                self.labels.append(latent.identity)
                writer.add(latent)
        for mean, _ in encoded.ways:
            self.statistics.update(mean)

    def _open(self, file: BinaryIO, mean: Tensor | None = None) -> ShardWriter:
        if self._writer is None:
            shape = self._job.plan.latent_shape
            if mean is not None and tuple(mean.shape[1:]) != shape:
                shape = self.shape = (mean.shape[1], mean.shape[2], mean.shape[3])
            self._writer = open_writer(self._job.plan.container, file, shape, STORED[self._job.job.store])
        return self._writer

    def close(self, file: BinaryIO) -> None:
        self._open(file).close()

    def abandon(self) -> None:
        if self._writer is not None:
            self._writer.abandon()

    def _check(self, batch: list[Piece], mean: Tensor, logvar: Tensor) -> None:
        finite = (mean.isfinite() & logvar.isfinite()).flatten(1).all(1).tolist()
        if not all(finite):
            name = printable(self._images.place(batch[finite.index(False)].item.image))
            raise ValueError(
                f"{name}: expected a finite latent in {self._job.job.store}, found NaN or infinity: try --store bf16, "
                "or --dtype fp32 for the network"
            )

    def _latent(self, piece: Piece, flipped: bool, mean: Tensor, logvar: Tensor) -> Latent:
        item, crop, task = piece.item, piece.crop, self._task
        name, label = escaped(self._images.name(item.image)), self._images.label(item.image)
        image = task.first + item.image
        classes = self._job.plan.classes
        named = classes[label] if isinstance(label, int) and label < len(classes) else None
        return Latent(
            key=key_of(None if task.input is None else task.number, image, piece.number, flipped, name),
            mean=mean,
            logvar=logvar,
            source=name,
            image=image,
            label=label if isinstance(label, int) else None,
            class_name=escaped(label) if isinstance(label, str) else named and escaped(named),
            size=item.size,
            resized=crop.resized,
            crop=(crop.top, crop.left, crop.pixels.shape[0], crop.pixels.shape[1]),
            flipped=flipped,
            members=item.members,
        )


def check_input(task: ShardTask, index: ShardIndex) -> None:
    """Raises ValueError if a shard was made of another input than this one, as its size on this machine tells."""
    path = task.input
    if path is not None and os.path.isfile(path) and index.input_bytes != os.path.getsize(path):
        raise ValueError(
            f"{printable(path)}: expected {index.input_bytes} bytes, of which shard {task.number} was made, found "
            f"{os.path.getsize(path)}: tokenize other data into another --out"
        )


def finished_shard(output: Output, digest: str, container: Container, number: int) -> ShardIndex | None:
    """Return the index of a shard that is there, whole and of this plan by its index and its size; else None.

    Its bytes are not read: ``verify`` does that.
    """
    try:
        index = ShardIndex.decode(output.read(index_name(number)), output.label(index_name(number)))
    except (TokenizedDataError, OSError):
        return None
    whole = (index.plan, index.number) == (digest, number)
    return index if whole and output.size(shard_name(number, container)) == index.file_bytes else None
